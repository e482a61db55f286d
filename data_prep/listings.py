"""What a person wants to look at: documents written out, samples of what was dropped, clusters, contamination."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.duplicates import Duplicates
from data_prep.funnel import SAMPLE_CHARS, SAMPLES
from data_prep.measured import Measured
from data_prep.sources.batches import SCHEMA

AT_A_TIME = 1024


def write_documents(measured: Measured, indices: np.ndarray, path: Path) -> None:
    """Text and origin of some documents (int64), in the given order."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        for low in range(0, len(indices), AT_A_TIME):
            rows = measured.rows(indices[low:low + AT_A_TIME], *SCHEMA.names)
            file.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def samples(measured: Measured, fates: list[str], fate: np.ndarray) -> dict[str, list[str]]:
    """The beginnings of the first few documents that each reason dropped."""
    chosen = {name: np.flatnonzero(fate == code)[:SAMPLES] for code, name in enumerate(fates) if code > 1}
    rows = measured.rows(np.concatenate([*chosen.values(), np.zeros(0, np.int64)]), "text")
    texts = iter([row["text"][:SAMPLE_CHARS] for row in rows])
    return {"empty": [], **{name: [next(texts) for _ in indices] for name, indices in chosen.items()}}


def write_clusters(measured: Measured, duplicates: Duplicates, path: Path) -> None:
    """part, row (int32), cluster (int64, its first document), kind of every document that has a duplicate."""
    cluster, index = duplicates.cluster, np.arange(len(measured))
    sizes = np.bincount(cluster, minlength=len(measured)) if len(measured) else np.zeros(0, np.int64)
    members = index[sizes[cluster] > 1]
    parts = np.searchsorted(measured.first, members, side="right") - 1
    kinds = np.where(duplicates.exact[members], "exact", "near")
    pq.write_table(pa.table({
        "part": pa.array(parts, pa.int32()), "row": pa.array(members - measured.first[parts], pa.int32()),
        "cluster": pa.array(cluster[members], pa.int64()), "kind": pa.array(kinds, pa.string())}), path, compression="zstd")


def write_contamination(measured: Measured, indices: np.ndarray, path: Path) -> None:
    """One line a document that was dropped for an evaluation set: origin, set, one shared n-gram."""
    names = ("origin", "contaminated_by", "contaminated_example")
    with open(path, "w", encoding="utf-8") as file:
        for low in range(0, len(indices), AT_A_TIME):
            for row in measured.rows(indices[low:low + AT_A_TIME], *names):
                origin, by, example = (row[name] for name in names)
                file.write(json.dumps({"origin": origin, "set": by, "ngram": example}, ensure_ascii=False) + "\n")
