"""One spelling for one text, before anything is counted or compared.

* Unicode NFC (UAX #15): canonically equal strings become one (e + combining accent = é). Compatibility
  forms (ligatures, full width) stay as they are.
* Line ends CR LF, CR, U+0085, U+2028, U+2029, vertical tab and form feed become a newline.
* Other control characters go: NUL, C0 except tab and newline, DEL, C1, and U+FEFF (byte order mark).
  Joiners and direction marks stay: emoji and right-to-left text need them.
* Blank space around the whole document goes; within it everything stays, so code keeps its indent.

All that follows (bytes counted, tokens, held-out text) speaks of the text after this step.
"""

from __future__ import annotations

import re
import unicodedata

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_CONTROLS = dict.fromkeys([*range(0x00, 0x09), *range(0x0E, 0x20), *range(0x7F, 0xA0), 0xFEFF])


def normalise(text: str) -> str:
    """The document as it is kept; idempotent; may be empty."""
    if _ODD.search(text):
        text = _LINE_ENDS.sub("\n", text).translate(_CONTROLS)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return text.strip()
