"""Statistics of n-grams, runs of n words: Gopher's repetition rules (Rae et al. 2021, table A1), as datatrove counts them.

An n-gram can occur twice only where its first n - 1 words do. So each n looks only where n - 1 found
repetition: on Wikipedia at a fifth of the words after 2-grams, at 1.2% after 5-grams. Nothing is estimated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from data_prep.blocks import MULTIPLIER, Block
from data_prep.spans import chars_in, documents_of, salts, share

TOP, DUPLICATE = range(2, 5), range(5, 11)


class Grams(NamedTuple):
    """n-grams that occur more than once in their document.

    at: int64 [k], the first word of each, ascending; hashes: uint64 [k]; group: int64 [k], the same for equal n-grams.
    """

    at: np.ndarray
    hashes: np.ndarray
    group: np.ndarray


def measure_ngrams(block: Block) -> dict[str, np.ndarray]:
    """top_{2,3,4}gram_chars: characters of the most frequent n-gram, spaces between words included, times its count, over
    those of the document; of equally frequent ones the first counts.
    duplicate_{5..10}gram_chars: characters of n-grams equal to an earlier one, without spaces; reading from the left,
    whatever a counted n-gram covers is skipped.
    """
    words = block.words
    hashes = block.exact(words.starts, words.ends)
    document = documents_of(words)
    chars_before = np.append(0, np.cumsum(chars_in(block, words)))
    grams = Grams(np.arange(len(hashes)), hashes + salts(words), document)
    statistics = {}
    for n in (*TOP, *DUPLICATE):
        grams = _extend(grams, hashes, words.first[1:][document[grams.at]], n)
        if n in TOP:
            at, count = _most_frequent(grams, document, words.first, n)
            chars = np.where(count > 0, chars_before[np.minimum(at + n, len(hashes))] - chars_before[at] + n - 1, 0) * count
            statistics[f"top_{n}gram_chars"] = share(chars, block.chars)
        else:
            at = _skipping(grams, n)
            chars = np.bincount(document[at], chars_before[at + n] - chars_before[at], len(block))
            statistics[f"duplicate_{n}gram_chars"] = share(chars, block.chars)
    return statistics


def _extend(grams: Grams, words: np.ndarray, limit: np.ndarray, n: int) -> Grams:
    """The repeated n-grams among the repeated (n-1)-grams; words: uint64 [words], hashes; limit: where their documents end."""
    fits = grams.at + n <= limit
    at = grams.at[fits]
    hashes = grams.hashes[fits] * MULTIPLIER + words[at + n - 1]
    order = np.argsort(hashes)
    differs = hashes[order[1:]] != hashes[order[:-1]]
    alone = np.append(True, differs) & np.append(differs, True) if len(at) else np.zeros(0, bool)
    group = np.zeros(len(at), np.int64)
    group[order] = np.append(0, np.cumsum(differs))[:len(at)]
    kept = np.ones(len(at), bool)
    kept[order[alone]] = False
    return Grams(at[kept], hashes[kept], group[kept])


def _most_frequent(grams: Grams, document: np.ndarray, first: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(first word, count) int64 [documents] of each document's most frequent n-gram; count 0 where there is none."""
    count = (np.diff(first) >= n).astype(np.int64)                  # when nothing occurs twice, the first n-gram
    at = np.where(count, first[:-1], 0)
    if len(grams.at):
        sizes = np.bincount(grams.group)[grams.group]
        order = np.lexsort((grams.at, -sizes, document[grams.at]))
        which, place = np.unique(document[grams.at[order]], return_index=True)
        at[which], count[which] = grams.at[order[place]], sizes[order[place]]
    return at, count


def _skipping(grams: Grams, n: int) -> np.ndarray:
    """int64: first words of the n-grams equal to an earlier one, from the left, without overlap (few: a plain loop)."""
    seen: set[int] = set()
    taken = []
    free = 0
    for at, group in zip(grams.at.tolist(), grams.group.tolist()):
        if at >= free and group in seen:
            taken.append(at)
            free = at + n
        elif at >= free:
            seen.add(group)
    return np.array(taken, np.int64)
