"""What a document is like, measured for a batch at once: numbers only, no decisions.

Characters are Unicode code points. One pass of numpy over the code points of the joined batch; a
newline between documents keeps runs of characters from crossing from one into the next.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np

ALPHABETIC, SPACE = 1, 2


@functools.lru_cache(maxsize=1)
def _classes() -> np.ndarray:
    """uint8 [0x110000]: ALPHABETIC for letters and their marks (Unicode L*, M*), SPACE for white space."""
    return np.array([ALPHABETIC if unicodedata.category(char)[0] in "LM" else SPACE if char.isspace() else 0
                     for char in map(chr, range(0x110000))], np.uint8)


def measure(texts: list[str]) -> dict[str, np.ndarray]:
    """Statistics of each document, arrays of shape [len(texts)].

    chars: characters, int64.
    alpha_fraction: letters and marks among non-space characters, float64 (0 for an empty document).
    longest_word: longest run of non-space characters, int64.
    repeated_lines: share of lines equal to an earlier one, blank lines and outer blanks aside, float64.
    placeholder: whether it contains "lorem ipsum" in any case, bool.
    """
    if not texts:
        return {"chars": np.zeros(0, np.int64), "alpha_fraction": np.zeros(0), "longest_word": np.zeros(0, np.int64),
                "repeated_lines": np.zeros(0), "placeholder": np.zeros(0, bool)}
    chars = np.fromiter(map(len, texts), np.int64, len(texts))
    ends = np.cumsum(chars + 1)
    starts = ends - chars - 1
    codes = np.frombuffer(("\n".join(texts) + "\n").encode("utf-32-le", "surrogatepass"), np.uint32)
    classes = _classes()[codes]

    spaces = np.flatnonzero(classes == SPACE)
    first_space = np.searchsorted(spaces, starts)                   # of each document; the last one ends it
    spaces_in = np.diff(first_space, append=len(spaces)) - 1
    alphabetic = np.add.reduceat(classes == ALPHABETIC, starts, dtype=np.int64)
    runs = np.diff(spaces, prepend=-1) - 1
    return {
        "chars": chars,
        "alpha_fraction": alphabetic / np.maximum(chars - spaces_in, 1),
        "longest_word": np.maximum.reduceat(runs, first_space),
        "repeated_lines": np.fromiter(map(_repeated_lines, texts), np.float64, len(texts)),
        "placeholder": np.fromiter(("lorem ipsum" in text.lower() for text in texts), bool, len(texts)),
    }


def _repeated_lines(text: str) -> float:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0
