"""The record of an ablation on disk: ``ablation.json``, and the page that is made from it alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence

from cram.drawing import INK
from cram.errors import CramError
from cram.insight.ablate.page import blocks
from cram.insight.ablate.question import Question, plain_dict
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

SCHEMA = 1


def make_record(question: Question, rows: Sequence[dict], expected: int, command: str, environment: dict) -> dict[str, Any]:
    """JSON-ready. expected: runs in all; command: to type again."""
    return {"schema": SCHEMA, **plain_dict(question), "command": command, "environment": environment,
            "complete": len(rows) == expected, "rows": list(rows)}


def agreed(rows: Sequence[dict]) -> list[dict]:
    """The rows, with those that were scored on other text or tokens than the first as failed: such scores do not compare."""
    first = next((row["scored_on"] for row in rows if row.get("scored_on")), None)
    return [row if row.get("scored_on") in (None, first) else
            {name: value for name, value in row.items() if name != "value"}
            | {"error": f"scored on other text than the first run ({row['scored_on']:,} bytes or tokens, not {first:,})"}
            for row in rows]


def save(record: dict[str, Any], folder: Path, stem: str = "ablation") -> list[Path]:
    """Write the record and its page into ``folder``; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    replace_durably(path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return [path, *render(path)]


def render(path: Path) -> list[Path]:
    """Make the page (.md with its .svg, .html) beside a record; returns the paths. CramError for another file."""
    record = read(path)
    try:
        page = blocks(record, path.stem)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise CramError(f"{path}: damaged or not a whole record ({type(error).__name__}: {error}); run the ablation again, "
                        "finished runs are found") from error
    made = {path.with_suffix(".html"): to_html(page, record["question"]), path.with_suffix(".md"): to_markdown(page)}
    made |= {path.with_name(f"{block[1]}.svg"): block[2].replace(INK, "#888888") for block in page if block[0] == "figure"}
    for where, content in made.items():
        replace_durably(where, content.encode())
    return [*made]


def read(path: Path) -> dict[str, Any]:
    """The record in a file. CramError for one that is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CramError(f"{path}: no such file; give an ablation.json") from error
    except ValueError as error:
        raise CramError(f"{path}: not JSON ({error}); run the ablation again, finished runs are found") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "arms" not in record:
        raise CramError(f"{path}: not the record of an ablation of this version; give a file that cram ablate wrote")
    return record
