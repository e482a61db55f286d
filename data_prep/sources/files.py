"""Local files: txt, jsonl, parquet; txt and jsonl also as .gz, .xz, .zst.

* jsonl (or json with one object a line): one document a line, in ``data.text_field``.
* parquet: one document a row, in ``data.text_field``.
* txt: one document a file. A file of more than a million characters is a book or a whole corpus, longer
  than any context and too coarse for a split: it is cut into documents at the first blank line after
  every 64,000 characters (after 256,000 at any line end, or within a line that has none).

A null text counts as an empty document (dropped and counted later); a row without the field is an error.
"""

from __future__ import annotations

import glob
import itertools
import json
from pathlib import Path
from typing import Any, Iterator, Optional

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import DataError
from data_prep.sources.batches import batched
from data_prep.sources.streams import COMPRESSIONS, MAX_LINE_BYTES, Position, TextDecoder, cannot_read, lines

WHOLE_CHARS = 1_000_000
PIECE_CHARS = 64_000


def expand(patterns: list[str], key: str = "data.files") -> list[Path]:
    """Paths matching the patterns of ``key``, sorted, each once; DataError for a pattern without a match."""
    if not patterns:
        raise DataError(f"{key} is empty; name files, as in {key}=[texts/*.jsonl]")
    found: set[Path] = set()
    for pattern in patterns:
        matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
        if not matches:
            what = "no file matches" if glob.has_magic(pattern) else "no such file:"
            raise DataError(f"{key}: {what} {pattern} (working directory {Path.cwd()}); correct the path")
        found.update(matches)
    return sorted(found)


def kind(path: Path) -> str:
    """'txt', 'jsonl' or 'parquet' from the file's name; DataError otherwise."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    last = suffixes[-2 if compressed else -1] if len(suffixes) > compressed else ""
    name = {".txt": "txt", ".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}.get(last)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name the files in it, as in {path}/*.jsonl")
    if name is None or (name == "parquet" and compressed):
        raise DataError(f"{path}: unknown kind of file; known are .txt and .jsonl (also .gz .xz .zst) and .parquet")
    return name


def read_files(paths: list[Path], text_field: str, decoder: Optional[TextDecoder] = None) -> Iterator[pa.RecordBatch]:
    """Batches of all documents of the files, in the given order.

    decoder: decides on bytes that are no UTF-8 (data.invalid_utf8) and counts them while the batches are read; None
    refuses them. Parquet has no use for it: its strings are UTF-8 by definition, and others are refused.
    """
    readers = {"txt": _txt, "jsonl": _jsonl, "parquet": _parquet}
    plan = [(path, readers[kind(path)]) for path in paths]        # refuse unknown kinds before reading any
    decoder = decoder or TextDecoder()
    decoder.position = Position(paths)
    return batched(document for path, reader in plan for document in reader(path, text_field, decoder))


def describe(paths: list[Path]) -> list[dict[str, Any]]:
    """Provenance: name and size of every file."""
    return [{"file": str(path), "bytes": path.stat().st_size} for path in paths]


def _txt(path: Path, text_field: str, decoder: TextDecoder) -> Iterator[tuple[str, str]]:
    pieces = _pieces(path, decoder)
    first: list[str] = []
    chars = 0
    for piece in pieces:
        first.append(piece)
        chars += len(piece)
        if chars > WHOLE_CHARS:
            break
    else:
        if first:
            yield "".join(first), str(path)
        return
    for number, piece in enumerate(itertools.chain(first, pieces), 1):
        yield piece, f"{path}#{number}"


def _pieces(path: Path, decoder: TextDecoder) -> Iterator[str]:
    """The text of a file in pieces that join to the whole, cut as the module says."""
    piece: list[str] = []
    chars = 0
    for number, offset, line in lines(path, PIECE_CHARS, decoder.position):
        text = decoder.decode(line, path, number, offset)
        piece.append(text)
        chars += len(text)
        if chars >= PIECE_CHARS and not text.strip() or chars >= 4 * PIECE_CHARS:
            yield "".join(piece)
            piece, chars = [], 0
    if piece:
        yield "".join(piece)


def _jsonl(path: Path, text_field: str, decoder: TextDecoder) -> Iterator[tuple[str, str]]:
    for number, offset, line in lines(path, position=decoder.position):
        if len(line) >= MAX_LINE_BYTES:
            raise DataError(f"{path}: line {number} is longer than {MAX_LINE_BYTES:,} bytes; jsonl has one document a line")
        text = decoder.decode(line, path, number, offset)
        if number == 1:
            text = text.removeprefix("\ufeff")
        if not text or text.isspace():
            continue
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(f"{path}: line {number} is no JSON ({reason}); jsonl has one JSON object a line") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}: line {number} is a JSON {type(row).__name__}, not an object; "
                            f'jsonl has one object a line, as in {{"{text_field}": "..."}}')
        if text_field not in row:
            raise missing_field(f"{path}: line {number}", text_field, list(row))
        value = row[text_field]
        yield value if type(value) is str else as_text(value, f"{path}: line {number}", text_field), f"{path}:{number}"


def _parquet(path: Path, text_field: str, decoder: TextDecoder) -> Iterator[tuple[str, str]]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise missing_field(str(path), text_field, file.schema_arrow.names)
            decoder.position.enter(lambda: row * path.stat().st_size // max(file.metadata.num_rows, 1))
            for batch in file.iter_batches(batch_size=512, columns=[text_field]):
                for value in _values(batch.column(0), path, row, text_field):
                    yield value if type(value) is str else as_text(value, f"{path}: row {row}", text_field), f"{path}:{row}"
                    row += 1
            decoder.position.leave()
    except pa.ArrowException as error:
        raise DataError(f"{path}: damaged or no parquet file, after row {row} ({_first_line(error)}); copy it again") from None
    except OSError as error:
        if error.errno is None:          # Arrow reports damaged pages as an OSError without a number
            raise DataError(f"{path}: damaged parquet file, after row {row} ({_first_line(error)}); copy it again") from None
        raise cannot_read(path, error) from None


def _values(column: pa.Array, path: Path, row: int, text_field: str) -> list[Any]:
    """The column as Python values; ``row`` is the number of its first one."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        pass
    for number, value in enumerate(column, row):                    # again, one by one, to name the row
        try:
            value.as_py()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: row {number}, byte {error.start}: invalid UTF-8 in the column {text_field!r}; "
                            f"write the file again with valid text") from None
    raise AssertionError("unreachable: a value could not be decoded before")


def missing_field(place: str, text_field: str, names: list[str]) -> DataError:
    """The DataError for a row or table without the text column."""
    return DataError(f"{place}: no field {text_field!r}; the fields are {', '.join(map(repr, names)) or 'none'}: "
                     f"set data.text_field to the one that holds the text")


def as_text(value: Any, place: str, text_field: str) -> str:
    """The value if it is a string, '' for null; DataError otherwise."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{place}: the field {text_field!r} holds {type(value).__name__}, not a string; "
                        f"set data.text_field to the one that holds the text")
    return value


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
