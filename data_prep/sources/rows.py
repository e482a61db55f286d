"""All rows of a small dataset, as dictionaries: a benchmark's examples, from a mirror (layout: hub.py) or from the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Optional

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import DataError
from data_prep.sources.hub import EXTENSIONS, present
from data_prep.sources.streams import decode, lines

REMEDY = "fetch the dataset on a connected machine and set evaluate.mirror=FOLDER"


def read_rows(dataset: str, subset: Optional[str], split: str, mirror: Optional[str]) -> tuple[str, list[dict]]:
    """(where they were read, the rows in order). DataError when they are not there, or a line is no JSON object."""
    if mirror is None:
        return _from_hub(dataset, subset, split)
    paths, name = present(Path(mirror), dataset, subset, split), "/".join(filter(None, (dataset, subset, split)))
    if not paths:
        raise DataError(f"evaluate.mirror: {mirror} has no {name} ({', '.join(EXTENSIONS)}); {REMEDY}")
    rows = [row for path in paths for row in read_file(path)]
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more", rows


def read_file(path: Path) -> list[dict]:
    """The rows of one file of a dataset. DataError when it is not there, of no known kind, or a line is no JSON object."""
    if not path.is_file() or not path.name.endswith(EXTENSIONS):
        raise DataError(f"{path}: no such file, or none of {', '.join(EXTENSIONS)}; check the path")
    return _parquet(path) if path.suffix == ".parquet" else _jsonl(path)


def _jsonl(path: Path) -> list[dict]:
    rows = []
    for number, offset, line in lines(path):
        text = decode(line, path, number, offset)
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); fetch the file again") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {type(row).__name__}; fetch the file again")
        rows.append(row)
    return rows


def _parquet(path: Path) -> list[dict]:
    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}); fetch the file again") from None


def _from_hub(dataset: str, subset: Optional[str], split: str) -> tuple[str, list[dict]]:
    import datasets                               # slow to import, and only this source needs it
    from huggingface_hub.errors import HfHubHTTPError

    name = "/".join(filter(None, (dataset, subset, split)))
    try:
        return name, list(datasets.load_dataset(dataset, subset, split=split))
    # The bases of HfHubHTTPError are OSError (missing datasets too) and the error of the HTTP library in use.
    except (RuntimeError, ValueError, OSError, *HfHubHTTPError.__bases__, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise DataError(f"{name}: not to be had from the hub ({reason}); check the network, or {REMEDY}") from None
