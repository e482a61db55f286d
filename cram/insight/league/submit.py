"""``cram submit RUN``: write the card of a finished run, for a league or to keep."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from cram.errors import CramError


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram submit`` with these arguments; returns the exit code. CramError for a run that can have no card."""
    parser.add_argument("run", type=Path, help="a finished, evaluated run's folder, such as runs/demo")
    parser.add_argument("--out", type=Path, help="the card's file, or a folder for it (default: RUN.card.json here)")
    parser.add_argument("--weights", action="store_true",
                        help="beside it weights and held-out text (safetensors), so that the score can be measured again")
    parser.add_argument("--author", default="", help="who made the run")
    parser.add_argument("--name", help="what it is called in the league (default: the run's name)")
    options = parser.parse_args(arguments)

    from cram.insight.league.card import SUFFIX, read_card, write_card
    from cram.insight.league.checks import contradictions
    from cram.insight.league.make import make_card
    from cram.insight.league.weights import write_package
    body = make_card(options.run, options.author, options.name)
    name = f"{options.run.resolve().name}{SUFFIX}"
    path = options.out or Path(name)
    path = path / name if path.is_dir() or not path.suffix else path
    if not path.name.endswith(SUFFIX):
        raise CramError(f"--out={path}: a card's name ends in {SUFFIX}, or no league finds it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if options.weights:
            package = path.with_name(path.name.removesuffix(SUFFIX) + ".safetensors")
            body["weights"]["package"] = write_package(options.run, package)
        write_card(path, body)
    except OSError as error:
        raise CramError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    card = read_card(path)
    for reason in (reasons := contradictions(card)):
        say(f"a league would reject this card: {reason}")
    metric, score = card.score
    say(f"{path}: {path.stat().st_size / 1000:.0f} kB, {metric} {score:.4f}, {card.ledger.budget}, ledger head "
        f"{card.ledger.head[:12]}, sha256 {card.body['sha256'][:12]}")
    if package := card.body["weights"]["package"]:
        say(f"{path.with_name(package['file'])}: weights and held-out text, "
            f"{path.with_name(package['file']).stat().st_size / 1e6:.1f} MB")
    say("the card holds the configuration with its paths, and the ledger with this machine's name")
    return 1 if reasons else 0
