"""``cram profile [config ...] [key=value ...]``: where the time of a training step goes."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Callable

from cram.config import load
from cram.errors import CramError

STEPS = 12


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram profile`` with these arguments; returns the exit code. CramError for a wrong one."""
    parser.add_argument("settings", nargs="*", metavar="[config ...] [key=value ...]", help="as for cram run")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps timed, each beside one that nobody looks at ({STEPS})")
    parser.add_argument("--progress", type=float, default=0.0, metavar="P",
                        help="the step at this share of the budget, which decides batch, rows, masks and depth (0)")
    parser.add_argument("--layers", action="store_true", help="the table block by block, not summed over blocks")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a Chrome trace of one step (.json or .json.gz)")
    parser.add_argument("--thread-time", action="store_true",
                        help="what one thread computes instead of the wall's time, on a shared machine (train.threads=1)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for the page (default: profile/ in the run's)")
    parser.add_argument("--json", action="store_true", help="print the record as JSON and nothing else")
    options = parser.parse_intermixed_args(arguments)
    config = load([text for text in options.settings if "=" not in text] or "demo",
                  [text for text in options.settings if "=" in text])
    out = options.out or Path(config.out) / config.name / "profile"
    refuse_files(out, options.trace)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler talks on standard error; read as torch is imported
    from cram.insight.profile.measure import profile
    from cram.insight.profile.page import lines, write

    tell = (lambda line: None) if options.json else say
    record = profile(config, progress=options.progress, steps=options.steps, trace=options.trace, say=tell,
                     thread_time=options.thread_time)
    record["command"] = shlex.join(["cram", "profile", *arguments])
    write(record, out)
    if options.json:
        print(json.dumps(record, indent=1))
        return 0
    for line in [*lines(record, options.layers), "", f"page: {out / 'profile.html'}"]:
        say(line)
    return 0


def refuse_files(out: Path, trace: Path | None) -> None:
    """Before minutes are spent: CramError when the page or the trace could not be written."""
    if out.exists() and not out.is_dir():
        raise CramError(f"--out {out}: is a file; name a folder")
    if trace is not None and (trace.is_dir() or not trace.parent.is_dir()):
        raise CramError(f"--trace {trace}: no file can be written there; name one in a folder that exists")
