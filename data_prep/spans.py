"""Small tools that the statistics share: counting in spans, in documents, and finding what occurs again."""

from __future__ import annotations

import numpy as np

from data_prep.blocks import Block, Spans, mix
from data_prep.characters import SPACE, START

SALT = np.uint64(0xD1B54A32D192ED03)        # any odd-looking number


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole as float32; 0 where whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), 0).astype(np.float32)


def occurrences(block: Block, sign: bytes, folded: bool = False) -> np.ndarray:
    """int64 [documents]: how often ``sign`` occurs, without overlap as ``str.count`` does; folded: in any case (A-Z)."""
    text = (block.lower if folded else block.text).tobytes()
    places = []
    place = text.find(sign)
    while place >= 0:
        places.append(place)
        place = text.find(sign, place + len(sign))
    return np.diff(np.searchsorted(np.array(places, np.int64), np.append(block.starts, len(text))))


def documents_of(spans: Spans) -> np.ndarray:
    """int64 [n]: the document each span lies in."""
    return np.repeat(np.arange(len(spans.first) - 1), spans.counts)


def count_in(flags: np.ndarray, spans: Spans) -> np.ndarray:
    """int32 [n]: bytes of each span where ``flags`` (bool [bytes]) is true."""
    total = np.zeros(len(flags) + 1, np.int32)
    np.cumsum(flags, out=total[1:])
    return total[spans.ends] - total[spans.starts]


def chars_in(block: Block, spans: Spans) -> np.ndarray:
    """int64 [n]: characters of each span."""
    return block.char_offsets[spans.ends] - block.char_offsets[spans.starts]


def salts(spans: Spans) -> np.ndarray:
    """uint64 [n]: a number of each span's document; added to a hash, it keeps equal spans of two documents apart."""
    numbers = SALT + np.arange(len(spans.first) - 1, dtype=np.uint64)      # far from mix(byte + 1), the hash of a single byte
    return np.repeat(mix(numbers), spans.counts)


def repeats(hashes: np.ndarray) -> np.ndarray:
    """bool [n]: whether an earlier hash (uint64 [n]) is equal."""
    order = np.argsort(hashes, kind="stable")
    again = np.zeros(len(hashes), bool)
    again[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]
    return again


def begins(text: np.ndarray, starts: np.ndarray, sign: bytes) -> np.ndarray:
    """bool [n]: whether ``sign`` (without a newline) stands at each start; ``text`` (uint8) ends with a newline."""
    found = np.zeros(len(starts), bool)
    index = np.arange(len(starts))
    for place, byte in enumerate(sign):
        index = index[text[starts[index] + place] == byte]
    found[index] = True
    return found


def ends_in(text: np.ndarray, starts: np.ndarray, ends: np.ndarray, sign: bytes) -> np.ndarray:
    """bool [n]: whether the spans end in ``sign``."""
    found = ends - starts >= len(sign)
    found[found] = begins(text, ends[found] - len(sign), sign)
    return found


def stripped_spans(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) int64 [lines] of the lines without the spaces at both ends; a blank line starts where it ends."""
    solid = np.flatnonzero(block.classes & (SPACE | START) == START)           # first bytes of characters
    lines = block.lines
    first, after = np.searchsorted(solid, lines.starts), np.searchsorted(solid, lines.ends)
    blank = first == after
    starts = np.where(blank, lines.starts, np.append(solid, 0)[first])
    last = np.where(blank, lines.starts, np.append(solid, 0)[after - 1])
    size = np.where(blank, 0, 1 + (block.text[last] >= 0xC0) + (block.text[last] >= 0xE0) + (block.text[last] >= 0xF0))
    return starts, last + size
