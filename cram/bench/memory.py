"""Memory of a process and all its children together, watched while it works (Linux).

A page that several processes share is counted once: the sum is of proportional set sizes (``Pss`` of
``/proc/<pid>/smaps_rollup``: private pages and an equal share of the shared ones). Between two looks a peak can hide;
they are 100 ms apart.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Optional

from cram.bench.measure import Unavailable

PROC = Path("/proc")
EVERY = 0.1         # seconds


def tree(root: int) -> list[int]:
    """The process ``root`` and its children, their children and so on; those that are gone meanwhile are left out."""
    children: dict[int, list[int]] = {}
    for folder in PROC.iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()     # the name before may hold anything
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, waiting = [], [root]
    while waiting:
        process = waiting.pop()
        found.append(process)
        waiting += children.get(process, [])
    return found


def proportional_bytes(process: int) -> int:
    """Proportional set size of one process; 0 for one that has ended."""
    try:
        lines = (PROC / str(process) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class TreeMemory:
    """``with TreeMemory(pid) as memory:`` peaks of the tree below a process. Unavailable where /proc does not tell.

    part: what the process works on at the moment, set by whoever knows. peaks: bytes of all processes together, by part.
    largest: bytes of the largest process.
    """

    def __init__(self, root: int, every: float = EVERY):
        if not (PROC / "self" / "smaps_rollup").exists():
            raise Unavailable("memory of several processes is read from /proc/<pid>/smaps_rollup, which is only there on Linux")
        self.part, self.largest, self.looks = "", 0, 0
        self.peaks: dict[str, int] = {}
        self._root, self._every, self._end = root, every, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def peak(self) -> int:
        """Most bytes of all processes together."""
        return max(self.peaks.values(), default=0)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: Optional[type], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.is_set():
            began, part = time.monotonic(), self.part
            sizes = [proportional_bytes(process) for process in tree(self._root)]
            self.peaks[part] = max(self.peaks.get(part, 0), sum(sizes))
            self.largest, self.looks = max(self.largest, *sizes), self.looks + 1
            self._end.wait(max(0.0, self._every - (time.monotonic() - began)))
