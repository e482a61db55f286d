"""A hash table in numpy, from chunks of text to their token ids: a block's chunks are looked up in a few array operations.

A chunk of at most 16 bytes is its own key: two 64-bit words, filled up with 0xFF, which no UTF-8 text contains. The table
compares these words, thus every byte, so chunks with equal hashes only cost a further probe. Longer chunks are
rare in most languages and live in a Python dict. Linear probing; the ids of all chunks lie end to end in one array.
"""

from __future__ import annotations

from typing import Callable, Optional, Sequence

import numpy as np

from data_prep.blocks import MULTIPLIER, mix

KEY_BYTES = 16
PADDING = np.full(KEY_BYTES, 0xFF, np.uint8)          # to stand after a text, so that the last keys can be read
FILL = np.array([2**64 - 2**(8 * used) for used in range(9)], np.uint64)      # 0xFF in the bytes beyond the first ``used``
EMPTY = -1
Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]


class Memo:
    """Entries 0, 1, ... of distinct chunks. encode: gives (ids of all the texts end to end, count of each text).

    max_chunks, max_ids: a memo that would exceed them is emptied first.
    """

    def __init__(self, encode: Encode, dtype: np.dtype, max_chunks: int, max_ids: int):
        self._encode = encode
        self._first, self._second = np.empty(max_chunks, np.uint64), np.empty(max_chunks, np.uint64)
        self._offsets, self._ids = np.zeros(max_chunks + 1, np.int64), np.empty(max_ids, dtype)
        self._slots = np.empty(1 << (2 * max_chunks - 1).bit_length(), np.int32)         # at most half full
        self._mask = np.uint64(len(self._slots) - 1)
        self._clear()

    def _clear(self) -> None:
        self._size, self._long = 0, {}
        self._slots[:] = EMPTY

    def find(self, text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> Optional[np.ndarray]:
        """int32 [chunks]: the entry of each chunk of the text (uint8, PADDING behind); new ones are encoded and added.

        None when they are too many for an empty memo.
        """
        entries = self._look_up(text, starts, ends)
        missing = np.flatnonzero(entries == EMPTY)
        if len(missing):
            if not self._add(text, starts[missing], ends[missing]):
                if not self._size:
                    return None
                self._clear()
                return self.find(text, starts, ends)
            entries[missing] = self._look_up(text, starts[missing], ends[missing])
        return entries

    def ids_of(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids of the entries end to end [tokens], how many each has int64 [entries])."""
        begins = self._offsets[entries]
        counts = self._offsets[entries + 1] - begins
        places = np.repeat(begins - (np.cumsum(counts) - counts), counts)
        places += np.arange(len(places))
        return self._ids[places], counts

    def _look_up(self, text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        entries = self._probe(*load_keys(text, starts, ends))
        for index in np.flatnonzero(ends - starts > KEY_BYTES).tolist():
            entries[index] = self._long.get(text[starts[index]:ends[index]].tobytes(), EMPTY)
        return entries

    def _probe(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """int32 [keys]: the entry with this key, or EMPTY."""
        place = slot_hash(first, second) & self._mask
        entries = self._slots[place]
        open_ = np.flatnonzero((self._first[entries] != first) | (self._second[entries] != second))
        while len(open_ := open_[entries[open_] != EMPTY]):
            place[open_] = place[open_] + np.uint64(1) & self._mask
            entries[open_] = found = self._slots[place[open_]]
            open_ = open_[(self._first[found] != first[open_]) | (self._second[found] != second[open_])]
        return entries

    def _add(self, text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> bool:
        """Encode the distinct chunks among these and enter them; False, and nothing done, when they do not fit."""
        raw = text.tobytes()
        chunks = list(dict.fromkeys(raw[start:end] for start, end in zip(starts.tolist(), ends.tolist())))
        size = self._size + len(chunks)
        if size > len(self._first):
            return False
        ids, counts = self._encode([chunk.decode("utf-8") for chunk in chunks])
        used = self._offsets[self._size]
        if used + len(ids) > len(self._ids):
            return False
        self._ids[used:used + len(ids)] = ids
        self._offsets[self._size + 1:size + 1] = used + np.cumsum(counts)
        sizes = np.fromiter(map(len, chunks), np.int64, len(chunks))
        behind = np.cumsum(sizes)
        first, second = load_keys(np.append(np.frombuffer(b"".join(chunks), np.uint8), PADDING), behind - sizes, behind)
        self._first[self._size:size], self._second[self._size:size] = first, second
        numbers = np.arange(self._size, size, dtype=np.int32)
        self._long.update((chunks[index], int(numbers[index])) for index in np.flatnonzero(sizes > KEY_BYTES).tolist())
        short = sizes <= KEY_BYTES
        self._enter(slot_hash(first[short], second[short]) & self._mask, numbers[short])
        self._size = size
        return True

    def _enter(self, place: np.ndarray, numbers: np.ndarray) -> None:
        """Linear probing for many at once: of those that want one free slot the last wins, the rest moves on."""
        while len(numbers):
            free = self._slots[place] == EMPTY
            self._slots[place[free]] = numbers[free]
            left = self._slots[place] != numbers
            place, numbers = place[left] + np.uint64(1) & self._mask, numbers[left]


def load_keys(text: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes 0 to 7 and 8 to 15 of each chunk as uint64 [chunks], 0xFF beyond its end. Longer chunks: their beginning."""
    words = np.ndarray(len(text) - 7, np.dtype("<u8"), text, strides=(1,))     # one word begins at every byte
    sizes = ends - starts
    first = words[starts] | FILL[np.minimum(sizes, 8)]
    second = np.full(len(starts), FILL[0])
    more = np.flatnonzero(sizes > 8)
    second[more] = words[starts[more] + 8] | FILL[np.minimum(sizes[more] - 8, 8)]
    return first, second


def slot_hash(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """uint64 [keys]."""
    return mix(first + second * MULTIPLIER)
