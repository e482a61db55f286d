"""Documents as Arrow record batches: what every source yields.

Columns: ``text`` and ``origin`` (where the document came from, for people), both
string. A batch is small enough to be worked on in memory whatever the corpus.

A document of more than two million characters is cut: it is longer than any context, and without a bound a single one
would decide how much memory and time measuring takes. Its pieces are documents like others, judged one by one.
"""

from __future__ import annotations

import itertools
import re
from typing import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema([("text", pa.string()), ("origin", pa.string())])
BATCH_DOCUMENTS = 2048
BATCH_CHARS = 4_000_000
LONGEST_CHARS = 2_000_000
CUT_CHARS = 10_000      # how far before a boundary a line or word end is looked for

_SURROGATE = re.compile("[\ud800-\udfff]")


def batched(documents: Iterable[tuple[str, str]]) -> Iterator[pa.RecordBatch]:
    """Group (text, origin) pairs into batches of at most 2,048 documents or about 4 million characters.

    A document of more than ``LONGEST_CHARS`` characters comes in pieces; their origins end in #1, #2 and so on.
    Half of a surrogate pair (a broken ``\\ud83d`` escape in JSON) is no character and
    has no UTF-8 form; it becomes U+FFFD, the replacement character.
    """
    texts: list[str] = []
    origins: list[str] = []
    chars = 0
    for text, origin in itertools.chain.from_iterable(map(_numbered, documents)):
        texts.append(text)
        origins.append(origin)
        chars += len(text)
        if len(texts) >= BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            yield _batch(texts, origins)
            texts, origins, chars = [], [], 0
    if texts:
        yield _batch(texts, origins)


def _numbered(document: tuple[str, str]) -> list[tuple[str, str]]:
    """The document itself, or its pieces."""
    text, origin = document
    if len(text) <= LONGEST_CHARS:
        return [document]
    return [(piece, f"{origin}#{number}") for number, piece in enumerate(pieces(text, LONGEST_CHARS, CUT_CHARS), 1)]


def pieces(text: str, longest: int, window: int) -> list[str]:
    """Cut a text of n characters into ceil(n / longest) pieces of about equal size, which join to the whole.

    A cut comes after the last newline, else the last space, among the ``window`` characters before the boundary of equal
    shares, else right at it. No piece has fewer than longest // 2 characters, nor more than longest + window.
    """
    count = max(-(-len(text) // longest), 1)
    cuts = [0]
    for number in range(1, count):
        boundary = -(-len(text) * number // count)
        start = max(boundary - window, cuts[-1] + longest // 2)
        after = (text.rfind(mark, start, boundary) + 1 for mark in "\n ")
        cuts.append(next(filter(None, after), boundary))
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)])]


def _batch(texts: list[str], origins: list[str]) -> pa.RecordBatch:
    try:
        column = pa.array(texts, pa.string())
    except UnicodeEncodeError:
        column = pa.array([_SURROGATE.sub("\ufffd", text) for text in texts], pa.string())
    return pa.record_batch([column, pa.array(origins, pa.string())], schema=SCHEMA)


def limited(batches: Iterable[pa.RecordBatch], max_bytes: int | None) -> Iterator[pa.RecordBatch]:
    """The same batches, ending with the document that reaches ``max_bytes`` of UTF-8 text; None: all."""
    read = 0
    for batch in batches:
        if max_bytes is None:
            yield batch
            continue
        for index, size in enumerate(pc.binary_length(batch.column("text")).to_pylist()):
            read += size
            if read >= max_bytes:
                yield batch.slice(0, index + 1)
                return
        yield batch
