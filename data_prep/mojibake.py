"""Repair of text that was decoded with the wrong encoding (cafÃ© -> café), with ftfy (Speer 2019), line by line.

ftfy judges a line by the sequences that such mistakes leave, and changes nothing without one. Its search is slow, so
a line is handed over only when it holds two characters beyond ASCII side by side that encodings mix up, or a capital
A with tilde or circumflex: nearly every mistake makes one of them, and clean English text seldom does.
"""

from __future__ import annotations

import re

from data_prep.errors import DataError

# The characters that bytes beyond ASCII become in one-byte encodings all lie here: no Chinese, Japanese or Korean.
_TRIGGER = re.compile("[\x80-\u2dff\ufb01\ufb02\ufffd]{2}|[ÃÂ]")


def repair_text(text: str) -> tuple[str, int]:
    """(the text with mistaken encodings repaired, lines changed). DataError when ftfy is not installed."""
    if text.isascii() or not _TRIGGER.search(text):
        return text, 0
    ftfy = load_ftfy()
    lines = text.split("\n")
    repaired = [ftfy.fix_encoding(line) if _TRIGGER.search(line) else line for line in lines]
    changed = sum(old != new for old, new in zip(lines, repaired))
    return ("\n".join(repaired), changed) if changed else (text, 0)


def load_ftfy():
    """The ftfy module; DataError naming the extra when it is absent."""
    try:
        import ftfy
    except ImportError:
        raise DataError("data.edits.mojibake needs ftfy, which is not installed; install it with: "
                        "pip install 'cram-lm[web]'") from None
    return ftfy
