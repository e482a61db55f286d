"""Passages that a corpus repeats: what deduplication by document leaves, such as licences, menus and quotations.

A report, not a filter (Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better", cut such text out).
A window is ``min_terms`` consecutive terms. A passage is a longest sequence of windows that all stand at the same places
of the corpus: it cannot grow by a term on either side without losing an occurrence. Where the number of occurrences
changes, one passage ends and the next begins, so each stretch of text is reported once, with its exact count.

No window is left out by sampling. The corpus is read several times instead, in bounded memory:
1. a table of bytes, by hash of the window, notes which slots are hit twice; the other windows stand alone;
2. the windows in such slots are counted, together with the windows one term longer, which tell where two windows
   always follow each other. When too many are different, only the lower hashes are kept, and the rest counted in
   another reading;
3. the passages are put together and the texts of the first ``most`` kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, NamedTuple

import numpy as np
import pyarrow as pa

from data_prep.blocks import Block, cut
from data_prep.shingles import inside, ngrams, term_hashes

COUNT_BYTES = 64                   # a window, its two counts, and what merging takes

Batches = Callable[[], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class Passage:
    """text: as it first stands; terms: its length; occurrences: overlapping ones too; documents: that have it."""

    text: str
    terms: int
    occurrences: int
    documents: int


class Counts(NamedTuple):
    """hashes: uint64 [n], sorted, each once; occurrences, documents: int64 [n]."""

    hashes: np.ndarray
    occurrences: np.ndarray
    documents: np.ndarray


class Windows(NamedTuple):
    """Of one block. hashes, places (first term), documents: [n]; longer: uint64 [n], the window and one term more;
    followed: bool [n], the next window lies in the same document, so that there is a longer one."""

    hashes: np.ndarray
    places: np.ndarray
    documents: np.ndarray
    longer: np.ndarray
    followed: np.ndarray


def repeated_passages(batches: Batches, min_terms: int = 50, most: int = 50, min_documents: int = 2,
                      max_bytes: int = 1 << 28) -> list[Passage]:
    """The passages with most repeated terms, terms * (occurrences - 1); of equals the first in reading order.

    batches(): the documents as record batches with a column text; called three times or more. min_documents: passages in
    fewer documents are left out. max_bytes: bounds the table and the windows counted in one reading. What repeats is kept
    besides, 24 bytes a different window.
    """
    slots = _slots_hit_twice(batches, min_terms, max_bytes)
    counts = _count(batches, min_terms, slots, min_documents, max_bytes)
    return _longest(batches, min_terms, slots, counts, most) if len(counts.hashes) else []


def _windows(batches: Batches, size: int) -> Iterator[tuple[Block, Windows]]:
    for batch in batches():
        for block in cut(batch.column("text").to_pylist()):
            places, first = inside(block.terms, size)
            terms = term_hashes(block)
            documents = np.repeat(np.arange(len(block)), np.diff(first))
            followed = np.append(documents[1:] == documents[:-1], False)[:len(documents)]
            longer = np.zeros(len(places), np.uint64)
            longer[followed] = ngrams(terms, size + 1)[places[followed]]
            yield block, Windows(ngrams(terms, size)[places], places, documents, longer, followed)


def _slots_hit_twice(batches: Batches, size: int, max_bytes: int) -> np.ndarray:
    """uint8 [a power of 2 up to max_bytes]: 2 where two windows or more have the slot; equal windows always do."""
    slots = np.zeros(1 << (max_bytes.bit_length() - 1), np.uint8)
    for _, windows in _windows(batches, size):
        index = np.sort(_slot(slots, windows.hashes))
        again = index[slots[index] > 0]
        slots[index] = np.maximum(slots[index], 1)
        slots[again] = 2
        slots[index[1:][index[1:] == index[:-1]]] = 2
    return slots


def _slot(slots: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    return (hashes & np.uint64(len(slots) - 1)).astype(np.int64)


def _count(batches: Batches, size: int, slots: np.ndarray, min_documents: int, max_bytes: int) -> Counts:
    """Windows, and windows one longer, that stand at two places or more, in enough documents."""
    low, ready = 0, []
    while low < 2**64:
        found, high = _count_from(batches, size, slots, low, max(2, max_bytes // COUNT_BYTES))
        repeated = (found.occurrences > 1) & (found.documents >= min_documents)
        ready.append(Counts(*(values[repeated] for values in found)))
        low = high
    return Counts(*map(np.concatenate, zip(*ready)))


def _count_from(batches: Batches, size: int, slots: np.ndarray, low: int, most: int) -> tuple[Counts, int]:
    """(counts of the hashes from ``low`` to below some limit, that limit), about ``most`` different ones at a time."""
    merged, waiting, high = _merge([]), [], 2**64
    for _, windows in _windows(batches, size):
        likely = slots[_slot(slots, windows.hashes)] == 2
        both = likely & windows.followed & np.append(likely[1:], False)[:len(likely)]
        hashes = np.concatenate([windows.hashes[likely], windows.longer[both]])
        documents = np.concatenate([windows.documents[likely], windows.documents[both]])
        wanted = (hashes >= np.uint64(low)) & (hashes <= np.uint64(high - 1))
        waiting.append(_tally(hashes[wanted], documents[wanted]))
        if sum(len(part.hashes) for part in waiting) > most // 2:
            merged, waiting = _merge([merged, *waiting]), []
            while len(merged.hashes) > most:
                high = int(merged.hashes[len(merged.hashes) // 2])
                merged = Counts(*(values[:len(values) // 2] for values in merged))
    return _merge([merged, *waiting]), high


def _tally(hashes: np.ndarray, documents: np.ndarray) -> Counts:
    order = np.lexsort((documents, hashes))
    hashes, documents = hashes[order], documents[order]
    new = np.append(True, hashes[1:] != hashes[:-1])[:len(hashes)]
    other = new | np.append(True, documents[1:] != documents[:-1])[:len(hashes)]
    starts = np.flatnonzero(new)
    return Counts(hashes[starts], np.diff(np.append(starts, len(hashes))), _sums(other, starts))


def _merge(parts: list[Counts]) -> Counts:
    """One table of several; a document lies in one block, so documents add up."""
    none = Counts(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
    together = Counts(*map(np.concatenate, zip(none, *parts)))
    order = np.argsort(together.hashes, kind="stable")
    hashes = together.hashes[order]
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])[:len(hashes)])
    return Counts(hashes[starts], _sums(together.occurrences[order], starts), _sums(together.documents[order], starts))


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return np.add.reduceat(values, starts, dtype=np.int64) if len(starts) else np.zeros(0, np.int64)


def _look_up(counts: Counts, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(occurrences, documents) int64 [m] of hashes uint64 [m]; 0 where they are not repeated."""
    place = np.minimum(np.searchsorted(counts.hashes, hashes), len(counts.hashes) - 1)
    there = counts.hashes[place] == hashes
    return counts.occurrences[place] * there, counts.documents[place] * there


def _longest(batches: Batches, size: int, slots: np.ndarray, counts: Counts, most: int) -> list[Passage]:
    best: dict[int, tuple[int, Passage]] = {}                          # by hash of the first window, in reading order
    bound = 0
    for block, windows in _windows(batches, size):
        likely = np.flatnonzero(slots[_slot(slots, windows.hashes)] == 2)
        occurrences, documents, together = np.zeros((3, len(windows.hashes)), np.int64)
        occurrences[likely], documents[likely] = _look_up(counts, windows.hashes[likely])
        together[likely], _ = _look_up(counts, windows.longer[likely])
        after = np.append(occurrences[1:], 0)[:len(occurrences)]
        joined = windows.followed & (occurrences == after) & (occurrences == together)
        starts = np.flatnonzero((occurrences > 0) & ~np.append(False, joined[:-1])[:len(joined)])
        ends = np.flatnonzero((occurrences > 0) & ~joined)
        terms = ends - starts + size
        scores = terms * (occurrences[starts] - 1)
        for index in np.flatnonzero(scores > bound):
            start, name = starts[index], int(windows.hashes[starts[index]])
            if name not in best:
                term = windows.places[start]
                text = block.text[block.terms.starts[term]:block.terms.ends[term + terms[index] - 1]]
                best[name] = int(scores[index]), Passage(text.tobytes().decode("utf-8"), int(terms[index]),
                                                         int(occurrences[start]), int(documents[start]))
        if len(best) > 4 * most:
            kept = set(sorted(best, key=lambda name: -best[name][0])[:most])
            best = {name: found for name, found in best.items() if name in kept}
            bound = min(score for score, _ in best.values())
    return [passage for _, passage in sorted(best.values(), key=lambda found: -found[0])[:most]]
