"""Result folders on disk: complete or absent, never half-written; locked while one process writes them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

from cram.errors import CramError
from data_prep.files import file_hash, replace_durably, sync

RECORD = "stage.json"       # written last: the proof that a folder is complete
STARTED = "started.json"    # of a resumable stage: what it is a result of, while it is incomplete
FORMAT = 1


class Damage(Exception):
    """A file of a complete result is missing or has another size."""


def encode(value: dict) -> bytes:
    return json.dumps(value, indent=1, allow_nan=False).encode() + b"\n"


def read_record(folder: Path) -> Optional[dict]:
    """``stage.json`` of a complete result, else None."""
    return _read(folder / RECORD)


def read_identity(folder: Path) -> Optional[dict]:
    """What the result in ``folder`` (complete or, if resumable, begun) was made from, else None."""
    record = read_record(folder)
    return record["identity"] if record else _read(folder / STARTED)


def _read(path: Path) -> Optional[dict]:
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None  # an unreadable record proves nothing: the stage runs again
    return value if isinstance(value, dict) and value.get("format", FORMAT) == FORMAT else None


def check_sizes(folder: Path, record: dict) -> None:
    """Raise Damage for the first file that is missing or has another size than recorded."""
    for name, entry in record["files"].items():
        try:
            size = (folder / name).stat().st_size
        except FileNotFoundError:
            raise Damage(f"{name} is missing") from None
        if size != entry["bytes"]:
            raise Damage(f"{name} is {size} bytes, expected {entry['bytes']}")


def begin(folder: Path, identity: dict) -> None:
    """Mark the folder of a resumable stage as begun and incomplete."""
    folder.mkdir(exist_ok=True)
    replace_durably(folder / STARTED, encode(identity))
    (folder / RECORD).unlink(missing_ok=True)


def seal(folder: Path, identity: dict, **notes) -> dict:
    """Make every file durable, then write ``stage.json`` with sizes, hashes and the digest of them all."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (RECORD, STARTED):
            sync(path)
            files[name] = {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)}
    for path in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(path)
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    record = {"format": FORMAT, "identity": identity, "digest": digest, "files": files, **notes}
    replace_durably(folder / RECORD, encode(record))
    (folder / STARTED).unlink(missing_ok=True)
    return record


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """An empty working folder beside ``folder``, gone at the end unless ``swap_in`` took it. Hold the lock."""
    work = folder.with_name(f".{folder.name}.tmp")
    work.mkdir()
    try:
        yield work
    finally:
        if work.exists():
            shutil.rmtree(work)


def swap_in(work: Path, folder: Path) -> None:
    """Put the complete ``work`` in the place of ``folder``; ``sweep`` mends a crash in between."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(work, folder)
    sync(folder.parent)
    if old.exists():
        shutil.rmtree(old)


def sweep(artifacts: Path) -> None:
    """Clear what crashes left: unfinished work is removed, a result caught between two renames is brought back."""
    for left in [*artifacts.glob(".*.tmp"), *artifacts.glob(".*.old")]:
        folder = artifacts / left.name[1:-len(".tmp")]
        if writer(folder) is not None:
            continue
        with lock(folder):
            if left.suffix == ".old" and not folder.exists():
                os.replace(left, folder)
            elif left.exists():
                shutil.rmtree(left)


def remove(folder: Path) -> None:
    """Remove a result; its record goes first, so that what a crash leaves of it is not taken for complete."""
    (folder / RECORD).unlink(missing_ok=True)
    shutil.rmtree(folder)


def forget_if_empty(folder: Path) -> None:
    """Remove the folder of a resumable stage that ended before it made anything."""
    if [path.name for path in folder.iterdir()] == [STARTED]:
        shutil.rmtree(folder)


def move_aside(folder: Path) -> Path:
    """Rename ``folder`` to the first free ``<folder>.replaced-<n>`` and return that name."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
        number += 1
    os.replace(folder, aside)
    return aside


def link(folder: Path, name: Path) -> None:
    """Point the relative symbolic link ``name`` to ``folder``, atomically."""
    target = os.path.relpath(folder, name.parent)
    if name.is_symlink() and os.readlink(name) == target:
        return
    if name.exists() and not name.is_symlink():
        raise CramError(f"{name}: is in the way of a link to {folder}; move it, or choose another name=...")
    temporary_link = name.with_name(f".{name.name}.{os.getpid()}")
    temporary_link.unlink(missing_ok=True)
    os.symlink(target, temporary_link)
    os.replace(temporary_link, name)


def prepare_folders(*folders: Path) -> None:
    """Create the folders and make sure that they can be written. Raises CramError."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CramError(f"{folder}: cannot write there ({error.strerror}); choose another folder with out=...") from error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the only right to write ``folder``. Raises CramError naming the process that has it."""
    locks = folder.parent / ".locks"
    locks.mkdir(exist_ok=True)
    with open(locks / folder.name, "a+") as file:
        if not _take(file, fcntl.LOCK_EX):
            file.seek(0)
            raise CramError(f"{folder}: process {file.read().strip() or 'unknown'} is writing it; "
                            "wait until it ends, or stop it")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def writer(folder: Path) -> Optional[str]:
    """The id of the process that is writing ``folder`` now, or None."""
    try:
        with open(folder.parent / ".locks" / folder.name) as file:
            return None if _take(file, fcntl.LOCK_SH) else file.read().strip() or "unknown"
    except FileNotFoundError:
        return None


def _take(file, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
