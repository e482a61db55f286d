"""The validation split: chosen by document hash, so it never moves.

A document is held out when the key of its cluster, read as a number in [0, 1), is below the fraction. The key of a
cluster of duplicates is the smallest of its documents' keys (duplicates.py), so near-duplicates stay on one side. That
depends on the text alone: reordering, other filters or more sources move no document from one side to the other
(unless they bring it a duplicate with a smaller key), and a larger fraction contains the smaller one.
"""

from __future__ import annotations

import numpy as np


def held_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """bool [documents]: which of the uint64 [documents] keys belong to validation."""
    return keys < np.uint64(min(int(fraction * 2**64), 2**64 - 1))


def choose(keys: np.ndarray, sizes: np.ndarray, max_bytes: int) -> np.ndarray:
    """int64 [chosen]: indices of the documents of smallest key that fit in ``max_bytes`` together, in order of key.

    keys: uint64 [documents]; sizes: int64 [documents], bytes. A document larger than ``max_bytes`` is passed over. In order
    of key the documents are a random sample at every length, so scoring the first so many tokens is unbiased.
    """
    order = np.argsort(keys, kind="stable")
    order = order[sizes[order] <= max_bytes]
    return order[np.cumsum(sizes[order]) <= max_bytes]
