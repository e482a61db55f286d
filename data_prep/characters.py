"""What kind of character each byte of UTF-8 text belongs to: one table lookup, without decoding the text.

A byte's class is a set of bits. All bytes of a character carry its bits; START marks the first byte alone, so
counting START counts characters. Classes follow Python's ``str`` methods and the Unicode database. TERMINAL marks what
ends a sentence: full stop, exclamation and question mark in many scripts.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np

START, SPACE, ALPHA, MARK, DIGIT, UPPER, PUNCTUATION, TERMINAL = (1 << bit for bit in range(8))
# Code points with the property Sentence_Terminal (Unicode 16, PropList.txt), hexadecimal.
SENTENCE_TERMINAL = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D5 "
    "1803 1809 1944-1945 1AA8-1AAB 1B4E-1B4F 1B5A-1B5B 1B5E-1B5F 1B7D-1B7F 1C3B-1C3C 1C7E-1C7F 2024 203C-203D "
    "2047-2049 2CF9-2CFB 2E2E 2E3C 2E53-2E54 2E60-2E61 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F "
    "A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE12 FE15-FE16 FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 "
    "10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 "
    "113D4-113D5 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C "
    "11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16D6E-16D6F 16E98 1BC9F 1DA88")


def _class_of(char: str) -> int:
    category = unicodedata.category(char)
    return (START | SPACE * char.isspace() | ALPHA * char.isalpha() | MARK * (category[0] == "M") | DIGIT * char.isdecimal()
            | UPPER * char.isupper() | PUNCTUATION * (category[0] in "PS") | TERMINAL * (ord(char) in _terminals()))


@functools.lru_cache(maxsize=1)
def _terminals() -> frozenset[int]:
    bounds = [[int(code, 16) for code in span.split("-")] for span in SENTENCE_TERMINAL.split()]
    return frozenset(code for span in bounds for code in range(span[0], span[-1] + 1))


@functools.lru_cache(maxsize=1)
def _ascii_table() -> np.ndarray:
    """uint8 [256]: class of each ASCII byte; 0 for the bytes of longer characters."""
    return np.array([_class_of(chr(code)) for code in range(128)] + [0] * 128, np.uint8)


@functools.lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """uint8 [0x110000]: class of each code point."""
    return np.array([_class_of(chr(code)) for code in range(0x110000)], np.uint8)


def classify(text: np.ndarray) -> np.ndarray:
    """uint8 [bytes]: the class of each byte of valid UTF-8 (uint8 [bytes])."""
    classes = _ascii_table()[text]
    leads = np.flatnonzero(text >= 0xC0)
    if len(leads):
        codes, sizes = decode_at(text, leads)
        found = _table()[codes]
        classes[leads] = found
        for more in (1, 2, 3):                       # bytes that follow: the same bits without START
            longer = sizes > more
            classes[leads[longer] + more] = found[longer] & ~np.uint8(START)
    return classes


def decode_at(text: np.ndarray, leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(code points uint32, bytes each takes int64) of the multi-byte characters that begin at ``leads``."""
    first = text[leads].astype(np.uint32)
    sizes = 2 + (first >= 0xE0).astype(np.int64) + (first >= 0xF0)
    codes = first & np.array([0, 0, 0x1F, 0x0F, 0x07], np.uint32)[sizes]
    for more in (1, 2, 3):
        longer = sizes > more
        codes[longer] = codes[longer] << np.uint32(6) | text[leads[longer] + more] & np.uint32(0x3F)
    return codes, sizes
