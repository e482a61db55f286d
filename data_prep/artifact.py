"""The manifest of a stage's output folder: written last, checked when read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

from data_prep.errors import DataError
from data_prep.files import replace_durably, sync


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Make every file of ``folder`` durable, then add ``manifest.json`` in one step.

    The manifest is written last, so a folder that has one has all its data.
    """
    for path in sorted(folder.iterdir()):
        sync(path)
    replace_durably(folder / "manifest.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_manifest(folder: Path, kind: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """The manifest of ``folder``; DataError when it is missing, torn or of another kind.

    ``kind`` names what was expected (for the message), ``keys`` are those it must have.
    """
    path = Path(folder) / "manifest.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing, so {folder} holds no finished {kind}; run that stage again") from None
    except ValueError as error:
        raise DataError(f"{path}: no readable JSON ({error}); run the stage that wrote the {kind} again") from None
    if not isinstance(content, dict) or content.get("version") != 1 or not all(key in content for key in keys):
        raise DataError(f"{path}: not the manifest of a {kind} (version 1); point to the folder that stage wrote")
    return content


def link_or_copy(path: Path, target: Path, say: Callable[[str], None]) -> None:
    """Give a finished file a second name (hard link); where the file system has no such links, copy it and say so."""
    try:
        os.link(path, target)
    except OSError as error:
        say(f"{target.name}: copied, since this file system cannot link files ({error.strerror}): it takes the space twice")
        shutil.copyfile(path, target)
