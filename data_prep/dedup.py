"""Exact deduplication: a 128-bit key a document, and a compact set of keys seen.

The key ignores case and how white space is laid out, so copies that differ in indentation are found.
Two different documents share a key with probability n^2 / 2^129: 1e-21 for a billion documents.
"""

from __future__ import annotations

import numpy as np
import xxhash


def document_keys(texts: list[str]) -> np.ndarray:
    """uint64 [documents, 2]: xxh3-128 of each text, case-folded and with white space collapsed."""
    digests = [xxhash.xxh3_128_digest(" ".join(text.casefold().split()).encode("utf-8")) for text in texts]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(len(texts), 2)


class KeySet:
    """A growing set of 128-bit keys: open addressing in one numpy array, 24 to 48 bytes a key.

    (A Python set of 16-byte strings takes about 110.) Whole batches are looked up at once.
    """

    def __init__(self) -> None:
        self._table = np.zeros((1 << 12, 2), np.uint64)
        self._used = np.zeros(1 << 12, bool)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, keys: np.ndarray) -> np.ndarray:
        """Add uint64 [n, 2] keys; return bool [n], true where the key was not there before (nor earlier in ``keys``)."""
        while 3 * (self._count + len(keys)) > 2 * len(self._used):
            self._grow()
        new = np.zeros(len(keys), bool)
        _, first = np.unique(keys, axis=0, return_index=True)
        new[first] = self._insert(keys[first])
        return new

    def _grow(self) -> None:
        keys = self._table[self._used]
        size = 2 * len(self._used)
        self._table, self._used, self._count = np.zeros((size, 2), np.uint64), np.zeros(size, bool), 0
        self._insert(keys)

    def _insert(self, keys: np.ndarray) -> np.ndarray:
        """Insert keys that differ from each other; linear probing, all pending keys one slot further a round."""
        mask = np.uint64(len(self._used) - 1)
        new = np.zeros(len(keys), bool)
        slots = (keys[:, 1] & mask).astype(np.int64)
        pending = np.arange(len(keys))
        while len(pending):
            at = slots[pending]
            free = ~self._used[at]
            self._table[at[free]] = keys[pending[free]]               # where several want one slot the last stays
            self._used[at[free]] = True
            new[pending[free]] = True                                 # a free slot before the key: it was not there
            done = (self._table[at] == keys[pending]).all(axis=1)     # stays here, or met again; the others go on
            pending = pending[~done]
            slots[pending] = (slots[pending] + 1) & int(mask)
        self._count += int(new.sum())
        return new
