"""How much of an evaluation set stands in the training text: shared 13-grams, as in decontaminate.py, counted by example.

Decontamination drops documents before training; this looks afterwards, so that a score can be read beside what the model
may have seen. An example is one row of a set with all its strings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, NamedTuple, Sequence

import numpy as np

from data_prep.blocks import cut
from data_prep.decontaminate import NGRAM, EvaluationSets, strings
from data_prep.shingles import document_ngrams
from data_prep.text import read_split


class Overlap(NamedTuple):
    """examples: rows of the set. comparable: those with a string of 13 terms or more. found: of these, those that share 13
    consecutive terms with the training text."""

    examples: int
    comparable: int
    found: int


def overlap(text_dir: Path, sets: Mapping[str, Sequence[dict]]) -> dict[str, Overlap]:
    """Compare the rows of each set with the training split that ``prepare_text`` wrote. DataError when that is not all there.

    Memory: 8 bytes for each n-gram of the sets and again as much; time: one pass over the text.
    """
    hashes = {name: _ngrams(rows) for name, rows in sets.items()}
    every = np.unique(np.concatenate([np.zeros(0, np.uint64), *(found for found, _ in hashes.values())]))
    seen = np.zeros(len(every), bool)
    look = EvaluationSets(every, np.zeros(len(every), np.int16), [])
    for batch in read_split(text_dir, "train") if len(every) else ():
        for block in cut(batch.column("text").to_pylist()):
            text = document_ngrams(block, NGRAM)[0]
            seen[np.searchsorted(every, text[look.find(text)[0]])] = True
    result = {}
    for name, (found, row) in hashes.items():
        hit = seen[np.searchsorted(every, found)]
        result[name] = Overlap(len(sets[name]), len(np.unique(row)), len(np.unique(row[hit])))
    return result


def _ngrams(rows: Sequence[dict]) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [m] hashes, int64 [m] the row of each) of all strings in the rows."""
    texts, owners = [], []
    for number, row in enumerate(rows):
        for text in strings(row):
            texts.append(text)
            owners.append(number)
    found, row_of, done = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
    for block in cut(texts):
        hashes, first = document_ngrams(block, NGRAM)
        found.append(hashes)
        row_of.append(np.repeat(np.array(owners[done:done + len(block)], np.int64), np.diff(first)))
        done += len(block)
    return np.concatenate(found), np.concatenate(row_of)
