"""``cram doctor``: whether this machine is ready, and what each shipped configuration would buy on it.

    cram doctor            everything, presets measured: a minute
    cram doctor --quick    without network, kernel trial and presets: seconds
    cram doctor out=/data/runs
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from cram.config import load
from cram.errors import CramError

SECONDS = 1.0           # of measuring steps, for each preset


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram doctor`` with these arguments; returns 1 when something would stop a run, else 0."""
    from cram.insight.doctor.checks import PROBLEM, examine, lines
    from cram.insight.doctor.facts import gather

    parser.add_argument("settings", nargs="*", metavar="key=value", help="out=FOLDER, train.device=cpu ...: as the runs will "
                                                                         "have it")
    parser.add_argument("--quick", action="store_true", help="without network, kernel trial and presets")
    options = parser.parse_intermixed_args(arguments)
    if named := [text for text in options.settings if "=" not in text]:
        raise CramError(f"cram doctor takes no configuration, got '{named[0]}'; for one of them: cram plan {named[0]}")
    config = load("demo", options.settings)
    findings = [*examine(gather(Path(config.out), options.quick)), *_refused(config.train)]
    for line in lines(findings):
        say(line)
    problems = sum(finding.state == PROBLEM for finding in findings)
    if not options.quick:
        from cram.insight.doctor.presets import judge
        from cram.insight.plan.measuring import measure

        say("what the shipped configurations buy here, by steps measured now (neighbours included):")
        for finding in judge(options.settings, SECONDS, measure):
            for line in lines([finding]):
                say(line)
    say(f"{problems} problem{'s' * (problems != 1)} would stop a run" if problems else "ready: nothing here stops a run")
    return 1 if problems else 0


def _refused(train) -> list:
    """The finding when this machine cannot give the device or precision that the settings ask for. train:
    ``cram.schema.Train``."""
    from cram.device import choose_device
    from cram.insight.doctor.checks import PROBLEM, Finding

    try:
        choose_device(train)
    except CramError as error:
        return [Finding(PROBLEM, "settings", str(error))]
    return []
