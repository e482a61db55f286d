"""A block: some documents end to end as UTF-8 bytes, with the offsets of documents, lines and words found once.

Filters, shingles and the encoder all read this one structure with numpy, many documents at a time. About 256 kB of
text a block keeps the arrays in the processor's cache: smaller blocks pay for calls, larger ones for memory.

Spans are two int64 arrays, starts and ends, in bytes from the beginning of the block. A newline stands after every
document, so that nothing runs from one document into the next.
"""

from __future__ import annotations

import functools
from typing import Callable, Iterator, NamedTuple, Optional, Sequence

import numpy as np

from data_prep.characters import ALPHA, DIGIT, MARK, SPACE, START, classify

BLOCK_BYTES = 256_000
USUAL_BYTES = 1 << 20
NEWLINE = 10
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15 | 1)       # odd, so it has an inverse modulo 2^64
INVERSE = np.uint64(pow(int(MULTIPLIER), -1, 2**64))


class Spans(NamedTuple):
    """starts, ends: int64 [n] bytes in the block; first: int64 [documents + 1], the first span of each document."""

    starts: np.ndarray
    ends: np.ndarray
    first: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """int64 [documents]: spans in each document."""
        return np.diff(self.first)

    def per_document(self, values: np.ndarray) -> np.ndarray:
        """Sum of ``values`` [n] over the spans of each document, int64 or float64 [documents]."""
        total = np.zeros(len(values) + 1, np.float64 if values.dtype.kind == "f" else np.int64)
        np.cumsum(values, out=total[1:])
        return total[self.first[1:]] - total[self.first[:-1]]


# Finds the words of one document: [(start, end)] in characters.
Splitter = Callable[[str], Sequence[tuple[int, int]]]


class Block:
    """Documents end to end. Everything below is computed when first asked for, once.

    text: uint8 [bytes]; starts, ends: int64 [documents], the bytes of each document without the newline after it.
    splitter: another notion of words than runs of non-space characters (used to compare with other tools).
    """

    def __init__(self, texts: Sequence[str], splitter: Optional[Splitter] = None):
        encoded = [text.encode("utf-8") for text in texts]
        self.texts, self._splitter = texts, splitter
        self.text = np.frombuffer(b"".join(part for document in encoded for part in (document, b"\n")), np.uint8)
        sizes = np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1
        self.ends = np.cumsum(sizes) - 1
        self.starts = self.ends - sizes + 1

    def __len__(self) -> int:
        return len(self.starts)

    @functools.cached_property
    def classes(self) -> np.ndarray:
        """uint8 [bytes]: bits of characters.py."""
        return classify(self.text)

    @functools.cached_property
    def chars(self) -> np.ndarray:
        """int64 [documents]: characters."""
        return self.count(self.classes & START > 0)

    def count(self, flags: np.ndarray) -> np.ndarray:
        """int64 [documents]: bytes of each document where ``flags`` (bool [bytes]) is true."""
        if not len(self):
            return np.zeros(0, np.int64)
        total = np.add.reduceat(flags, self.starts, dtype=np.int64)       # to the next start: with the newline between
        return total - flags[self.ends]

    @functools.cached_property
    def char_offsets(self) -> np.ndarray:
        """int64 [bytes + 1]: characters before each byte, so a span has offsets[end] - offsets[start] of them."""
        offsets = np.zeros(len(self.text) + 1, np.int64)
        np.cumsum(self.classes & START, out=offsets[1:])
        return offsets

    @functools.cached_property
    def lines(self) -> Spans:
        """Lines between newlines, blank ones included; an empty document has one empty line."""
        ends = np.flatnonzero(self.text == NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        return self._spans(starts, ends)

    @functools.cached_property
    def words(self) -> Spans:
        """Runs of non-space characters; or what the splitter finds."""
        if self._splitter is None:
            return self._runs(self.classes & SPACE == 0)
        spans = [(start, end) for text, offset in zip(self.texts, self._char_starts) for start, end in
                 np.asarray(self._splitter(text), np.int64).reshape(-1, 2) + offset]
        bounds = np.array(spans, np.int64).reshape(-1, 2)
        first_byte = np.append(np.flatnonzero(self.classes & START), len(self.text))
        return self._spans(first_byte[bounds[:, 0]], first_byte[bounds[:, 1]])

    @functools.cached_property
    def terms(self) -> Spans:
        """Runs of letters, marks and digits: words without their punctuation, for shingles and n-grams."""
        return self._runs(self.classes & (ALPHA | MARK | DIGIT) > 0)

    @property
    def _char_starts(self) -> np.ndarray:
        return self.char_offsets[self.starts]

    def _runs(self, inside: np.ndarray) -> Spans:
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        if len(inside) and inside[0]:
            edges = np.concatenate([[0], edges])
        return self._spans(edges[0::2], edges[1::2])         # a block ends with a newline: every run has its end

    def _spans(self, starts: np.ndarray, ends: np.ndarray) -> Spans:
        first = np.searchsorted(starts, np.append(self.starts, len(self.text)))
        return Spans(starts.astype(np.int64, copy=False), ends.astype(np.int64, copy=False), first)

    @functools.cached_property
    def lower(self) -> np.ndarray:
        """uint8 [bytes]: the text with A-Z in lower case; other letters as they are."""
        upper = (self.text >= 65) & (self.text <= 90)
        return self.text + upper.view(np.uint8) * np.uint8(32)

    @functools.cached_property
    def exact(self) -> "SpanHash":
        """Hashes of spans, byte for byte."""
        return SpanHash(self.text)

    @functools.cached_property
    def folded(self) -> "SpanHash":
        """Hashes of spans without regard to the case of A-Z."""
        return SpanHash(self.lower)


class SpanHash:
    """64-bit hashes of any spans of a text from one prefix sum: sum of (byte + 1) m^i modulo 2^64, then mixed.

    Equal spans have equal hashes wherever they lie. Two different ones collide about as random 64-bit numbers do
    on natural text; who cannot bear that compares the bytes.
    """

    def __init__(self, text: np.ndarray):
        powers, self._inverses = _powers(len(text) + 1)
        self._prefix = np.zeros(len(text) + 1, np.uint64)
        np.cumsum((text + np.uint64(1)) * powers[:len(text)], out=self._prefix[1:])

    def __call__(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """uint64 [n] of the spans starts[i] to ends[i]."""
        return mix((self._prefix[ends] - self._prefix[starts]) * self._inverses[starts])


def mix(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit (the finaliser of splitmix64, Steele et al. 2014)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def _tables(size: int) -> tuple[np.ndarray, np.ndarray]:
    tables = []
    for base in (MULTIPLIER, INVERSE):
        table = np.full(size, base, np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table))
    return tables[0], tables[1]


_usual_tables = functools.lru_cache(maxsize=1)(_tables)


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the multiplier and of its inverse, uint64 [size] at least; kept for blocks of the usual size."""
    return _usual_tables(USUAL_BYTES) if size <= USUAL_BYTES else _tables(size)


def cut(texts: Sequence[str], splitter: Optional[Splitter] = None) -> Iterator[Block]:
    """Blocks of consecutive documents of about 256 kB; a longer document is a block of its own."""
    begin = size = 0
    for index, text in enumerate(texts):
        if size and size + len(text) > BLOCK_BYTES:
            yield Block(texts[begin:index], splitter)
            begin, size = index, 0
        size += len(text)
    if begin < len(texts):
        yield Block(texts[begin:], splitter)
