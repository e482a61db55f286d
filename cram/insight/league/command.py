"""``cram league DIR``: verify cards and rank them by score within classes of equal budgets."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Callable, Optional

from cram.errors import CramError


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram league`` with these arguments; returns the exit code, 1 when no card is accepted."""
    parser.add_argument("cards", nargs="+", type=Path, help="folders with cards, or cards")
    parser.add_argument("--rescore", action="store_true", help="measure scores again, of cards whose weights are at hand")
    parser.add_argument("--runs", type=Path, help="a folder of runs, in which weights are looked for too (means --rescore)")
    parser.add_argument("--same-code", action="store_true",
                        help="reject cards made with other code than this, not only mark them")
    parser.add_argument("--out", type=Path,
                        help="folder for league.html and league.md (default: the first folder given, or here)")
    parser.add_argument("--replay", action="store_true", help="of each card, how to repeat its run; nothing is ranked")
    options = parser.parse_args(arguments)

    from cram.drawing import INK
    from cram.insight.league.page import league_blocks, league_lines
    from cram.insight.league.standings import find_cards, judge
    from cram.report_page import to_html, to_markdown
    from data_prep.files import replace_durably
    paths = find_cards(options.cards)
    if options.replay:
        return _replay(paths, options.out or Path("."), say)
    if options.runs is not None and not options.runs.is_dir():
        raise CramError(f"--runs={options.runs}: no such folder; give the one that holds the runs, such as runs")
    again = _rescore(options.runs) if options.rescore or options.runs else None
    entries = judge(paths, same_code=options.same_code, rescore=again, say=say)
    blocks = league_blocks(entries, shlex.join(["cram", "league", *arguments]))
    out = options.out or (options.cards[0] if options.cards[0].is_dir() else Path("."))
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in {"league.html": to_html(blocks, "cram: budget league"), "league.md": to_markdown(blocks),
                              **{f"{block[1]}.svg": block[2].replace(INK, "#888888") for block in blocks
                                 if block[0] == "figure"}}.items():
            replace_durably(out / name, content.encode())
    except OSError as error:
        raise CramError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    for line in league_lines(entries):
        say(line)
    say(f"{sum(entry.accepted for entry in entries)} of {len(entries)} cards accepted; page: {out / 'league.html'}")
    return 0 if any(entry.accepted for entry in entries) else 1


def _rescore(runs: Optional[Path]):
    """A function of a card: reasons against its score, [] when it was measured again, None where no weights are at hand."""
    from cram.insight.league import weights

    def again(card) -> Optional[list[str]]:
        if (package := weights.package_of(card)) is not None:
            return weights.rescore_package(card, package)
        folder = weights.run_of(card, runs) if runs else None
        return weights.rescore_run(card, folder) if folder else None
    return again


def _replay(paths: list[Path], out: Path, say: Callable[[str], None]) -> int:
    """Write each card's configuration, and say what to type."""
    from cram.explain import explain
    from cram.insight.league.card import SUFFIX, read_card
    from data_prep.files import replace_durably

    out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        card = read_card(path)
        name = path.name.removesuffix(SUFFIX)
        file = out / f"{name}.yaml"
        replace_durably(file, (explain(card.config) + "\n").encode())
        if card.ledger.kind == "time":
            say(f"# {path.name}: a budget of time buys what the machine's mood gives; bit for bit only with the run's own "
                f"progress.f64, as train.replay={name}.f64 budget='{card.ledger.own('steps')} steps'")
        say(f"cram evaluate {shlex.quote(str(file))} name={shlex.quote(name)}-again && cram compare {shlex.quote(str(path))} "
            f"{shlex.quote(f'{card.config.out}/{name}-again')}")
    return 0
