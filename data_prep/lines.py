"""What the rules for lines (edits.py) ask about the lines of a block. Arrays have one element a line, [lines].

Like C4 (Raffel et al. 2020) the rules see a line without the blank space at its ends. A word is a run of non-space
characters. Phrases are sought with A-Z folded to lower case.
"""

from __future__ import annotations

import functools
import re
from typing import Iterator

import numpy as np

from data_prep.blocks import Block
from data_prep.characters import ALPHA, DIGIT, SPACE, START, UPPER

COUNTER_WORDS, COUNTER_BYTES = 5, 60        # longer lines are no counters
ADDRESS_WORDS = 3
# The examples of RefinedWeb (Penedo et al. 2023, appendix G.2); the list of nouns follows DCLM (Li et al. 2024).
_COUNTER = re.compile(
    r"\W*(?:\d[\d.,]*[kmb]?\s+(?:likes?|shares?|comments?|retweets?|reposts?|quotes?|bookmarks?|upvotes?|downvotes?|downloads?"
    r"|views?|followers?|items? in cart)|items in cart|read more|sign[- ]in)\W*")


class Lines:
    """Lines of a block: starts, ends int64 [lines], bytes in the block without blank space; words int64 [lines].

    A blank line has no words and starts where it ends.
    """

    def __init__(self, block: Block):
        self.block, self.spans = block, block.lines
        words = block.words
        self._first = np.searchsorted(words.starts, self.spans.starts)
        after = np.append(self._first[1:], len(words.starts))
        self.words = after - self._first
        self.starts, self.ends = self.spans.starts.copy(), self.spans.starts.copy()
        some = self.words > 0
        self.starts[some] = words.starts[self._first[some]]
        self.ends[some] = words.ends[after[some] - 1]

    def has_longer_word(self, most: int) -> np.ndarray:
        """bool: a word has more than ``most`` characters."""
        words = self.block.words
        long = np.flatnonzero(words.ends - words.starts > most)                 # in bytes: at least as many as characters
        if len(long):
            offsets = self.block.char_offsets
            long = long[offsets[words.ends[long]] - offsets[words.starts[long]] > most]
        return self._holding(words.starts[long])

    def ends_a_sentence(self) -> np.ndarray:
        """bool: ends in . ? ! or a straight quotation mark, and not in three full stops (C4)."""
        text, ends = self.block.text, self.ends
        tails = [np.where(ends - back >= self.starts, text[np.maximum(ends - back, 0)], 0) for back in (1, 2, 3)]
        ellipsis = (tails[0] == ord(".")) & (tails[1] == ord(".")) & (tails[2] == ord("."))
        return np.isin(tails[0], np.frombuffer(b".?!\"'", np.uint8)) & ~ellipsis

    def mentions(self, phrases: tuple[bytes, ...]) -> np.ndarray:
        """bool: holds one of the phrases, given in lower case."""
        return self._holding(np.array([place for phrase in phrases for place in self._places(phrase)], np.int64))

    def is_address(self) -> np.ndarray:
        """bool: a word that begins with http://, https:// or www., and at most two more words."""
        places = np.array([place for sign in (b"http://", b"https://", b"www.") for place in self._places(sign)], np.int64)
        begins = (self.block.classes[places - 1] & SPACE > 0) | (places == 0)       # a newline stands between documents
        return self._holding(places[begins]) & (self.words <= ADDRESS_WORDS)

    def is_counter(self) -> np.ndarray:
        """bool: the whole line is a counter or a label, such as '3 likes' or 'Read more'."""
        found = np.zeros(len(self.words), bool)
        short = np.flatnonzero((self.words > 0) & (self.words <= COUNTER_WORDS) & (self.ends - self.starts <= COUNTER_BYTES))
        for line, start, end in zip(short.tolist(), self.starts[short].tolist(), self.ends[short].tolist()):
            found[line] = _COUNTER.fullmatch(self._lower[start:end].decode("utf-8")) is not None
        return found

    def uppercase_fraction(self) -> np.ndarray:
        """float64: capitals among letters; 0 without letters."""
        return self._count(START | UPPER) / np.maximum(self._count(START | ALPHA), 1)

    def digit_fraction(self) -> np.ndarray:
        """float64: decimal digits among characters that are no space; 0 for a blank line."""
        solid = self._count(START) - self._count(START | SPACE)
        return self._count(START | DIGIT) / np.maximum(solid, 1)

    def _count(self, bits: int) -> np.ndarray:
        """int64: characters that have all these bits; the newline is none of them."""
        flags = self.block.classes & bits == bits
        flags[self.spans.ends] = False
        return np.add.reduceat(flags, self.spans.starts, dtype=np.int64)

    @functools.cached_property
    def _lower(self) -> bytes:
        return self.block.text.tobytes().lower()            # A-Z alone

    def _places(self, phrase: bytes) -> Iterator[int]:
        place = self._lower.find(phrase)
        while place >= 0:
            yield place
            place = self._lower.find(phrase, place + 1)

    def _holding(self, places: np.ndarray) -> np.ndarray:
        """bool: lines that hold one of these bytes of the block."""
        holding = np.zeros(len(self.words), bool)
        holding[np.searchsorted(self.spans.starts, places, side="right") - 1] = True
        return holding
