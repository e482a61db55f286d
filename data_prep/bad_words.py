"""C4's list of words that must not occur (Raffel et al. 2020, section 2.2): one word or phrase a line, any language."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data_prep.blocks import Block
from data_prep.errors import DataError


class BadWords:
    """Finds documents with a word of the list: in any case, and with no letter, digit or underscore right beside it."""

    def __init__(self, path: Path | str):
        """Read the list: UTF-8, blank lines aside. DataError when it cannot be read or is empty."""
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.filters.bad_words: {path} cannot be read ({error}); give a text file, one word or phrase "
                            f"a line") from None
        words = sorted({line.strip().lower() for line in lines} - {""})
        if not words:
            raise DataError(f"data.filters.bad_words: {path} has no word; give a text file, one word or phrase a line, or null")
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words))})(?!\w)")

    def found(self, block: Block) -> np.ndarray:
        """bool [documents]: a word of the list occurs."""
        return np.fromiter((self._pattern.search(text.lower()) is not None for text in block.texts), bool, len(block))
