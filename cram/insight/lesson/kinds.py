"""``cram lesson kinds RUN``: of each kind of document in the course's web text, what happened to it."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from cram.errors import CramError
from cram.insight.lesson.judge import read
from cram.insight.lesson.text import FOLDER, WEB_DOCUMENTS, web

KEPT = ("train", "validation")
EDITED_AWAY = "edits"    # of lines, which left nothing
MOST_RULES = 3          # named; the others are counted


def fates_by_kind(folder: Path) -> dict[str, Counter[str]]:
    """Kind -> how many went to train, validation, or were dropped by which rule. CramError when the run in ``folder`` did not
    read the course's web text, unchanged."""
    import pyarrow.parquet as parquet

    text = folder / "text"
    if not (text / "manifest.json").is_file():
        raise CramError(f"{folder}: no text there; make it with: cram text lessons/web")
    manifest = read(text / "manifest.json")
    if [Path(file["file"]).name for file in manifest["source"].get("files", [])] != ["web.jsonl"]:
        raise CramError(f"{folder}: was not made from {FOLDER / 'web.jsonl'} alone; use the configuration lessons/web")
    rows, found = web(WEB_DOCUMENTS, 2), defaultdict(Counter)
    fate_of = dict.fromkeys(range(len(rows)), EDITED_AWAY)
    for part in manifest["parts"]:
        origins = parquet.read_table(text / part["file"], columns=["origin"])["origin"].to_pylist()
        fates = np.load(text / part["file"].replace("part-", "fate-").replace(".parquet", ".npy"))
        fate_of |= {int(origin.rsplit(":", 1)[1]) - 1: manifest["fates"][fate]
                    for origin, fate in zip(origins, fates, strict=True)}
    for number, fate in fate_of.items():
        found[rows[number]["kind"]][fate] += 1
    return dict(found)


def kinds_lines(folder: Path) -> list[str]:
    """A table: kind, how many there are, how many were kept, and by which rules the others went."""
    lines = [f"{'kind':<12}{'pages':>6}{'kept':>6}  dropped by"]
    for kind, fates in fates_by_kind(folder).items():
        rules = [f"{rule} {count}" for rule, count in fates.most_common() if rule not in KEPT]
        dropped = ", ".join(rules[:MOST_RULES]) + (f" and {len(rules) - MOST_RULES} more rules" if rules[MOST_RULES:] else "")
        lines.append(f"{kind:<12}{fates.total():>6}{sum(fates[name] for name in KEPT):>6}  {dropped}".rstrip())
    return lines
