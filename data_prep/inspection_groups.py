"""Documents and bytes by where they come from or what they are: host, file, package, language."""

from __future__ import annotations

import re
from typing import Any, Callable

import numpy as np
import pyarrow as pa

from data_prep.measured import Parts

TOP, MOST = 40, 200_000                     # groups shown, and counted at a time
OTHERS = "(others)"


def place_of(origin: str) -> str:
    """The host name of a web address, the file of ``file:line``, the data set of ``set:row``."""
    if "://" in origin:
        return origin.split("/", 3)[2].rpartition("@")[2].partition(":")[0].lower() or "unknown"
    return re.sub(r"[:#]\d+$", "", origin) or "unknown"


def package_of(origin: str) -> str:
    """The package of a dotted name."""
    return re.split(r"[.:]", origin, maxsplit=1)[0]


def grouped(parts: Parts, kept: np.ndarray, column: str, name_of: Callable[[str], str]) -> list[dict[str, Any]]:
    """Documents and bytes, all and kept, by group, largest first; beyond the first TOP they are added up.

    kept: bool [documents]. Where groups are many the smallest so far are added up early: counts of rare ones can be too low.
    """
    groups: dict[str, np.ndarray] = {}
    for first, columns in zip(parts.first, parts.columns(column, "bytes")):
        keys = pa.array([name_of(value) for value in columns[column]], pa.string()).dictionary_encode()
        size, stays = columns["bytes"].astype(np.int64), kept[first:first + len(keys)]
        counts = np.stack([np.bincount(keys.indices, weights, len(keys.dictionary))
                           for weights in (np.ones(len(keys)), size, stays, size * stays)], axis=1).astype(np.int64)
        for key, count in zip(keys.dictionary.to_pylist(), counts):
            groups[key] = groups.get(key, 0) + count
        if len(groups) > MOST:
            groups = _largest(groups, MOST // 2)
    units = ("documents", "bytes", "kept_documents", "kept_bytes")
    return [{"name": key, **dict(zip(units, count.tolist()))} for key, count in _largest(groups, TOP).items()]


def _largest(groups: dict[str, np.ndarray], limit: int) -> dict[str, np.ndarray]:
    others = groups.pop(OTHERS, 0)
    order = sorted(groups, key=lambda key: (-groups[key][1], key))
    others = sum((groups[key] for key in order[limit:]), others)
    return {key: groups[key] for key in order[:limit]} | ({OTHERS: others} if np.any(others) else {})
