"""Stands for the text stage in the tests of the data stage."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cram.schema import Data, Filters


def write_text(folder: Path, parts: list[list[str]], validation: list[str]) -> Path:
    """A folder as the text stage leaves it; beside the given texts, every part has documents with another fate."""
    folder.mkdir()
    entries = []
    for number, texts in enumerate(parts):
        rows, fate = ["dropped before", *texts, "dropped after"], [2, *[0] * len(texts), 3]
        pq.write_table(pa.table({"text": rows, "origin": ["here"] * len(rows)}), folder / f"part-{number:05d}.parquet")
        np.save(folder / f"fate-{number:05d}.npy", np.array(fate, np.uint8))
        entries.append({"file": f"part-{number:05d}.parquet", "documents": len(rows), "bytes": sum(map(size, rows)),
                        "train_documents": len(texts)})
    pq.write_table(pa.table({"text": validation, "origin": ["here"] * len(validation)}), folder / "validation.parquet")
    splits = {name: {"documents": len(texts), "bytes": sum(map(size, texts))}
              for name, texts in (("train", sum(parts, [])), ("validation", validation))}
    total = {key: sum(split[key] for split in splits.values()) for key in ("documents", "bytes")}
    (folder / "manifest.json").write_text(json.dumps({
        "version": 1, "source": {"kind": "test"}, "samples": {}, "splits": splits, "parts": entries,
        "fates": ["train", "validation", "short", "long"], "funnel": [{"rule": "read", **total}, {"rule": "kept", **total}]}))
    return folder


def size(text: str) -> int:
    return len(text.encode())


def data_section(packing="stream", workers=1, **filters) -> Data:
    return Data(source="files", packing=packing, workers=workers, filters=Filters(**filters))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
