"""Clusters of duplicates for people to look at: how large they are, and how copies differ from the document kept.

Copies are compared word by word (difflib, Ratcliff & Obershelp 1988) around the first word that differs.
"""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import DataError
from data_prep.measured import Parts

LARGEST, RANDOM, COPIES = 6, 6, 3
WORDS, BEFORE, CHARS = 80, 12, 20_000       # words shown, of these before the first difference; characters compared
STEPS = (2, 3, 4, 5, 10, 20, 50, 100, 1000)


def read_clusters(path: Path, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(documents, clusters) int64 [documents with a copy], numbered in reading order, sorted by document.

    first: int64 [parts + 1], first document of each part. DataError when the file cannot be read.
    """
    try:
        table = pq.read_table(path, columns=["part", "row", "cluster"])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); run: cram text --force") from None
    documents = first[table["part"].to_numpy()] + table["row"].to_numpy()
    order = np.argsort(documents, kind="stable")
    return documents[order], table["cluster"].to_numpy()[order]


def cluster_report(parts: Parts, documents: np.ndarray, clusters: np.ndarray, fate: np.ndarray, fates: list[str],
                   seed: int) -> dict[str, Any]:
    """{"clusters", "documents", "sizes": {label: clusters}, "examples": [...]}: the largest clusters and a few by chance.

    fate: uint8 [all documents], index into fates.
    """
    names, sizes = np.unique(clusters, return_counts=True)
    by_size = np.argsort(-sizes, kind="stable")
    others = by_size[LARGEST:]
    drawn = np.random.default_rng(seed).choice(others, min(RANDOM, len(others)), replace=False)
    chosen = [*((index, "largest") for index in by_size[:LARGEST]), *((index, "by chance") for index in np.sort(drawn))]
    return {"clusters": len(names), "documents": len(documents), "sizes": _size_table(sizes),
            "examples": [{"chosen": why, "size": int(sizes[index]),
                          **_example(parts, documents[clusters == names[index]][:1 + COPIES], fate, fates)}
                         for index, why in chosen]}


def _size_table(sizes: np.ndarray) -> dict[str, int]:
    table = {}
    for low, high in zip(STEPS, [*STEPS[1:], None]):
        label = f"{low}" if high == low + 1 else f"{low:,} or more" if high is None else f"{low} to {high - 1}"
        table[label] = int(np.sum((sizes >= low) & (sizes < (high or np.inf))))
    return table


def _example(parts: Parts, members: np.ndarray, fate: np.ndarray, fates: list[str]) -> dict[str, Any]:
    """The first document of a cluster, and how some of its copies differ from it."""
    rows = parts.rows(members, "text", "origin")
    first, *copies = [{"origin": row["origin"], "fate": fates[fate[index]]} for row, index in zip(rows, members)]
    texts = [row["text"] for row in rows]
    for copy, text in zip(copies, texts[1:]):
        copy |= compare(texts[0], text)
    return {"first": first | {"text": " ".join(texts[0][:CHARS].split()[:WORDS])}, "copies": copies}


def compare(left: str, right: str) -> dict[str, Any]:
    """{"common": share of words in common (float), "pieces": [[mark, words], ...]}; what both say is marked "=", what only
    ``left`` says "-", what only ``right`` says "+". Case is ignored. Pieces begin shortly before the first difference.
    """
    sides = left[:CHARS].split(), right[:CHARS].split()
    old, new = ([word.casefold() for word in words] for words in sides)
    shared, total = (Counter(old) & Counter(new)).total(), len(old) + len(new)
    differs = next((at for at, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    begin = max(0, differs - BEFORE) if old != new else 0
    shown = slice(begin, begin + WORDS)
    pieces: list[list[str]] = [["=", "..."]] if begin else []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old[shown], new[shown], autojunk=False).get_opcodes():
        before, after = " ".join(sides[0][shown][a:b]), " ".join(sides[1][shown][c:d])
        found = [["=", before]] if kind == "equal" else [["-", before], ["+", after]]
        pieces += [piece for piece in found if piece[1]]
    return {"common": 2 * shared / total if total else 1.0, "pieces": pieces}
