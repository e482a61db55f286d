"""What Linux tells about memory; None where it does not."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Optional


def resident_bytes() -> Optional[int]:
    """Memory this process holds now; its high-water mark is set back to that. None where /proc does not tell."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def resident_peak() -> Optional[int]:
    """The most it has held since."""
    return _status("VmHWM")


def _status(name: str) -> Optional[int]:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def available_bytes() -> Optional[int]:
    """Memory that a program may still take, under the limit of its control group too; None where Linux does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    limit = group_limit()
    return free if limit is None or free is None else min(free, limit)


def physical_bytes() -> Optional[int]:
    """The machine's memory, or the limit of the control group."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    total = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal")), None)
    limit = group_limit()
    return total if limit is None or total is None else min(total, limit)


def group_limit() -> Optional[int]:
    """Bytes that the control group (v2, v1) allows; None without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < 2**60:
            return int(text)
    return None
