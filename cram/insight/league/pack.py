"""Rows of a ledger or of metrics as one short text, and back without a bit lost.

Rows become columns (those of an object inside a row too); numbers and times become differences where that gives back the very
same JSON; the whole is compressed (LZMA) and written in base 85, whose letters JSON leaves alone.
"""

from __future__ import annotations

import base64
import json
import lzma
import struct
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from typing import Any, Callable

from cram.errors import CramError

LARGEST = 256 * 2**20  # bytes that a packed text may unfold to: a card comes from a stranger
ABSENT: list = []      # where a row lacks a column
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def _bits(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


# How a column may become whole numbers, whose differences are small, and how they become the column again.
CODES: dict[str, tuple[Callable[[Any], int], Callable[[int], Any]]] = {
    "whole": (lambda value: value, lambda number: number),
    "micro": (lambda value: round(value * 1e6), lambda number: number / 1e6),
    "bits": (_bits, lambda number: struct.unpack("<d", struct.pack("<q", number))[0]),
    "time": (lambda text: round((datetime.fromisoformat(text) - EPOCH) / timedelta(milliseconds=1)),
             lambda number: (EPOCH + timedelta(milliseconds=number)).isoformat(timespec="milliseconds"))}
FOR = {int: ("whole",), float: ("micro", "bits"), str: ("time",)}


def pack(rows: list[dict]) -> str:
    """Rows of JSON values; none of them may be an empty list."""
    paths = dict.fromkeys(path for row in rows for path in _paths(row))
    table = [[path, *_shrink([_at(row, path) for row in rows])] for path in paths]
    return base64.b85encode(lzma.compress(_compact([len(rows), table]).encode())).decode()


def unpack(text: str) -> list[dict]:
    """What ``pack`` was given. Raises CramError for anything that it cannot have written."""
    try:
        opened = lzma.LZMADecompressor()
        content = opened.decompress(base64.b85decode(text), max_length=LARGEST)
        if not opened.eof:
            raise ValueError("cut off, or larger than any run")
        number, table = json.loads(content)
        rows: list[dict] = [{} for _ in range(number)]
        for path, code, values in table:
            for row, value in zip(rows, _grow(code, values), strict=True):
                if value != ABSENT:
                    (row if len(path) == 1 else row.setdefault(path[0], {}))[path[-1]] = value
        return rows
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError, struct.error, lzma.LZMAError) as error:
        raise CramError(f"packed rows are damaged ({error})") from error


def _paths(row: dict) -> list[tuple[str, ...]]:
    return [path for name, value in row.items()
            for path in ([(name, inner) for inner in value] if isinstance(value, dict) and value else [(name,)])]


def _at(row: dict, path: tuple[str, ...]) -> Any:
    value = row.get(path[0], ABSENT)
    if len(path) == 1:
        return ABSENT if isinstance(value, dict) and value else value
    return value.get(path[1], ABSENT) if isinstance(value, dict) else ABSENT


def _shrink(column: list) -> list:
    """[code, values]: differences where they are exact, else the column as it is."""
    kinds = {type(value) for value in column}
    for code in FOR.get(kinds.pop(), ()) if len(kinds) == 1 else ():
        try:
            numbers = [CODES[code][0](value) for value in column]
            made = [code, [after - before for before, after in zip([0, *numbers], numbers)]]
            if _compact(_grow(*made)) == _compact(column):
                return made
        except (ValueError, TypeError, OverflowError, struct.error):
            continue  # not such a column: a text that is no time, a number that is too large
    return ["as is", column]


def _grow(code: str, values: list) -> list:
    return values if code == "as is" else [CODES[code][1](number) for number in accumulate(values)]


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
