"""The key of a document for exact deduplication: 128 bits that equal texts share.

The key ignores case and how white space is laid out, so copies that differ in indentation are found.
Two different documents share a key with probability n^2 / 2^129: 1e-21 for a billion documents.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
import xxhash

_ASCII = bytes(ord(" ") if chr(code).isspace() else ord(chr(code).lower()) for code in range(128)) + bytes(range(128, 256))


def document_keys(texts: Sequence[str]) -> np.ndarray:
    """uint64 [documents, 2]: xxh3-128 of each text, case-folded and with white space collapsed."""
    digests = [xxhash.xxh3_128_digest(_canonical(text)) for text in texts]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(len(texts), 2)


def _canonical(text: str) -> bytes:
    if not text.isascii():
        return " ".join(text.casefold().split()).encode("utf-8")
    canonical = text.encode("ascii").translate(_ASCII)          # the same, twice as fast
    while b"  " in canonical:
        canonical = canonical.replace(b"  ", b" ")
    return canonical.strip()
