"""``cram compare A B [C ...]``: runs side by side; beside what was expected of them, pass or fail."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Callable

from cram.errors import CramError


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram compare`` with these arguments; returns the exit code: 1 when a run is not as expected."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders, cards, files of reports/expected")
    parser.add_argument("--out", type=Path, help="folder for compare.html and compare.md; of --expect, for its files")
    parser.add_argument("--tolerance", type=float, help="share that a score may differ from the expected one, such as 0.02")
    parser.add_argument("--expect", action="store_true", help="keep each run as what is expected of others, in NAME.json")
    options = parser.parse_args(arguments)

    from cram.insight.compare.side import open_side
    if options.tolerance is not None and not 0 <= options.tolerance < 1:
        raise CramError(f"--tolerance={options.tolerance:g}: is a share of the score; give 0 to 1, such as 0.02")
    sides = [open_side(where) for where in options.runs]
    if options.expect:
        return _expect(sides, options.out or Path("reports/expected"), say)
    if len(sides) < 2:
        raise CramError(f"one run alone cannot be compared; name another: cram compare {options.runs[0]} runs/other")

    from cram.insight.compare.expect import check
    from cram.insight.compare.page import compare_blocks, compare_lines, names
    expected = [side for side in sides if side.source == "expected"]
    if len(expected) > 1:
        raise CramError("two files of what was expected; give one, and the runs to judge by it")
    titles = dict(zip(map(id, sides), names(sides)))
    checks = [(titles[id(side)], check(side, expected[0], options.tolerance)) for side in sides
              if expected and side is not expected[0]]
    blocks = compare_blocks(sides, checks, shlex.join(["cram", "compare", *arguments]))
    for line in compare_lines(sides, checks):
        say(line)
    if options.out is not None:
        _write(blocks, options.out)
        say(f"page: {options.out / 'compare.html'}")
    else:
        say("a page with the curves: --out DIR")
    return 1 if any(each.passed is False for _, found in checks for each in found) else 0


def _expect(sides, out: Path, say: Callable[[str], None]) -> int:
    from cram.insight.compare.side import to_expected
    from data_prep.files import replace_durably

    out.mkdir(parents=True, exist_ok=True)
    for side in sides:
        if not side.finished or side.score[1] is None or side.source == "expected":
            raise CramError(f"{side.name}: only what a finished and evaluated run reached can be expected of others")
        path = out / f"{side.config.name}.json"
        replace_durably(path, json.dumps(to_expected(side), allow_nan=False).encode() + b"\n")
        say(f"{path}: {side.score[0]} {side.score[1]:.4f} under {side.budget}; check a run: cram compare RUN {path}")
    return 0


def _write(blocks: list[tuple], out: Path) -> None:
    from cram.drawing import INK
    from cram.report_page import to_html, to_markdown
    from data_prep.files import replace_durably

    files = {"compare.html": to_html(blocks, "cram: comparison"), "compare.md": to_markdown(blocks)}
    files |= {f"{block[1]}.svg": block[2].replace(INK, "#888888") for block in blocks if block[0] == "figure"}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_durably(out / name, content.encode())
    except OSError as error:
        raise CramError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
