"""The documents of a text folder with their fates, down to the rule on tokens per character, which packing applies."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import numpy as np
import xxhash

from data_prep.errors import DataError
from data_prep.measured import Parts
from data_prep.pack_part import ratio_file, shard_name, within
from data_prep.text import TRAIN, VALIDATION, read_split

RULE, STATISTIC = "max_tokens_per_char", "tokens_per_char"
KEYS = ("funnel", "edits", "fates", "parts", "source", "statistics")
AT_A_TIME = 1024


class Decided(Parts):
    """The parts of a text folder, with ``fates`` (names) and ``fate`` (uint8 [documents], index into them).

    for_training: int64 [documents], those that the text stage gave to packing for training.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, "prepared text", KEYS)
        self.fates: list[str] = list(self.manifest["fates"])
        self.fate = np.concatenate([np.zeros(0, np.uint8), *(self._fate(number) for number in range(len(self.parts)))])
        self.for_training = np.flatnonzero(self.fate == TRAIN)
        self._added: dict[str, np.ndarray] = {}

    @property
    def kept(self) -> np.ndarray:
        """bool [documents]"""
        return self.fate <= VALIDATION

    def apply_token_rule(self, data_dir: Path, threshold: float) -> dict[str, Any]:
        """Give what packing dropped the fate RULE, and all documents the column STATISTIC; returns the rule's account.

        The column is float32 [documents], NaN for documents that packing did not judge: those that were dropped before,
        and those of held-out files. Raises DataError when a file of numbers is missing or damaged.
        """
        found = [_read_ratios(data_dir, shard_name(number), part["train_documents"]) for number, part in enumerate(self.parts)]
        ratios = np.full(len(self), np.nan, np.float32)
        ratios[self.for_training] = np.concatenate([np.zeros(0, np.float32), *found])
        if not self.manifest.get("validation_from_files", False):
            held_out = np.flatnonzero(self.fate == VALIDATION)
            ratios[held_out] = self._ratios_held_out(data_dir, held_out)
        dropped = ~np.isnan(ratios) & ~within(ratios, threshold)
        self.fates.append(RULE)
        self.fate[dropped] = len(self.fates) - 1
        self._added[STATISTIC] = ratios
        return {"rule": RULE, "statistic": STATISTIC, "threshold": threshold, "beyond": int(dropped.sum()),
                "dropped": int(dropped.sum())}

    def names(self) -> list[str]:
        """The columns there are."""
        return [*super().names(), *self._added]

    def columns(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """The named columns, part by part."""
        stored = super().columns(*(name for name in names if name not in self._added))
        for low, high, columns in zip(self.first, self.first[1:], stored):
            yield columns | {name: self._added[name][low:high] for name in names if name in self._added}

    def rows(self, indices: np.ndarray, *names: str) -> list[dict[str, Any]]:
        """The named columns of a few documents, as plain values."""
        added = [name for name in names if name in self._added]
        rows = super().rows(indices, *(name for name in names if name not in self._added))
        return [row | {name: float(self._added[name][index]) for name in added} for row, index in zip(rows, indices)]

    def _ratios_held_out(self, data_dir: Path, indices: np.ndarray) -> np.ndarray:
        """Tokens per character of validation documents. They were packed in another order: found again by their text."""
        keys = [_key(text) for batch in read_split(self.folder, "validation") for text in batch.column("text").to_pylist()]
        by_text = dict(zip(keys, _read_ratios(data_dir, "validation-00000", len(keys))))
        found = [by_text.get(_key(row["text"])) for low in range(0, len(indices), AT_A_TIME)
                 for row in self.rows(indices[low:low + AT_A_TIME], "text")]
        if None in found:
            raise DataError(f"{self.folder / 'validation.parquet'}: is not what its fates say; run: cram text --force")
        return np.array(found, np.float32)

    def _fate(self, number: int) -> np.ndarray:
        path, documents = self.folder / f"fate-{number:05d}.npy", self.parts[number]["documents"]
        try:
            fate = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); run: cram text --force") from None
        if fate.shape != (documents,) or (documents and fate.max() >= len(self.fates)):
            raise DataError(f"{path}: does not fit the {documents:,} documents of its part; run: cram text --force")
        return fate


def _key(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


def _read_ratios(data_dir: Path, shard: str, documents: int) -> np.ndarray:
    """float32 [documents]: what packing wrote."""
    path = Path(data_dir) / ratio_file(shard)
    try:
        ratios = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read ({error}); run: cram data --force") from None
    if ratios.shape != (documents,):
        raise DataError(f"{path}: does not fit the {documents:,} documents of its shard; run: cram data --force")
    return ratios
