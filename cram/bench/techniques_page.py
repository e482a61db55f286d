"""``reports/techniques.md``: every technique with its source, its code, its test and what was measured.

Files and lines are looked up in the objects themselves when the page is written: ``cram bench render`` on the measurement
writes it again.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Optional

from cram.bench.techniques_list import TECHNIQUES
from cram.bench.write import cell
from cram.errors import CramError
from cram.report_page import to_markdown
from data_prep.files import replace_durably

ROOT = Path(__file__).resolve().parents[2]


def where(code: str) -> str:
    """``cram/ema.py:11-40`` of ``cram.ema:EMA``. CramError when it is not there."""
    module, _, name = code.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ModuleNotFoundError, AttributeError) as error:
        raise CramError(f"{code}, named in the table of techniques, is not there ({error}); correct "
                        "cram/bench/techniques_list.py") from error
    found = inspect.unwrap(found)
    lines, first = inspect.getsourcelines(found)
    path = Path(inspect.getsourcefile(found) or "").resolve()
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{first}-{first + len(lines) - 1}"


def is_test(test: str, root: Path = ROOT) -> bool:
    """Whether ``path::name`` names a test function of the checkout."""
    path, _, name = test.partition("::")
    return (root / path).is_file() and re.search(rf"^def {re.escape(name)}\(", (root / path).read_text(), re.M) is not None


def write(record_path: Path) -> Path:
    """The page of a measurement: above its folder when that is called bench, else in it. Returns its path."""
    record = json.loads(record_path.read_text(encoding="utf-8"))
    measured = {row["name"]: row for row in record["rows"]}
    kinds = [[each.name, " ".join(each.settings) + " distill.teacher=RUN" * each.teacher
              + f" (with {' '.join(each.against)})" * bool(each.against), each.purpose, each.source]
             for each in TECHNIQUES]
    proofs = [[each.name, where(each.code), each.test] for each in TECHNIQUES]
    figures = [[each.name, *(cell(measured.get(each.name, {}), *column) for column in
                             (("speed", ".2f"), ("memory", ".2f"), ("loss_difference", "+.4f"))),
                _remark(measured.get(each.name))] for each in TECHNIQUES]
    facts = record["environment"]
    blocks = [("title", "Techniques"),
              ("text", "What can be switched on, where it is from, who does it, who proves it, and what it costs and saves."),
              ("section", "What for"), ("table", ["technique", "switch", "what for", "source"], kinds),
              ("section", "Where"), ("table", ["technique", "code", "test of equality or tolerance"], proofs),
              ("section", "Measured"), ("text", f"{facts['name']}, torch {facts['torch']}, {facts['date']}; "
                                        f"{record['command']}; all figures: {record_path.stem}.md."),
              *(("text", note) for note in record["notes"]),
              ("table", ["technique", "tokens/s, ratio", "peak memory, ratio", "loss, difference", "remark"], figures)]
    folder = record_path.parent.parent if record_path.parent.name == "bench" else record_path.parent
    page = folder / "techniques.md"
    replace_durably(page, to_markdown(blocks).encode())
    return page


def _remark(row: Optional[dict]) -> str:
    return "not part of this measurement" if row is None else row.get("error") or row.get("remark", "")
