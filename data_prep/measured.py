"""Reader of what the measure stage wrote: columns of all documents, and texts by their index."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.artifact import read_manifest
from data_prep.errors import DataError


class Parts:
    """Documents in parts, numbered from 0 in reading order; held-out files come first.

    manifest (dict); parts (list of entries); first (int64 [parts + 1]: first document of each part, and the end).
    """

    def __init__(self, folder: Path, what: str, keys: tuple[str, ...]):
        """what: the stage's result, for messages; keys: what the manifest must have. DataError when it has not."""
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, what, keys)
        self.parts: list[dict[str, Any]] = self.manifest["parts"]
        self.first = np.cumsum([0, *(part["documents"] for part in self.parts)])

    def __len__(self) -> int:
        return int(self.first[-1])

    def names(self) -> list[str]:
        """The columns there are."""
        return pq.read_schema(self.folder / self.parts[0]["file"]).names if self.parts else []

    def columns(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """The named columns, part by part. DataError when a part is damaged."""
        for part in self.parts:
            table = self._read(part, list(names))
            yield {name: table.column(name).to_numpy() for name in names}

    def column(self, name: str) -> np.ndarray:
        """One column of all documents, [documents]."""
        whole = np.zeros(0, np.int64)
        for first, columns in zip(self.first, self.columns(name)):
            if first == 0:
                whole = np.empty(len(self), columns[name].dtype)        # filled in place: no moment holds it twice
            whole[first:first + len(columns[name])] = columns[name]
        return whole

    def rows(self, indices: np.ndarray, *names: str) -> list[dict[str, Any]]:
        """The named columns of a few documents (int64, any order, repeats allowed) as plain values, in that order.

        Reads the row groups they lie in, no more.
        """
        wanted, back = np.unique(indices, return_inverse=True)
        found: list[dict[str, Any]] = []
        for part, low, high in zip(self.parts, self.first, self.first[1:]):
            inside = wanted[(wanted >= low) & (wanted < high)] - low
            if len(inside):
                found += self._take(part, inside, list(names))
        return [found[index] for index in back]

    def _take(self, part: dict[str, Any], rows: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
        try:
            with pq.ParquetFile(self.folder / part["file"]) as file:
                sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
                first = np.cumsum([0, *sizes])
                groups = np.unique(np.searchsorted(first, rows, side="right") - 1)
                table = file.read_row_groups(groups.tolist(), columns=names)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(part, error) from None
        position = np.concatenate([np.arange(first[group], first[group + 1]) for group in groups])
        return table.take(pa.array(np.searchsorted(position, rows))).to_pylist()

    def _read(self, part: dict[str, Any], names: list[str]) -> pa.Table:
        try:
            table = pq.read_table(self.folder / part["file"], columns=names)
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(part, error) from None
        if len(table) != part["documents"]:
            raise DataError(f"{self.folder / part['file']}: has {len(table):,} documents, its manifest says "
                            f"{part['documents']:,}; run: cram measure --force")
        return table

    def _damaged(self, part: dict[str, Any], error: Exception) -> DataError:
        path, reason = self.folder / part["file"], str(error).splitlines()[0]
        return DataError(f"{path}: cannot be read ({reason}); run: cram measure --force")


class Measured(Parts):
    """The measured documents; held (bool [documents]): from data.validation_files."""

    def __init__(self, folder: Path):
        super().__init__(folder, "measured text", ("account", "edits", "parts", "source"))
        self.held = np.repeat(np.array([part["held_out"] for part in self.parts], bool), np.diff(self.first))
