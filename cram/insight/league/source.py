"""The package's own source files, by their hashes: edited code shows on a card. Not those of ``cram.insight``, which look at
runs and have no part in making them."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

PACKAGES = {"cram": "cram", "data_prep": "data_prep", "kernels": "cram._kernels"}
SHOWN = 12  # hexadecimal digits of a file's hash


def source_files() -> dict[str, str]:
    """'cram/train.py' -> the first digits of its SHA-256, of every Python file that is installed here."""
    files = {}
    for name, package in PACKAGES.items():
        spec = importlib.util.find_spec(package)
        for folder in map(Path, spec.submodule_search_locations or [] if spec else []):
            for path in sorted(folder.rglob("*.py")):
                inside = path.relative_to(folder)
                if inside.parts[0] not in ("_kernels", "insight"):  # a wheel's kernels lie inside cram, and are listed apart
                    files[f"{name}/{inside.as_posix()}"] = hashlib.sha256(path.read_bytes()).hexdigest()[:SHOWN]
    return files


def edited(theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    """Files that are not the same in both."""
    return sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
