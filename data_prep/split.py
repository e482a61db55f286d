"""The validation split: chosen by document hash, so it never moves.

A document is held out when its key (dedup.py), read as a number in [0, 1), is below the fraction.
That depends on its text alone: reordering, other filters or more sources move no document from one
side to the other, copies land on the same side, and a larger fraction contains the smaller one.
"""

from __future__ import annotations

import heapq

import numpy as np

from data_prep.funnel import utf8_bytes


def held_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """bool [documents]: which of the uint64 [documents, 2] keys belong to validation."""
    return keys[:, 0] < np.uint64(min(int(fraction * 2**64), 2**64 - 1))


class HeldOut:
    """The held-out documents of smallest key that fit in ``max_bytes``, whatever order they come in.

    Memory is bounded by ``max_bytes`` and one document. In order of key the collection is a random sample
    at every length, so scoring the first so many tokens is unbiased.
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._heap: list[tuple[int, int, str, str]] = []     # (-key, -arrival, text, origin): largest key on top
        self._bound = 2**64                                  # smallest key that did not fit: none beyond it is taken
        self._bytes = 0
        self._arrivals = 0

    def add(self, key: int, text: str, origin: str) -> list[str]:
        """Take a document; return the texts that are now surplus (perhaps itself)."""
        self._arrivals += 1
        size = utf8_bytes(text)
        if key >= self._bound or size > self._max_bytes:
            return [text]
        heapq.heappush(self._heap, (-key, -self._arrivals, text, origin))
        self._bytes += size
        surplus = []
        while self._bytes > self._max_bytes:
            negative_key, _, text, _ = heapq.heappop(self._heap)
            self._bound = -negative_key
            self._bytes -= utf8_bytes(text)
            surplus.append(text)
        return surplus

    def documents(self) -> list[tuple[str, str]]:
        """(text, origin) in order of key."""
        return [(text, origin) for *_, text, origin in sorted(self._heap, reverse=True)]
