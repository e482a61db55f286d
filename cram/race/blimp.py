"""Whole BLiMP (Warstadt et al. 2020) for any competitor: the sentences as a request to its scoring program.

Causal: log p of each sentence after [CLS]. Masked: pseudo-log-likelihood between [CLS] and [SEP], the rest of a word hidden
with each of its pieces (Kauf & Ivanova 2023), as in ``cram.evaluate``. Ties count as wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, Optional, Sequence

import numpy as np

from cram.evaluate.minimal_pairs import read_pairs
from cram.evaluate.scoring import word_ends
from cram.race.scoring import Request, of_rows


def pairs(mirror: Optional[str]) -> list[dict]:
    """All pairs of the mirror's BLiMP; [] where it has none."""
    return read_pairs(Path(mirror), None) if mirror else []


def request(found: Sequence[dict], tokenizer, kind: str, special: dict[str, int]) -> tuple[Request, np.ndarray]:
    """The request, and which sentence (good and bad in turn) each prediction belongs to, int64 [K]."""
    encodings = [(text, tokenizer.encode(text, add_special_tokens=False))
                 for text in (pair[side] for pair in found for side in ("good", "bad"))]

    def rows() -> Iterator[tuple[Sequence[int], Sequence[int], Sequence[int]]]:
        for text, encoding in encodings:
            ids = list(encoding.ids)
            if kind == "causal":
                yield [special["cls"], *ids[:-1]], range(len(ids)), ids
                continue
            for place, end in enumerate(word_ends(text, encoding)):
                hidden = [*ids[:place], *[special["mask"]] * (end - place), *ids[end:]]
                yield [special["cls"], *hidden, special["sep"]], (place + 1,), (ids[place],)

    return of_rows(rows()), np.repeat(np.arange(len(encodings)), [len(encoding.ids) for _, encoding in encodings])


def accuracy(found: Sequence[dict], nats_K: np.ndarray, sentence_K: np.ndarray) -> float:
    """Mean over paradigms of the share of pairs whose good sentence is likelier."""
    cost = np.bincount(sentence_K, weights=nats_K, minlength=2 * len(found)).reshape(-1, 2)
    right: dict[str, list[bool]] = {}
    for pair, (good, bad) in zip(found, cost, strict=True):
        right.setdefault(pair["paradigm"], []).append(bool(good < bad))
    return float(np.mean([np.mean(each) for each in right.values()]))
