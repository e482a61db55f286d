"""Statistics of words and sentences: Gopher's quality rules (Rae et al. 2021, section A1.1) and C4's (Raffel et al. 2020)."""

from __future__ import annotations

import functools

import numpy as np

from data_prep.blocks import Block
from data_prep.characters import ALPHA, DIGIT, PUNCTUATION, TERMINAL
from data_prep.spans import begins, chars_in, count_in, documents_of, occurrences, share

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
ADDRESSES = (b"http://", b"https://", b"www.")
# A full stop after these ends no sentence, nor after a single letter as in "e.g." or "J. S. Bach".
ABBREVIATIONS = tuple("""Mr. Mrs. Ms. Dr. Prof. St. Gen. Gov. Rep. Rev. Sen. Jr. Co. Corp. Inc. Ltd. Bros. Mt. vs.
                         Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec.""".split())
CLOSING_BYTES = 6           # bytes of quotation marks and brackets that may follow a full stop


def measure_words(block: Block) -> dict[str, np.ndarray]:
    """longest_word: characters; url_words: share of words that begin as a web address, in any case."""
    words = block.words
    longest = np.zeros(len(block), np.int64)
    np.maximum.at(longest, documents_of(words), chars_in(block, words))
    addresses = np.zeros(len(words.starts), bool)
    for sign in ADDRESSES:
        addresses |= begins(block.lower, words.starts, sign)
    return {"longest_word": longest.astype(np.int32), "url_words": share(words.per_document(addresses), words.counts)}


def measure_word_quality(block: Block) -> dict[str, np.ndarray]:
    """Gopher's: words and mean_word_length (of words that are not punctuation alone), alpha_words (share with a letter),
    stop_words (how many different ones), hash_ratio ("#" a word), ellipsis_ratio ("..." and "…" a word).
    """
    words = block.words
    proper = ~punctuation_alone(block)
    count = words.per_document(proper)
    letters = words.per_document(count_in(block.classes & ALPHA > 0, words) > 0)
    ellipses = occurrences(block, b"...") + occurrences(block, "…".encode())
    return {"words": count.astype(np.int32),
            "mean_word_length": share(words.per_document(np.where(proper, chars_in(block, words), 0)), count),
            "alpha_words": share(letters, words.counts), "stop_words": _stop_words(block),
            "hash_ratio": share(block.count(block.text == ord("#")), words.counts),
            "ellipsis_ratio": share(ellipses, words.counts)}


def measure_sentences(block: Block) -> dict[str, np.ndarray]:
    """sentences: every line with a word begins one, and so does a word in it that follows the end of a sentence."""
    words = block.words
    line = np.searchsorted(block.lines.ends, words.starts)
    first = np.append(True, line[1:] != line[:-1])[:len(line)]
    ends_before = np.cumsum(np.append(0, _ends_sentence(block)))
    able = np.flatnonzero(first | ~punctuation_alone(block))
    last, this = able[:-1], able[1:]
    first[this[ends_before[this] > ends_before[last]]] = True
    return {"sentences": words.per_document(first).astype(np.int32)}


def punctuation_alone(block: Block) -> np.ndarray:
    """bool [words]: holds nothing but punctuation and symbols."""
    plain = np.flatnonzero(block.classes[block.words.starts] & PUNCTUATION)      # most words begin with a letter
    alone = np.zeros(len(block.words.starts), bool)
    spans = block.words._replace(starts=block.words.starts[plain], ends=block.words.ends[plain])
    alone[plain] = count_in(block.classes & PUNCTUATION == 0, spans) == 0
    return alone


def _stop_words(block: Block) -> np.ndarray:
    words = block.words
    short = np.flatnonzero(words.ends - words.starts <= max(map(len, STOP_WORDS)))
    hashes = block.exact(words.starts[short], words.ends[short])
    document = np.searchsorted(words.first, short, side="right") - 1
    seen = np.zeros((len(block), len(STOP_WORDS)), bool)
    for column, hash in enumerate(_hashes(STOP_WORDS)):
        seen[document[hashes == hash], column] = True
    return seen.sum(axis=1, dtype=np.int32)


def _ends_sentence(block: Block) -> np.ndarray:
    """bool [words]: ends in terminal punctuation, closing marks aside; an ellipsis, initial or abbreviation does not."""
    text, classes, words = block.text, block.classes, block.words
    found = np.flatnonzero(classes[words.ends - 1] & PUNCTUATION)
    starts, last = words.starts[found], words.ends[found] - 1
    for _ in range(CLOSING_BYTES):
        last = last - ((last > starts) & (classes[last] & (PUNCTUATION | TERMINAL) == PUNCTUATION))
    stop = (text[last] == ord(".")) & (last > starts)
    before, far = text[last - 1], np.maximum(last - 2, starts)
    letter = (classes[last - 1] & ALPHA > 0) & (before < 0x80) & ((far == last - 1) | (classes[far] & (ALPHA | DIGIT) == 0))
    abbreviation = np.isin(block.exact(starts, last + 1), _hashes(ABBREVIATIONS))
    ends = np.zeros(len(words.starts), bool)
    ends[found] = (classes[last] & TERMINAL > 0) & ~(stop & ((before == ord(".")) | letter | abbreviation))
    return ends


@functools.lru_cache(maxsize=2)
def _hashes(texts: tuple[str, ...]) -> np.ndarray:
    block = Block([" ".join(texts)])
    return block.exact(block.words.starts, block.words.ends)
