"""Which documents contain pieces of evaluation sets: shared 13-grams of terms.

As GPT-3 (Brown et al. 2020, appendix C): 13 consecutive words, lower-cased, without punctuation. GPT-3 cut the shared
passage out of the text; here a rule drops the whole document (data.filters.max_contaminated_ngrams). Every string in a
row of an evaluation set is an item, also within lists and objects. Items of fewer than 13 terms cannot be compared;
they are counted.

The sets' n-grams are a sorted array of 64-bit hashes. A table of bits says of most n-grams of the text at once that
they are not in it; the rest are searched for.
"""

from __future__ import annotations

import functools
import glob
import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.blocks import Block, cut
from data_prep.errors import DataError
from data_prep.files import replace_durably
from data_prep.shingles import document_ngrams, inside
from data_prep.sources.batches import batched
from data_prep.sources.files import kind
from data_prep.sources.hub import EXTENSIONS
from data_prep.sources.streams import decode, lines

NGRAM = 13


@dataclass(frozen=True)
class EvaluationSets:
    """hashes: uint64 [n], sorted, each once. owners: int16 [n], the first set that has the n-gram.

    sets: for each, its name, files, items, items too short to compare, and different n-grams.
    """

    hashes: np.ndarray
    owners: np.ndarray
    sets: list[dict[str, Any]]

    def summary(self) -> list[dict[str, Any]]:
        """One row a set, for a manifest."""
        return self.sets

    def save(self, path: Path) -> None:
        """Write to a file (numpy's npz); the same sets give the same bytes."""
        about = np.frombuffer(json.dumps(self.sets, ensure_ascii=False).encode("utf-8"), np.uint8)
        content = io.BytesIO()
        np.savez(content, hashes=self.hashes, owners=self.owners, sets=about)
        replace_durably(Path(path), content.getvalue())

    @functools.cached_property
    def _bits(self) -> tuple[np.uint64, np.ndarray]:
        """(how many leading bits of a hash to drop, uint8 table of 16 bits or more an n-gram)."""
        width = max(10, (16 * len(self.hashes)).bit_length())
        drop = np.uint64(64 - width)
        table = np.zeros(1 << (width - 3), np.uint8)
        index = self.hashes >> drop
        np.bitwise_or.at(table, index >> np.uint64(3), np.left_shift(1, index & np.uint64(7), dtype=np.uint64).astype(np.uint8))
        return drop, table

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [hits] which of ``hashes`` (uint64 [m]) belong to a set, in order; int16 [hits] which set)."""
        drop, table = self._bits
        index = hashes >> drop
        likely = np.flatnonzero(table[index >> np.uint64(3)] >> (index & np.uint64(7)).astype(np.uint8) & np.uint8(1))
        place = np.searchsorted(self.hashes, hashes[likely])
        place[place == len(self.hashes)] = 0
        found = self.hashes[place] == hashes[likely] if len(self.hashes) else np.zeros(0, bool)
        return likely[found], self.owners[place[found]]


def open_sets(path: Path) -> EvaluationSets:
    """What ``EvaluationSets.save`` wrote; DataError when it is missing or damaged."""
    try:
        with np.load(path) as arrays:
            return EvaluationSets(arrays["hashes"], arrays["owners"], json.loads(arrays["sets"].tobytes()))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; run: cram measure --force") from None
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError, OSError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); run: cram measure --force") from None


def load(names: list[str], mirror: Optional[str]) -> EvaluationSets:
    """Read the evaluation sets of ``data.decontaminate``; DataError for a name that is nothing or holds no text.

    A name is a file, a pattern or a folder (searched to the bottom), else a folder or file in ``mirror``.
    """
    sets, hashes = [], [np.zeros(0, np.uint64)]
    for name in dict.fromkeys(names):
        paths = find(name, mirror)
        found, items, short = _ngrams_of(paths)
        if not items:
            raise DataError(f"data.decontaminate: {name} holds no text; name files with strings in their rows")
        sets.append({"set": name, "files": len(paths), "items": items, "short_items": short, "ngrams": len(found)})
        hashes.append(found)
    owners = np.repeat(np.arange(len(sets)), [len(each) for each in hashes[1:]])
    unique, first = np.unique(np.concatenate(hashes), return_index=True)
    return EvaluationSets(unique, owners[first].astype(np.int16), sets)


def find(name: str, mirror: Optional[str]) -> list[Path]:
    """The files of an evaluation set, sorted; DataError when there are none."""
    found = [Path(name)] if Path(name).exists() else [Path(match) for match in glob.glob(name, recursive=True)]
    if not found and mirror is not None:
        plain = [Path(mirror) / f"{name}{extension}" for extension in ("", *EXTENSIONS)]
        found = [path for path in plain if path.exists()][:1]
    files = {file for path in found for file in (path.rglob("*") if path.is_dir() else [path])
             if path.is_file() or file.is_file() and file.name.endswith(EXTENSIONS)}
    if not files:
        where = f" nor in data.mirror={mirror}" if mirror is not None else "; data.mirror is not set"
        what = "a folder without " + ", ".join(EXTENSIONS) if found else "no file or folder"
        raise DataError(f"data.decontaminate: {name} is {what}{'' if found else where}; correct the name")
    return sorted(files)


def _ngrams_of(paths: list[Path]) -> tuple[np.ndarray, int, int]:
    """(different n-grams uint64, items, items too short) of the files."""
    found, items, short = [np.zeros(0, np.uint64)], 0, 0
    for batch in batched((text, "") for path in paths for text in _items(path) if text.strip()):
        for block in cut(batch.column("text").to_pylist()):
            found.append(np.unique(document_ngrams(block, NGRAM)[0]))
            items += len(block)
            short += int((block.terms.counts < NGRAM).sum())
    return np.unique(np.concatenate(found)), items, short


def _items(path: Path) -> Iterator[str]:
    if kind(path) == "parquet":
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=512):
                    yield from strings(batch.to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); copy it again") from None
        return
    is_json = kind(path) == "jsonl"
    for number, offset, line in lines(path):
        text = decode(line, path, number, offset).removeprefix("\ufeff")
        try:
            yield from strings(json.loads(text) if is_json and text.strip() else text)
        except (json.JSONDecodeError, RecursionError):
            raise DataError(f"{path}: line {number} is no JSON; an evaluation set has one JSON object a line") from None


def strings(value: Any) -> Iterator[str]:
    """Every string in a value of JSON or Arrow; keys do not count."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def _hits(block: Block, sets: EvaluationSets) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document int64, first term int64, set int16) of each place in the block where an n-gram of a set stands."""
    hashes, first = document_ngrams(block, NGRAM)
    places, owners = sets.find(hashes)
    document = np.searchsorted(first, places, side="right") - 1
    return document, inside(block.terms, NGRAM)[0][places], owners


def contamination(block: Block, sets: EvaluationSets) -> np.ndarray:
    """int32 [documents]: places where an n-gram of a set stands."""
    return np.bincount(_hits(block, sets)[0], minlength=len(block)).astype(np.int32)


def columns(block: Block, sets: EvaluationSets) -> dict[str, np.ndarray]:
    """contaminated_ngrams (int32), contaminated_by and contaminated_example (str; "": none) [documents]."""
    counts = contamination(block, sets)
    by, example = np.full(len(block), "", object), np.full(len(block), "", object)
    for index in np.flatnonzero(counts):
        by[index], example[index] = evidence(block.texts[index], sets, 1)[0]
    return {"contaminated_ngrams": counts, "contaminated_by": by, "contaminated_example": example}


def evidence(text: str, sets: EvaluationSets, limit: Optional[int] = None) -> list[tuple[str, str]]:
    """(set, shared n-gram as it stands in the text) of each hit in a document, in order; at most ``limit`` of them."""
    block = Block([text])
    _, places, owners = _hits(block, sets)
    starts, ends = block.terms.starts[places], block.terms.ends[places + NGRAM - 1]
    return [(sets.sets[owner]["set"], block.text[start:end].tobytes().decode("utf-8"))
            for start, end, owner in list(zip(starts, ends, owners))[:limit]]
