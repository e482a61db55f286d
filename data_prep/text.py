"""Stage ``text``: sources -> normalise -> filter -> exact dedup -> split by document hash.

Writes ``train-00000.parquet`` ... and ``validation.parquet`` (columns text, origin; zstd) and
``manifest.json`` with provenance, the funnel (documents in = kept + dropped by rule), samples of what
each rule dropped, and the size of the splits. Memory is bounded whatever the corpus: one batch, the
keys seen and the held-out documents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.artifact import read_manifest, write_manifest
from data_prep.dedup import KeySet, document_keys
from data_prep.errors import DataError
from data_prep.filters import active_rules, passing
from data_prep.funnel import Funnel, utf8_bytes
from data_prep.normalise import normalise
from data_prep.progress import now_and_then
from data_prep.sources import open_source
from data_prep.sources.batches import SCHEMA, batched, limited
from data_prep.split import HeldOut, held_out

FILE_BYTES = 1_000_000_000          # text per parquet file


class _Writer:
    """Appends documents of the training split to numbered parquet files."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: pq.ParquetWriter | None = None
        self._file_bytes = self._files = 0
        self.documents = self.bytes = 0

    def write(self, texts: list[str], origins: list[str]) -> None:
        if not texts:
            return
        if self._file is None or self._file_bytes >= FILE_BYTES:
            self.close()
            self._file = pq.ParquetWriter(self._folder / f"train-{self._files:05d}.parquet", SCHEMA, compression="zstd")
            self._files, self._file_bytes = self._files + 1, 0
        self._file.write_batch(pa.record_batch([pa.array(texts, pa.string()), pa.array(origins, pa.string())], schema=SCHEMA))
        size = sum(map(utf8_bytes, texts))
        self.documents, self.bytes, self._file_bytes = self.documents + len(texts), self.bytes + size, self._file_bytes + size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def prepare_text(data: Any, out: Path, say: Callable[[str], None]) -> None:
    """Run the stage: read what ``data`` (the configuration section) names, write the kept text into ``out``.

    Raises DataError for a missing, damaged or empty source, and when either split ends up empty.
    """
    if not 0 < data.validation_fraction < 1:
        raise DataError(f"data.validation_fraction is {data.validation_fraction}; it must lie between 0 and 1, as in 0.01")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    source = open_source(data)
    rules = ["empty", *(rule.name for rule, _ in active_rules(data.filters))]
    funnel = Funnel([*rules, *["exact_dedup"] * data.exact_dedup, "validation_surplus"])
    seen, validation, train = KeySet(), HeldOut(data.validation_max_bytes), _Writer(out)
    tell = now_and_then(say)
    try:
        for batch in limited(source.batches, data.max_bytes):
            _take(batch, data, funnel, seen, validation, train)
            tell(f"text: {funnel.read_bytes / 1e6:,.0f} MB read, {train.bytes / 1e6:,.0f} MB kept for training")
    finally:
        train.close()

    held = validation.documents()
    splits = {"train": {"documents": train.documents, "bytes": train.bytes},
              "validation": {"documents": len(held), "bytes": sum(utf8_bytes(text) for text, _ in held)}}
    funnel.keep(train.documents + len(held), train.bytes + splits["validation"]["bytes"])
    rows = funnel.rows()
    check_splits({split: counts["documents"] for split, counts in splits.items()}, rows, data)
    with pq.ParquetWriter(out / "validation.parquet", SCHEMA, compression="zstd") as file:
        for batch in batched(held):
            file.write_batch(batch)
    write_manifest(out, {"version": 1, "source": source.provenance, "funnel": rows, "samples": funnel.samples,
                         "splits": splits})
    say(f"text: {funnel.read_documents:,} documents read ({funnel.read_bytes / 1e6:,.1f} MB), {train.documents:,} for training "
        f"({train.bytes / 1e6:,.1f} MB), {len(held):,} held out ({splits['validation']['bytes'] / 1e6:,.2f} MB)")


def _take(batch: pa.RecordBatch, data: Any, funnel: Funnel, seen: KeySet, validation: HeldOut, train: _Writer) -> None:
    """Send each document of one batch to where it belongs, and count it there."""
    raw, origins = batch.column("text").to_pylist(), batch.column("origin").to_pylist()
    texts = [normalise(text) for text in raw]
    funnel.read(raw, texts)
    funnel.drop("empty", [text for text in texts if not text])
    texts, origins = _where(texts, origins, np.array([bool(text) for text in texts], bool))
    texts, origins = _where(texts, origins, passing(texts, data.filters, funnel))
    keys = document_keys(texts)
    if data.exact_dedup:
        new = seen.add(keys)
        funnel.drop("exact_dedup", [texts[index] for index in np.flatnonzero(~new)])
        texts, origins = _where(texts, origins, new)
        keys = keys[new]
    held = held_out(keys, data.validation_fraction)
    for index in np.flatnonzero(held):
        funnel.drop("validation_surplus", validation.add(int(keys[index, 0]), texts[index], origins[index]))
    train.write(*_where(texts, origins, ~held))


def _where(texts: list[str], origins: list[str], keep: np.ndarray) -> tuple[list[str], list[str]]:
    if keep.all():
        return texts, origins
    return [texts[index] for index in np.flatnonzero(keep)], [origins[index] for index in np.flatnonzero(keep)]


def check_splits(documents: dict[str, int], funnel: list[dict[str, Any]], data: Any) -> None:
    """DataError, with the remedy, when there is no document to train on or none to hold out."""
    read, kept = funnel[0]["documents"], sum(documents.values())
    if read == 0:
        raise DataError(f"the corpus is empty: data.source={data.source} gave no document; check data.{_KEYS[data.source]}")
    dropped = sorted((row for row in funnel if row.get("dropped_documents")), key=lambda row: -row["dropped_documents"])
    if kept == 0:
        causes = ", ".join(f"{row['rule']} {row['dropped_documents']:,}" for row in dropped)
        raise DataError(f"no document is left of {read:,} read (dropped: {causes}); "
                        f"relax data.filters or data.validation_max_bytes, or add text")
    for split, other in (("validation", "raise"), ("train", "lower")):
        if documents[split] == 0:
            raise DataError(f"the {split} split is empty: {kept:,} of {read:,} documents are kept and "
                            f"data.validation_fraction={data.validation_fraction} of them are held out by hash; "
                            f"add documents (at least two are needed), or {other} data.validation_fraction")


_KEYS = {"installed-docs": "packages", "files": "files", "hub": "dataset"}


def read_split(text_dir: Path, split: str, columns: tuple[str, ...] = ("text",)) -> Iterator[pa.RecordBatch]:
    """Batches of a split that ``prepare_text`` wrote, in the order written. DataError when it is not all there."""
    text_dir = Path(text_dir)
    expected = read_manifest(text_dir, "prepared text", ("funnel", "splits"))["splits"][split]["documents"]
    paths = sorted(text_dir.glob("train-*.parquet")) if split == "train" else [text_dir / "validation.parquet"]
    found = 0
    try:
        for path in paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
                    found += len(batch)
                    yield batch
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); run the text stage again") from None
    if found != expected:
        raise DataError(f"{text_dir}: the {split} split has {found:,} documents, its manifest says {expected:,}; "
                        f"run the text stage again")
