"""Rows of a ledger or of metrics as one short text, and back without a bit lost.

Rows become columns; numbers become differences where that gives back the very same JSON; the whole is compressed (LZMA) and
written in base 85, whose letters JSON leaves alone.
"""

from __future__ import annotations

import base64
import json
import lzma
from typing import Any

from cram.errors import CramError

LARGEST = 256 * 2**20  # bytes that a packed text may unfold to: a card comes from a stranger
MICRO = 1_000_000      # the ledger's seconds have six digits
ABSENT: list = []      # where a row lacks a column


def pack(rows: list[dict]) -> str:
    """Rows of JSON values; none of them may be an empty list."""
    names = sorted({name for row in rows for name in row})
    table = {name: _shrink([row.get(name, ABSENT) for row in rows]) for name in names}
    return base64.b85encode(lzma.compress(_compact([len(rows), table]).encode())).decode()


def unpack(text: str) -> list[dict]:
    """What ``pack`` was given. Raises CramError for anything that it cannot have written."""
    try:
        opened = lzma.LZMADecompressor()
        content = opened.decompress(base64.b85decode(text), max_length=LARGEST)
        if not opened.eof:
            raise ValueError("cut off, or larger than any run")
        number, table = json.loads(content)
        columns = {name: _grow(*column) for name, column in table.items()}
        if not all(len(column) == number for column in columns.values()):
            raise ValueError("columns of different lengths")
        return [{name: column[i] for name, column in columns.items() if column[i] != ABSENT} for i in range(number)]
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError, lzma.LZMAError) as error:
        raise CramError(f"packed rows are damaged ({error})") from error


def _shrink(column: list) -> list:
    """[how, values]: the shortest way that is exact."""
    if all(type(value) in (int, float) for value in column):
        for unit in (1, MICRO):
            scaled = [round(value * unit) for value in column]
            made = [f"/{unit}" if type(column[-1]) is float else "", [after - before for before, after in
                                                                     zip([0, *scaled], scaled)]]
            if _compact(_grow(*made)) == _compact(column):
                return made
    return ["as is", column]


def _grow(how: str, values: list) -> list:
    if how == "as is":
        return values
    grown, total = [], 0
    for value in values:
        total += value
        grown.append(total / int(how[1:]) if how else total)
    return grown


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
