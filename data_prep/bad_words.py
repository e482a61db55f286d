"""C4's list of words that must not occur (Raffel et al. 2020, section 2.2): one word or phrase a line, any language."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import numpy as np

from data_prep.blocks import Block
from data_prep.errors import DataError

REMEDY = "give a UTF-8 text file, one word or phrase a line"


class BadWords:
    """Finds documents with a word of the list: in any case, and with no letter, digit or underscore right beside it."""

    def __init__(self, path: Path | str):
        """Read the list: UTF-8, blank lines aside. DataError when it cannot be read or is empty."""
        words = sorted({line.strip().lower() for line in _read(Path(path)).splitlines()} - {""})
        if not words:
            raise DataError(f"data.filters.bad_words: {path} has no word; {REMEDY}, or null")
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")

    def found(self, block: Block) -> np.ndarray:
        """bool [documents]: a word of the list occurs."""
        return np.fromiter((self._pattern.search(text.lower()) is not None for text in block.texts), bool, len(block))


def bad_words(path: Path | str) -> BadWords:
    """``BadWords(path)``, made once in a process, and again when the file has changed. DataError as there."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    return _made_once(Path(path).absolute(), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=1)
def _made_once(path: Path, changed: int, size: int) -> BadWords:
    return BadWords(path)


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"data.filters.bad_words: {path} cannot be read (line {line}, byte {error.start}: invalid UTF-8, "
                        f"0x{content[error.start]:02x}); {REMEDY}") from None


def _unreadable(path: Path | str, error: OSError) -> DataError:
    return DataError(f"data.filters.bad_words: {path} cannot be read ({error.strerror or type(error).__name__}); {REMEDY}")
