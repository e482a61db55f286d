"""Honest timing: competitors take turns, caches are cold, spread is told, failures are written down.

**Turns.** In every round each competitor is timed once, so whatever drifts (clocks, heat, neighbours) meets all
of them alike. Compilation and everything else that happens once is paid in warm-up calls, whose seconds are told
apart.

**On a card** time is what the device needs between two events. Before each timed call 256 MB are written, more than
any L2 cache holds, so that nobody finds its inputs ready there. Python must not be the bottleneck: before a turn the
device is put to sleep for as long as launching takes, so that it finds its whole queue filled when it wakes.

A competitor is a function that gets ready and returns what is timed: for a backward pass it runs the forward pass
and returns the call of autograd, each time on a graph of its own.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Hashable, Iterator, NamedTuple, Optional

import torch

from cram import __version__
from cram.errors import CramError
from data_prep.errors import DataError

Ready = Callable[[], Callable[[], object]]

FLUSH_BYTES = 256 * 2**20
TURN_SECONDS, MOST_CALLS = 2e-3, 8       # a turn on a card: so many calls that the device is busy this long, but not more
CYCLES_PER_SECOND, LONGEST_SLEEP = 2e9, 0.2  # cards run at 1 to 2 GHz: a sleep lasts at least as long as asked
SOURCES = (":/cram", ":/kernels", ":/data_prep", ":/configs")


class Unavailable(Exception):
    """Why a competitor cannot take part here, in plain words."""


class Timing(NamedTuple):
    """Seconds of one call over ``rounds`` rounds; warm_up: seconds of all calls before, compilation included."""

    median: float
    least: float
    p25: float
    p75: float
    rounds: int
    warm_up: float

    @classmethod
    def of(cls, seconds: list[float], warm_up: float) -> Timing:
        p25, median, p75 = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
        return cls(median, min(seconds), p25, p75, len(seconds), warm_up)

    def milliseconds(self) -> dict[str, float]:
        """For a row: the median as ``ms``, and its spread."""
        return {"ms": 1e3 * self.median, "min": 1e3 * self.least, "p25": 1e3 * self.p25, "p75": 1e3 * self.p75}


class Pace(NamedTuple):
    """What the warm-up found: its own seconds, calls in a turn, seconds to sleep before one."""

    seconds: float
    calls: int = 1
    sleep: float = 0.0


def attempt(function: Callable, *arguments) -> tuple[Any, Optional[str]]:
    """(what it returns, None), or (None, why it failed): the failure of a competitor is a result, whatever it is."""
    try:
        return function(*arguments), None
    except Exception as error:
        return None, describe(error)


def describe(error: Exception) -> str:
    """One line: kind and first line of the message; of a refusal in plain words the message alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if isinstance(error, (Unavailable, CramError, DataError)):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}"[:240]


def race(competitors: dict[Hashable, Ready], timer, rounds: int, warm_up: int = 3) -> dict[Hashable, Timing | str]:
    """Each competitor's timing, or the reason why it has none. timer: ``HostTimer`` or ``CudaTimer``."""
    errors: dict[Hashable, str] = {}
    paces: dict[Hashable, Pace] = {}
    seconds: dict[Hashable, list[float]] = {name: [] for name in competitors}
    for name, ready in competitors.items():
        paces[name], error = attempt(timer.warm_up, ready, warm_up)
        if error is not None:
            errors[name] = error
    for _ in range(rounds):
        for name in [name for name in competitors if name not in errors]:
            value, error = attempt(timer.turn, competitors[name], paces[name])
            if error is None:
                seconds[name].append(value)
            else:
                errors[name] = error
    return {name: errors.get(name) or Timing.of(seconds[name], paces[name].seconds) for name in competitors}


class HostTimer:
    """Wall-clock time of a whole call, on a card until the device has finished."""

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.perf_counter):
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.clock = clock

    def warm_up(self, ready: Ready, calls: int) -> Pace:
        started = self.clock()
        for _ in range(calls):
            ready()()
            self.wait()
        return Pace(self.clock() - started)

    def turn(self, ready: Ready, pace: Pace) -> float:
        call = ready()
        self.wait()
        started = self.clock()
        call()
        self.wait()
        return self.clock() - started


class CudaTimer(HostTimer):
    """Time of a call on the device, from cold caches, however long Python takes to launch it."""

    def __init__(self):
        super().__init__("cuda")
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def warm_up(self, ready: Ready, calls: int) -> Pace:
        paid = super().warm_up(ready, calls).seconds
        started = self.clock()
        start, end = self._enqueue(ready)
        launching = self.clock() - started
        self.wait()
        turns = round(TURN_SECONDS / max(start.elapsed_time(end) / 1e3, 1e-6))
        calls = min(max(turns, 1), MOST_CALLS)
        return Pace(paid + self.clock() - started, calls, min(1.5 * calls * launching, LONGEST_SLEEP))

    def turn(self, ready: Ready, pace: Pace) -> float:
        """Median over the calls of a turn."""
        self.wait()
        torch.cuda._sleep(int(pace.sleep * CYCLES_PER_SECOND))
        events = [self._enqueue(ready) for _ in range(pace.calls)]
        self.wait()
        return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3

    def _enqueue(self, ready: Ready) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        call = ready()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        call()
        end.record()
        return start, end


@contextlib.contextmanager
def no_silent_fallback() -> Iterator[None]:
    """torch.compile gives up after a few recompilations and goes on uncompiled; here it may recompile more often and
    fails when that is not enough."""
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield


def environment(device: str) -> dict[str, Any]:
    """Where a measurement was made: device, driver, versions, threads, commit, date."""
    facts = {"device": device, "name": _processor(), "threads": torch.get_num_threads(), "system": platform.platform(),
             "python": platform.python_version(), "torch": torch.__version__, "triton": _version("triton"),
             "cram": __version__, **_commit(),
             "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts |= {"name": card.name, "capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count,
                  "memory_bytes": card.total_memory, "cuda": torch.version.cuda, "driver": _driver()}
    return facts


def _processor() -> str:
    """The processor's name as Linux tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> Optional[str]:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> Optional[str]:
    import pynvml
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def _commit() -> dict[str, Any]:
    """The commit of cram's own checkout and whether files differ from it; both None for an installed copy."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> Optional[str]:
        try:
            return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if not git("ls-files", "../__init__.py"):  # no git, no checkout, or the checkout of something else
        return {"commit": None, "changed": None}
    return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", *SOURCES))}
