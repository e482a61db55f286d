"""Parts: the unit of work. One process measures, packs or counts one part, whatever runs the others.

A part is a run of documents of about ``data.part_bytes`` of text, cut by their order and size alone: the same parts
come from one process or many. What is made of a part is written under a temporary name and renamed; its marker,
written last, holds what it was made from, so that an interrupted stage goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterable, Iterator, Optional

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from data_prep.files import replace_durably, sync
from data_prep.sources.batches import SCHEMA


def part_name(number: int) -> str:
    """part-00007"""
    return f"part-{number:05d}"


def cut_parts(batches: Iterable[pa.RecordBatch], part_bytes: int) -> Iterator[pa.RecordBatch]:
    """The same documents in batches that each end with the document that reaches ``part_bytes`` of UTF-8 text."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        while len(batch):
            reached = size + np.cumsum(pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False))
            count = int(np.searchsorted(reached, part_bytes)) + 1
            waiting.append(batch.slice(0, count))
            if count > len(batch):
                size = int(reached[-1])
                break
            yield _joined(waiting)
            waiting, size, batch = [], 0, batch.slice(count)
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """One batch with memory of its own: what is sent to another process holds nothing else."""
    columns = [pa.concat_arrays([batch.column(name) for batch in batches]) for name in SCHEMA.names]
    return pa.record_batch(columns, schema=SCHEMA)


def fingerprint(batch: pa.RecordBatch) -> str:
    """xxh3-128 over texts, origins and where they end."""
    digest = xxhash.xxh3_128(str(len(batch)).encode())
    for column in batch.columns:
        for buffer in column.buffers()[1:]:
            digest.update(memoryview(buffer))
    return digest.hexdigest()


def write_marker(path: Path, made_from: Any, content: dict[str, Any]) -> None:
    """Record, durably, that a part's files are complete and what they were made from."""
    replace_durably(path, (json.dumps({"made_from": made_from, **content}, indent=1, ensure_ascii=False) + "\n").encode())


def read_marker(path: Path, made_from: Any) -> Optional[dict[str, Any]]:
    """The marker's content if it is there, was made from the same, and its files have the recorded sizes; else None.

    ``content["files"]`` holds the sizes of the files beside the marker: {name: bytes}.
    """
    try:
        content = json.loads(path.read_bytes())
        sizes = {file: (path.parent / file).stat().st_size for file in content["files"]}
        whole = content.pop("made_from") == made_from and content["files"] == sizes
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None                                  # an unreadable marker proves nothing: the part is made again
    return content if whole else None


def put_in_place(temporary: Path, path: Path) -> None:
    """Make a finished file durable and give it its name."""
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def clear_unfinished(folder: Path) -> None:
    """Remove what an interruption left under temporary names."""
    for path in folder.glob(".*.tmp"):
        path.unlink()
