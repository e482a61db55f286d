"""Hashes of n consecutive terms (n-grams, or shingles), many documents at a time.

A term is a run of letters, marks and digits (blocks.py), and A-Z count as a-z: punctuation, layout and capitals make
no difference. Near-duplicates, decontamination and repeated passages all compare these hashes.
"""

from __future__ import annotations

import numpy as np
import xxhash

from data_prep.blocks import Block, SpanHash, Spans, mix

PIECE_BYTES = 1 << 20
BASE = 0xD6E8FEB86659FD93                                    # odd: multiplying by it loses nothing


def term_hashes(block: Block) -> np.ndarray:
    """uint64 [terms]. A long block is hashed in pieces of about 1 MB, so that no table is as long as the text."""
    terms = block.terms
    if len(block.text) <= PIECE_BYTES:
        return block.folded(terms.starts, terms.ends)
    cuts = np.unique(np.searchsorted(terms.starts, np.arange(0, len(block.text) + PIECE_BYTES, PIECE_BYTES)))
    pieces = [np.zeros(0, np.uint64)]
    for first, last in zip(cuts[:-1], cuts[1:]):
        begin, end = terms.starts[first], terms.ends[last - 1]
        pieces.append(SpanHash(block.lower[begin:end])(terms.starts[first:last] - begin, terms.ends[first:last] - begin))
    return np.concatenate(pieces)


def ngrams(values: np.ndarray, size: int) -> np.ndarray:
    """uint64 [n - size + 1]: a hash of every ``size`` consecutive values (uint64 [n]); [0] when there are fewer.

    The polynomial v0 B^(size-1) + ... + v(size-1) modulo 2^64, by doubling: 2m values from m and m, or m + 1 from m and 1.
    """
    if len(values) < size:
        return np.zeros(0, np.uint64)
    hashes, length = values, 1
    for bit in format(size, "b")[1:]:
        hashes = hashes[:-length] * np.uint64(pow(BASE, length, 2**64)) + hashes[length:]
        length *= 2
        if bit == "1":
            hashes = hashes[:-1] * np.uint64(BASE) + values[length:]
            length += 1
    return mix(hashes)


def inside(spans: Spans, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where n-grams lie within one document.

    Returns (int64 [m] index of the first span of each n-gram, int64 [documents + 1] first n-gram of each document).
    """
    counts = np.maximum(spans.counts - size + 1, 0)
    first = np.concatenate([[0], np.cumsum(counts)])
    return np.arange(first[-1]) + np.repeat(spans.first[:-1] - first[:-1], counts), first


def document_ngrams(block: Block, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(uint64 [m] hashes of the n-grams of all documents, in order; int64 [documents + 1] the first of each document)."""
    positions, first = inside(block.terms, size)
    return ngrams(term_hashes(block), size)[positions], first


def shingles(block: Block, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Like ``document_ngrams``, but no document is without one.

    A document of fewer terms has one shingle of all its terms; one without terms a hash of its bytes.
    """
    counts = block.terms.counts
    short = counts < size
    if not short.any():
        return document_ngrams(block, size)
    first = np.concatenate([[0], np.cumsum(np.maximum(counts - size + 1, 1))])
    hashes = np.empty(first[-1], np.uint64)
    terms = term_hashes(block)
    hashes[np.repeat(~short, np.diff(first))] = ngrams(terms, size)[inside(block.terms, size)[0]]
    for count in np.unique(counts[short & (counts > 0)]):
        of_count = np.flatnonzero(counts == count)
        together = terms[block.terms.first[of_count][:, None] + np.arange(count)].ravel()
        hashes[first[of_count]] = ngrams(together, int(count))[::count]
    for index in np.flatnonzero(counts == 0):
        hashes[first[index]] = xxhash.xxh3_64_intdigest(block.text[block.starts[index]:block.ends[index]].tobytes())
    return hashes, first
