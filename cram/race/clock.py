"""One program, alone, against the clock: from the start of its process to its end, with every line that it says.

Nothing is exempt inside: imports, building the model, compilation, steps, its own validation, saving. What is exempt is done
by other processes, before or after. Threads are fixed by the environment and, on the CPU, the process is held on as many
cores (``taskset``), so that nobody gets more by asking for more.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Mapping, NamedTuple, Optional, Sequence

LAST_LINES = 20
DISTRIBUTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")


class Command(NamedTuple):
    """What is started. env: added to the environment that all share."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str] = {}


class Outcome(NamedTuple):
    """seconds: of wall clock, start to end; lines: (seconds since the start, text); late: it was stopped by the referee."""

    seconds: float
    code: int
    lines: list[tuple[float, str]]
    late: bool = False

    @property
    def failure(self) -> Optional[str]:
        """Why it brought no result, with its last words; None when it ended well."""
        if self.code == 0 and not self.late:
            return None
        why = f"stopped after {self.seconds:.0f} s, far over its budget" if self.late else f"exit status {self.code}"
        return "\n".join([why, *(line for _, line in self.lines[-LAST_LINES:])])


def shared_environment(threads: int) -> dict[str, str]:
    """The environment of every competitor: the caller's, without traces of torchrun, with the number of threads."""
    kept = {name: value for name, value in os.environ.items() if name not in DISTRIBUTED}
    count = str(threads)
    return kept | {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0",
                   "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled",
                   "HF_HUB_OFFLINE": "1"}


def pinned(argv: Sequence[str], threads: int) -> list[str]:
    """The command held on the first ``threads`` cores that we may use; as it is where there is no taskset or no choice."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if shutil.which("taskset") is None or len(cores) <= threads:
        return list(argv)
    return ["taskset", "-c", ",".join(map(str, cores[:threads])), *argv]


def run(command: Command, *, threads: int, limit: float, pin: bool, log: Optional[Path] = None) -> Outcome:
    """Run a command to its end, or until ``limit`` seconds are over: then it and its children are killed.

    log: file that gets every line as it comes.
    """
    argv = pinned(command.argv, threads) if pin else list(command.argv)
    lines: list[tuple[float, str]] = []
    late = threading.Event()
    start = time.monotonic()
    try:
        process = subprocess.Popen(argv, cwd=command.cwd, env=shared_environment(threads) | dict(command.env),
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   errors="replace", start_new_session=True)
    except OSError as error:  # no such interpreter, or no such folder
        return Outcome(0.0, 127, [(0.0, f"could not be started: {error}")])

    def stop() -> None:
        late.set()
        kill(process)

    timer = threading.Timer(limit, stop)
    timer.start()
    try:
        with open(log if log is not None else os.devnull, "w", encoding="utf-8") as file:
            for line in process.stdout:
                since = time.monotonic() - start
                if text := line.rstrip():
                    lines.append((since, text))
                    print(f"{since:9.3f}  {text}", file=file, flush=True)
        code = process.wait()
        seconds = time.monotonic() - start
    finally:
        timer.cancel()
        kill(process)
        process.stdout.close()
    return Outcome(seconds, code, lines, late.is_set())


def kill(process: subprocess.Popen) -> None:
    """End a process that ``run`` started and whatever it started in turn: they are a session of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
