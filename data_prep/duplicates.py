"""Which documents are copies of earlier ones, exactly or nearly, and what decides the side of the split.

Keep-policy: the first document of a cluster in reading order stays, unaltered. Held-out files are read first, so what
resembles them is dropped from training whatever the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Iterator, Optional

import numpy as np

from data_prep.clusters import exact_first, near_clusters
from data_prep.measured import Measured
from data_prep.minhash import jaccard

PAIRS_BYTES = 16_000_000    # text of the pairs compared at a time
CHUNK = 1 << 20             # documents worked on at a time where that spares memory


@dataclass(frozen=True)
class Duplicates:
    """Arrays [documents]. exact, near: bool, dropped as such. cluster: whole numbers, first document of the cluster in reading
    order (its own index where it is alone). keys: uint64, smallest document key of the cluster; it decides the split.
    """

    exact: np.ndarray
    near: np.ndarray
    cluster: np.ndarray
    keys: np.ndarray


def find_duplicates(measured: Measured, data: Any, alive: np.ndarray) -> Duplicates:
    """Duplicates among the documents that are ``alive`` (bool [documents])."""
    first = exact_first(lambda: _pairs(measured), alive)
    index = np.arange(len(first), dtype=first.dtype)
    exact = alive & (first != index) & (data.exact_dedup | measured.held[first])
    cluster, near = first, np.zeros(len(measured), bool)
    if data.near_dedup.mode != "off":
        label = near_clusters(lambda band: _band(measured, band), alive & (first == index), data.near_dedup.bands,
                              verify=_verifier(measured, data))
        cluster = label[first]
        near = alive & ~exact & (cluster != first) & ((data.near_dedup.mode == "drop") | measured.held[cluster])
    keys = measured.column("key_high")
    _share_smallest(keys, cluster, alive)
    return Duplicates(exact, near, cluster, keys)


def _share_smallest(keys: np.ndarray, cluster: np.ndarray, alive: np.ndarray) -> None:
    """Give every document the smallest key of the living documents of its cluster, in place."""
    chunks = [slice(low, low + CHUNK) for low in range(0, len(keys), CHUNK)]
    for chunk in chunks:
        np.minimum.at(keys, cluster[chunk][alive[chunk]], keys[chunk][alive[chunk]])
    for chunk in chunks:
        keys[chunk] = keys[cluster[chunk]]


def _pairs(measured: Measured) -> Iterator[np.ndarray]:
    for columns in measured.columns("key_high", "key_low"):
        yield np.stack([columns["key_high"], columns["key_low"]], axis=1)


def _band(measured: Measured, band: int) -> Iterator[np.ndarray]:
    name = f"band_{band:02d}"
    for columns in measured.columns(name):
        yield columns[name]


def _verifier(measured: Measured, data: Any) -> Optional[Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """similar(left, right) -> bool [pairs]: whether the shingles of the documents are as alike as asked; None: not asked."""
    least = data.near_dedup.verify
    if least is None:
        return None

    sizes = measured.column("bytes")

    def similar(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        ends = np.cumsum(sizes[left].astype(np.int64) + sizes[right])
        answers, low = [np.zeros(0, bool)], 0
        while low < len(left):
            high = max(low + 1, int(np.searchsorted(ends, (ends[low - 1] if low else 0) + PAIRS_BYTES, side="right")))
            texts = [[row["text"] for row in measured.rows(side[low:high], "text")] for side in (left, right)]
            answers.append(jaccard(*texts, data.near_dedup) >= least)
            low = high
        return np.concatenate(answers)

    return similar
