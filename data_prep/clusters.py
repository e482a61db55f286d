"""From equal keys to clusters of documents: sorting in bounded memory, and union-find with arrays.

Documents are numbered in reading order. Those with equal keys are found by sorting; where the keys of all documents
would not fit, the range of the keys is cut and the column read once for every piece: equal keys fall into one piece.
A cluster is named by its first document. The result depends neither on the pieces nor on the order of the links.
"""

from __future__ import annotations

from typing import Callable, Iterator, Optional

import numpy as np

MAX_BYTES = 1 << 28
PAIR_BYTES = 48                     # a key, its document, and what sorting them takes
CHUNK = 1 << 20

Column = Callable[[], Iterator[np.ndarray]]
Similar = Callable[[np.ndarray, np.ndarray], np.ndarray]


def exact_first(keys: Column, alive: np.ndarray, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """[N]: the first document with the same key; the document itself where it is the first, or not alive.

    keys(): yields uint64 [documents of a part, 2], part by part; called once or more. alive: bool [N].
    """
    first = _own_indices(len(alive))
    for documents, part in _pieces(keys, alive, max_bytes):
        order = np.lexsort((part[:, 1], part[:, 0]))             # stable: documents stay in reading order
        leaders = _leaders(documents[order], part[order])
        first[documents[order]] = leaders
    return first


def near_clusters(columns: Callable[[int], Iterator[np.ndarray]], alive: np.ndarray, bands: int, max_bytes: int = MAX_BYTES,
                  verify: Optional[Similar] = None) -> np.ndarray:
    """[N]: the first document of each document's cluster (itself where it is alone, or not alive).

    Documents whose keys agree in any band are linked, and links are followed: clusters are connected components.
    columns(band): yields uint64 [documents of a part], part by part; called once or more for each band. alive: bool [N].
    verify(left, right): bool [n], which pairs of documents (int64 [n] each) are truly alike. Asked of each document with
    the first and with the previous one of the same key, unless they are linked already; at most two pairs a document.
    """
    label = _own_indices(len(alive))
    for band in range(bands):
        for documents, part in _pieces(lambda: columns(band), alive, max_bytes):
            order = np.argsort(part, kind="stable")
            documents = documents[order]
            leaders = _leaders(documents, part[order])
            later = np.flatnonzero(leaders != documents)
            if verify is None:
                link(label, leaders[later], documents[later])
            else:
                _link_similar(label, leaders[later], documents[later], verify)
                _link_similar(label, documents[later - 1], documents[later], verify)
    _flatten(label)
    return label


def _own_indices(documents: int) -> np.ndarray:
    """0, 1, 2 ..., uint32 where that is enough: half the memory."""
    return np.arange(documents, dtype=np.uint32 if documents < 2**32 else np.int64)


def _link_similar(label: np.ndarray, left: np.ndarray, right: np.ndarray, verify: Similar) -> None:
    for begin in range(0, len(left), CHUNK):
        pair = left[begin:begin + CHUNK], right[begin:begin + CHUNK]
        roots = _roots(label, np.stack(pair))
        ask = roots[0] != roots[1]                         # what is linked already changes nothing
        if ask.any():
            alike = verify(pair[0][ask], pair[1][ask])
            link(label, pair[0][ask][alike], pair[1][ask][alike])


def _pieces(column: Column, alive: np.ndarray, max_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(documents int64 [n], their keys) of the documents alive, range after range of the keys' highest 32 bits."""
    count = max(1, -(-int(np.count_nonzero(alive)) * PAIR_BYTES // max_bytes))
    for piece in range(count):
        documents, found = [np.zeros(0, np.int64)], []
        first = 0
        for keys in column():
            leading = keys if keys.ndim == 1 else keys[:, 0]
            chosen = alive[first:first + len(keys)]
            if count > 1:
                chosen = chosen & ((leading >> np.uint64(32)) * np.uint64(count) >> np.uint64(32) == piece)
            documents.append(first + np.flatnonzero(chosen))
            found.append(keys[chosen])
            first += len(keys)
        if first != len(alive):
            raise ValueError(f"the columns hold {first:,} documents, alive {len(alive):,}")
        if found:
            yield np.concatenate(documents), np.concatenate(found)


def _leaders(documents: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """The first document of each run of equal keys, for every document; both are sorted by key, then document."""
    differs = keys[1:] != keys[:-1]
    starts = np.append(True, differs if keys.ndim == 1 else differs.any(axis=1))[:len(keys)]
    return documents[np.flatnonzero(starts)][np.cumsum(starts) - 1]


def link(label: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Join the clusters of left[i] and right[i] (int64 [n]), in place.

    ``label`` is a forest: each document points to an earlier one of its cluster, its first one to itself. All links are
    made at once: of two roots the later one points to the earlier (the earliest, where several ask); then again for the
    links that this left open. Paths are halved on the way (Shiloach & Vishkin 1982; Tarjan & van Leeuwen 1984).
    """
    ends = np.stack([left, right]).astype(label.dtype)
    while ends.size:
        ends = _roots(label, ends)
        ends = ends[:, ends[0] != ends[1]]
        np.minimum.at(label, ends.max(axis=0), ends.min(axis=0))


def _roots(label: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The roots of documents, any shape; on the way they come to point there directly."""
    while True:
        parents = label[documents]
        grandparents = label[parents]
        if np.array_equal(parents, grandparents):
            return parents
        label[documents] = grandparents


def _flatten(label: np.ndarray) -> None:
    """Point every document to its root. Parents come earlier, so those of earlier chunks are roots already."""
    for begin in range(0, len(label), CHUNK):
        _roots(label, np.arange(begin, min(begin + CHUNK, len(label))))
