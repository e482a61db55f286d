"""Files that a crash leaves whole: durable, replaced in one step, and verified by their hash."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path``, fsync, rename over it, fsync the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def file_hash(path: Path) -> str:
    """xxh3-128 of a file's bytes, hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
