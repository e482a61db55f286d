"""A disk that is really full: a small file system in memory of our own, or, where none may be mounted, a limit on file size."""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Optional

from cram.bench.fault_runs import Process

MEGABYTES = 24
LIMIT = 100_000             # bytes a file: less than a checkpoint of these runs, more than what else they write by then
MOUNT = 'mount -t tmpfs -o size="$1" none "$2" && echo mounted && exec sleep 3600'


class SmallDisk:
    """A tmpfs of 24 MB in a mount namespace of its own, reached through /proc. It goes with the process that holds it.

    Attributes: place: folder on it; kind: what it is, in words.
    """

    def __init__(self, folder: Path):
        self._ballast: Optional[Path] = None
        self._limited: Optional[Process] = None
        folder.mkdir(parents=True, exist_ok=True)
        self.point = Path(tempfile.mkdtemp(dir=folder))
        self.holder = subprocess.Popen(["unshare", "-rm", "sh", "-c", MOUNT, "sh", f"{MEGABYTES}m", self.point],
                                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) \
            if shutil.which("unshare") else None
        self.place, self.kind = self.point, f"files limited to {LIMIT:,} bytes (no file system may be mounted here)"
        if self.holder is not None and self.holder.stdout.readline() == "mounted\n":
            self.place = Path(f"/proc/{self.holder.pid}/root{self.point.absolute()}")
            self.kind = f"tmpfs of {MEGABYTES} MB"
            self._ballast = self.place / "ballast"

    def fill(self, process: Optional[Process] = None, leave: int = 0) -> None:
        """Fill it to the last byte but ``leave``; without a file system, limit ``process``."""
        if self._ballast is None:
            if process is not None and process.running():
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
            return
        free = shutil.disk_usage(self.place).free - leave
        with open(self._ballast, "ab", buffering=0) as file:
            try:
                while free > 0:
                    free -= file.write(bytes(min(free, 4096)))
            except OSError:
                return  # full

    def empty(self) -> None:
        """Room again; a limited process keeps its limit."""
        if self._ballast is not None:
            self._ballast.unlink(missing_ok=True)

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *_) -> None:
        if self.holder is not None:
            self.holder.kill()
            self.holder.wait()
            self.holder.stdout.close()
        shutil.rmtree(self.point, ignore_errors=True)
