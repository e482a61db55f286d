"""Documents as Arrow record batches: what every source yields.

Columns: ``text`` and ``origin`` (where the document came from, for people), both
string. A batch is small enough to be worked on in memory whatever the corpus.
"""

from __future__ import annotations

import re
from typing import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

SCHEMA = pa.schema([("text", pa.string()), ("origin", pa.string())])
BATCH_DOCUMENTS = 2048
BATCH_CHARS = 4_000_000

_SURROGATE = re.compile("[\ud800-\udfff]")


def batched(documents: Iterable[tuple[str, str]]) -> Iterator[pa.RecordBatch]:
    """Group (text, origin) pairs into batches of at most 2,048 documents or about 4 million characters.

    Half of a surrogate pair (a broken ``\\ud83d`` escape in JSON) is no character and
    has no UTF-8 form; it becomes U+FFFD, the replacement character.
    """
    texts: list[str] = []
    origins: list[str] = []
    chars = 0
    for text, origin in documents:
        texts.append(text)
        origins.append(origin)
        chars += len(text)
        if len(texts) >= BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            yield _batch(texts, origins)
            texts, origins, chars = [], [], 0
    if texts:
        yield _batch(texts, origins)


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
