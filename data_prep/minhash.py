"""MinHash signatures of documents, whose bands of equal values point to near-duplicates.

Jaccard similarity: shingles that two documents share, over all that either has (Broder 1997). One-permutation hashing
(Li, Owen & Zhang 2012) estimates it from one hash a shingle: the range of the hash is cut into bins, and the smallest
hash of each bin is kept. Two documents agree in a bin with probability J. A bin that no shingle fell into borrows
from another, the first non-empty one in a random order that belongs to the bin (Shrivastava 2017, "optimal
densification", here drawn without replacement): other empty bins borrow elsewhere, which keeps the variance low.

The signature is cut into bands of rows (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4):
documents are candidates when all rows of one band agree, with probability 1 - (1 - J^rows)^bands.
"""

from __future__ import annotations

import functools
from typing import Any, Sequence

import numpy as np

from data_prep.blocks import BLOCK_BYTES, Block, mix
from data_prep.errors import DataError
from data_prep.shingles import BASE, shingles

EMPTY = np.uint64(2**64 - 1)
DOCUMENTS_AT_ONCE = 1024


def signatures(block: Block, near_dedup: Any) -> np.ndarray:
    """uint64 [documents, bands * rows]; the share of equal values in two rows estimates their Jaccard similarity."""
    _check(near_dedup)
    return _signatures(*shingles(block, near_dedup.shingle_words), near_dedup.bands * near_dedup.rows)


def bands(block: Block, near_dedup: Any) -> np.ndarray:
    """uint64 [documents, bands]: a hash of each band's rows. DataError when a setting is below 1."""
    _check(near_dedup)
    hashes, first = shingles(block, near_dedup.shingle_words)
    keys, bins = np.zeros((len(block), near_dedup.bands), np.uint64), near_dedup.bands * near_dedup.rows
    for begin in range(0, len(block), DOCUMENTS_AT_ONCE):             # bounds memory when there are many tiny documents
        end = min(begin + DOCUMENTS_AT_ONCE, len(block))
        found = _signatures(hashes[first[begin]:first[end]], first[begin:end + 1] - first[begin], bins)
        for row in range(near_dedup.rows):
            keys[begin:end] = keys[begin:end] * np.uint64(BASE) + found[:, row::near_dedup.rows]
    return mix(keys)


def candidate_probability(similarity: np.ndarray, near_dedup: Any) -> np.ndarray:
    """Probability that documents of this Jaccard similarity share a band."""
    return 1 - (1 - np.asarray(similarity, np.float64) ** near_dedup.rows) ** near_dedup.bands


def _signatures(hashes: np.ndarray, first: np.ndarray, bins: int) -> np.ndarray:
    """uint64 [documents, bins] of the shingle hashes uint64 [n]; first: int64 [documents + 1]."""
    documents = len(first) - 1
    slots = (hashes >> np.uint64(32)) * np.uint64(bins) >> np.uint64(32)
    slots = slots.astype(np.int64) + np.repeat(np.arange(documents) * bins, np.diff(first))
    smallest = np.full(documents * bins, EMPTY)
    np.minimum.at(smallest, slots, hashes)
    return _densify(smallest.reshape(documents, bins))


def _densify(smallest: np.ndarray) -> np.ndarray:
    """Every empty bin gets the value of a non-empty one. No document is without any. uint64 [documents, bins]."""
    sparse = 4 * np.count_nonzero(smallest != EMPTY, axis=1) < smallest.shape[1]
    filled = np.empty_like(smallest)
    for rows, borrow in ((sparse, _compare_all), (~sparse, _try_in_order)):
        if rows.any():
            filled[rows] = borrow(smallest[rows])
    return filled


def _try_in_order(smallest: np.ndarray) -> np.ndarray:
    """Fast where few bins are empty."""
    filled = smallest.copy()
    document, empty = np.nonzero(smallest == EMPTY)
    for source in _orders(smallest.shape[1]):
        borrowed = smallest[document, source[empty]]
        filled[document, empty] = borrowed
        missing = borrowed == EMPTY
        document, empty = document[missing], empty[missing]
        if not len(document):
            break
    return filled


def _compare_all(smallest: np.ndarray) -> np.ndarray:
    """The same, fast where most bins are empty: of the non-empty bins the one that comes first in each bin's order."""
    bins = smallest.shape[1]
    document, source = np.nonzero(smallest != EMPTY)
    rank = np.argsort(_orders(bins), axis=0)[source] * bins + source[:, None]
    best = np.minimum.reduceat(rank, np.searchsorted(document, np.arange(len(smallest))), axis=0)
    return np.take_along_axis(smallest, best % bins, axis=1)


@functools.lru_cache(maxsize=4)
def _orders(bins: int) -> np.ndarray:
    """int64 [bins, bins]: column b is the order in which bin b looks for a non-empty bin; it begins with itself."""
    random = mix(np.arange(1, bins * bins + 1, dtype=np.uint64)).reshape(bins, bins)
    np.fill_diagonal(random, 0)
    return np.argsort(random, axis=0)


def jaccard(left: Sequence[str], right: Sequence[str], near_dedup: Any) -> np.ndarray:
    """float64 [n]: true Jaccard similarity of the sets of shingles of left[i] and right[i]."""
    result = np.empty(len(left))
    begin = size = 0
    for index, pair in enumerate(zip(left, right)):
        size += len(pair[0]) + len(pair[1])
        if size > BLOCK_BYTES or index == len(left) - 1:
            result[begin:index + 1] = _jaccard(left[begin:index + 1], right[begin:index + 1], near_dedup.shingle_words)
            begin, size = index + 1, 0
    return result


def _jaccard(left: Sequence[str], right: Sequence[str], size: int) -> np.ndarray:
    pairs = len(left)
    hashes, first = shingles(Block([*left, *right]), size)
    document = np.repeat(np.arange(2 * pairs), np.diff(first))
    order = np.lexsort((document, hashes, document % pairs))          # pair by pair, equal hashes side by side
    hashes, document = hashes[order], document[order]
    same = np.append(False, (hashes[1:] == hashes[:-1]) & (document[1:] % pairs == document[:-1] % pairs))
    both = same & np.append(False, document[1:] != document[:-1])     # left comes first: one such step a shared shingle
    union = np.bincount(document[~same] % pairs, minlength=pairs)
    return np.bincount(document[both] % pairs, minlength=pairs) / union


def _check(near_dedup: Any) -> None:
    for name in ("shingle_words", "bands", "rows"):
        if getattr(near_dedup, name) < 1:
            raise DataError(f"data.near_dedup.{name} is {getattr(near_dedup, name)}; it must be at least 1")
