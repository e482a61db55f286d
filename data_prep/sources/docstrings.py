"""``installed-docs``: the documentation strings of installed Python packages.

Real prose with real junk and real duplicates, present on every machine. Packages are found, never
imported; what counts as a docstring is in docstring_parser.py. Test folders and files are skipped.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

from data_prep.errors import DataError
from data_prep.sources import docstring_parser
from data_prep.sources.docstring_parser import docstrings_of

TEST_FOLDERS = {"test", "tests", "testing"}
MIN_FILES_FOR_TWO = 200         # below this many files starting a second process costs more than it saves


@dataclass(frozen=True)
class Package:
    """An installed package: its import name, version and licence (None: unknown), and where its files lie."""

    name: str
    version: str | None
    roots: tuple[Path, ...]
    licence: str | None = None


def find_package(name: str) -> Package:
    """Locate a package without importing it; DataError when it is not installed as Python source.

    A dotted name (``torch.nn``) is the part of the package below that folder.
    """
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except ValueError:                       # a module that was put in sys.modules without a specification
        spec = None
    if spec is None:
        raise DataError(f"data.packages: {name!r} is not installed; install it with: pip install {top or 'NAME'}, "
                        f"or take it out of data.packages")
    folders = [Path(folder).joinpath(*rest) for folder in spec.submodule_search_locations or []]
    roots = [folder for folder in folders if folder.is_dir()]
    roots += [folder.with_suffix(".py") for folder in folders if rest and folder.with_suffix(".py").is_file()]
    if not spec.submodule_search_locations and not rest and str(spec.origin).endswith(".py"):
        roots = [Path(spec.origin)]
    if not roots:
        raise DataError(f"data.packages: {name!r} has no Python source to read; take it out of data.packages")
    try:
        metadata = importlib.metadata.metadata(top)
    except importlib.metadata.PackageNotFoundError:
        return Package(name, None, tuple(sorted(roots)))
    return Package(name, metadata["Version"], tuple(sorted(roots)), _licence(metadata))


def _licence(metadata: importlib.metadata.PackageMetadata) -> str | None:
    """As the package states it: a licence expression (PEP 639), the first line of the older field, or a classifier."""
    stated = metadata.get("License-Expression") or (metadata.get("License") or "").strip().partition("\n")[0]
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier", []) if line.startswith("License ::")]
    return stated or ", ".join(classifiers) or None


def source_files(package: Package) -> list[tuple[str, str]]:
    """(path, dotted module name) of the package's Python files, sorted by path, tests left out."""
    found = []
    for root in package.roots:
        prefix = package.name
        if root.is_file():
            found.append((str(root), prefix))
            continue
        for folder, below, files in os.walk(root):
            below[:] = [name for name in below if name not in TEST_FOLDERS]
            for file in files:
                if file.endswith(".py") and not file.startswith("test_") and file != "conftest.py":
                    parts = Path(folder, file).relative_to(root).with_suffix("").parts
                    parts = parts[:-1] if parts[-1] == "__init__" else parts
                    found.append((os.path.join(folder, file), ".".join((prefix, *parts))))
    return sorted(found)


def read_docstrings(packages: list[Package]) -> Iterator[tuple[str, str]]:
    """Yield (text, dotted name): packages in the given order, files sorted, docstrings in source order.

    Parsing takes the time, so two processes share the files, every other one each; they are read in
    turn, so the order is that of one process.
    """
    files = [file for package in packages for file in source_files(package)]
    if len(files) < MIN_FILES_FOR_TWO or (os.cpu_count() or 1) < 2:
        for file in files:
            yield from docstrings_of(*file)
        return
    workers = [_start(files[0::2]), _start(files[1::2])]
    try:
        for index in range(len(files)):
            line = workers[index % 2].stdout.readline()
            if not line:
                code = workers[index % 2].wait()
                raise DataError(f"data.packages: a process that reads docstrings ended early (exit code {code}) "
                                f"at {files[index][0]}; see that this file can be read and that memory is free")
            yield from map(tuple, json.loads(line))
    finally:
        for worker in workers:
            worker.stdout.close()        # a worker that still writes (data.max_bytes was reached) ends by this
            worker.wait()


def _start(files: list[tuple[str, str]]) -> subprocess.Popen:
    """A process that parses the files in order. A fresh one: forking a process that runs threads can deadlock."""
    worker = subprocess.Popen([sys.executable, "-I", docstring_parser.__file__], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    worker.stdin.write(json.dumps(files).encode())
    worker.stdin.close()
    return worker
