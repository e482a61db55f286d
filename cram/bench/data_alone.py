"""Steps of the preparation without a competitor: each alone, and the whole of the stage ``measure`` (see data.py)."""

from __future__ import annotations

import json
import lzma
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from cram.bench.corpora import megabytes, take
from cram.bench.data import Contest, Entry, Sizes
from cram.config import load
from data_prep import edits, language
from data_prep.dedup import document_keys
from data_prep.measure import measure_part
from data_prep.normalise import normalise
from data_prep.sources.batches import batched
from data_prep.sources.files import expand, read_files

FILES = "reading files, writing parquet, the whole stage measure"


def contests(texts: Sequence[str], sizes: Sizes) -> Iterator[Contest]:
    """In the order in which they are held."""
    fast, slow = take(texts, sizes.fast), take(texts, 4 * sizes.slow)
    for case, (make, sample) in {"normalise": (_normalise, fast), "edits of C4": (_edits, fast), "document keys": (_keys, fast),
                                 "language": (_language, slow)}.items():
        yield Contest("steps alone", case, {"cram": partial(make, sample)})
    folder = Path(tempfile.mkdtemp(prefix="cram-bench-"))
    try:
        for case, make in {"jsonl": _jsonl, "jsonl.xz": _jsonl_xz, "parquet": _parquet, "write": _write,
                           "measure": _measure}.items():
            yield Contest(FILES, case, {"cram": partial(make, fast, folder)})
    finally:
        shutil.rmtree(folder)


def _normalise(texts: list[str]) -> Entry:
    return Entry.of(lambda texts: [normalise(text) for text in texts], texts)


def _edits(texts: list[str]) -> Entry:
    c4 = load("filters/c4").data.edits
    return Entry.of(lambda texts: edits.edit(texts, c4, edits.Account()), texts)


def _keys(texts: list[str]) -> Entry:
    return Entry.of(document_keys, texts)


def _language(texts: list[str]) -> Entry:
    return Entry.of(language.identify, texts)


def _table(texts: list[str]) -> pa.Table:
    return pa.Table.from_batches(batched((text, "bench") for text in texts))


def _write_table(texts: list[str], path: Path) -> None:
    pq.write_table(_table(texts), path, compression="zstd", row_group_size=4096, use_dictionary=["origin"])


def _reader(path: Path, texts: list[str]) -> Entry:
    paths = expand([str(path)])

    def call() -> None:
        read = sum(len(batch) for batch in read_files(paths, "text"))
        assert read == len(texts), f"{path.name}: {read} documents read, {len(texts)} written"
    return Entry(lambda: call, megabytes(texts))


def _lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def _jsonl(texts: list[str], folder: Path) -> Entry:
    (folder / "texts.jsonl").write_bytes(_lines(texts))
    return _reader(folder / "texts.jsonl", texts)


def _jsonl_xz(texts: list[str], folder: Path) -> Entry:
    (folder / "texts.jsonl.xz").write_bytes(lzma.compress(_lines(texts), preset=1))
    return _reader(folder / "texts.jsonl.xz", texts)


def _parquet(texts: list[str], folder: Path) -> Entry:
    _write_table(texts, folder / "texts.parquet")
    return _reader(folder / "texts.parquet", texts)


def _write(texts: list[str], folder: Path) -> Entry:
    return Entry.of(lambda texts: _write_table(texts, folder / "written.parquet"), texts)


def _measure(texts: list[str], folder: Path) -> Entry:
    """Normalise, FineWeb's edits, all statistics, keys and bands, and the part on disk."""
    data = load("filters/fineweb").data
    batch = _table(texts).combine_chunks().to_batches()[0]
    work: Callable[[], object] = partial(measure_part, (0, False, "bench", batch), data, folder, "bench")
    return Entry(lambda: work, megabytes(texts))
