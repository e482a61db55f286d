"""``cram lesson kinds RUN``: of each kind of document in the course's web text, what happened to it."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from cram.errors import CramError
from cram.insight.lesson.text import FOLDER, WEB_DOCUMENTS, web

KEPT = ("train", "validation")


def fates_by_kind(folder: Path) -> dict[str, Counter[str]]:
    """Kind -> how many went to train, validation, or were dropped by which rule. CramError when the run in ``folder`` did not
    read the course's web text, unchanged."""
    text = folder / "text"
    if not (text / "manifest.json").is_file():
        raise CramError(f"{folder}: no text there; make it with: cram text lessons/web")
    manifest = json.loads((text / "manifest.json").read_text(encoding="utf-8"))
    rows = web(WEB_DOCUMENTS, 2)
    fates = np.concatenate([np.load(path) for path in sorted(text.glob("fate-*.npy"))])
    files = [Path(file["file"]).name for file in manifest["source"].get("files", [])]
    if files != ["web.jsonl"] or len(fates) != len(rows):
        raise CramError(f"{folder}: was not made from {FOLDER / 'web.jsonl'} alone; use the configuration lessons/web")
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row, fate in zip(rows, fates):
        found[row["kind"]][manifest["fates"][fate]] += 1
    return dict(found)


def kinds_lines(folder: Path) -> list[str]:
    """A table: kind, how many there are, how many were kept, and by which rules the others went."""
    lines = [f"{'kind':<12}{'pages':>6}{'kept':>6}  dropped by"]
    for kind, fates in fates_by_kind(folder).items():
        dropped = ", ".join(f"{rule} {count}" for rule, count in fates.most_common() if rule not in KEPT)
        lines.append(f"{kind:<12}{fates.total():>6}{sum(fates[name] for name in KEPT):>6}  {dropped}".rstrip())
    return lines
