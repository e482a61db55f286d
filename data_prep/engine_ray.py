"""Workers that are the processes of a Ray cluster (extra "ray").

The cluster is the one that the environment variable RAY_ADDRESS names, else one that runs on this machine, else Ray
starts one here. Parts and results are files: every machine must see the output folder under the same path, and have
the same Python packages. A part whose worker or machine dies is worked on again elsewhere, at most three times.

Why Ray tasks (Ray 2.60, datatrove 0.10.1; 40 empty parts, 2 workers, 2 shared cores, start to end):
  processes        0.1 s   engine_processes.py: one machine
  Ray tasks          4 s   nearly all of it Ray's start; tasks take any Python function and lazily read items, are
                           rescheduled when a machine is lost, and the same loop drives them as drives processes
  Ray actors         6 s   (10 parts) one whose machine is lost waits for a core of its own; with all taken, for ever
  Ray Data          12 s   plans over its own blocks: where a part ends would be its choice, or one row a block
  datatrove, local 0.7 s   a part must be known by its rank before the start, so a source that is read once, as a stream,
                           must first be written out; run() returns nothing, a part may only leave files
  datatrove, Ray    83 s   (measured beside other work) an actor, a placement group and a pool a part; errors are only logged
datatrove's SlurmPipelineExecutor submits job arrays without Ray, in few lines (a step is any function of a rank), and
suits stages whose parts exist as files. Under Slurm, Ray's own ``ray symmetric-run`` or ``ray start`` serves all stages.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import socket
import time
import uuid
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

from data_prep.errors import DataError
from data_prep.task import ONE_THREAD, REMEDY, Outcome, Session, Task, attempt, packed, pickled

RETRIES = 3
PATIENCE = 3.0          # seconds until a network file system shows a new file


class RayWorkers:
    """Up to ``workers`` items at a time, one CPU core each. A worker is a number: Ray chooses the process every time."""

    def __init__(self, task: Task, workers: Optional[int], shared: Optional[Path]) -> None:
        content = pickled(task, "the function")
        self._ray = _connect()
        self.workers = workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._probe = None if shared is None else _leave_probe(Path(shared))
        self._session = self._ray.put((content, os.getcwd(), self._probe))
        self._answer = self._ray.remote(num_cpus=1, max_retries=RETRIES)(answer)
        self._grown = 0
        self._new: list[int] = []
        self._waited_for: dict[Any, int] = {}       # reference of an outcome to come -> worker

    def grow(self) -> None:
        """Allow one more item at a time, if there may be one more."""
        if self._grown < self.workers:
            self._new.append(self._grown)
            self._grown += 1

    def give(self, worker: int, item: Any) -> None:
        """Send an item to a worker that waits for one."""
        self._waited_for[self._answer.remote(self._session, pickled(item, "an item"))] = worker

    def answers(self, wait: bool) -> list[tuple[int, Outcome]]:
        """Outcomes that have arrived, the first of a worker without value; with ``wait``, at least one.

        Raises DataError when the workers of an item died too often.
        """
        if self._new or not self._waited_for:
            new, self._new = self._new, []
            return [(worker, Outcome(None)) for worker in new]
        if wait:
            self._ray.wait(list(self._waited_for))
        ready, _ = self._ray.wait(list(self._waited_for), num_returns=len(self._waited_for), timeout=0)
        return [(self._waited_for.pop(reference), self._receive(reference)) for reference in ready]

    def close(self) -> None:
        """Stop what is in progress, in the middle of its work. The connection stays, for the next stage."""
        references = list(self._waited_for)
        for reference in references:
            self._ray.cancel(reference, force=True)
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=PATIENCE)
        if self._probe is not None:
            self._probe.unlink(missing_ok=True)

    def _receive(self, reference: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            return pickle.loads(self._ray.get(reference))
        except (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError, errors.ObjectLostError) as error:
            first = str(error).strip().splitlines()[0]
            raise DataError(f"Ray tried a part {RETRIES + 1} times and its worker died each time ({first}); {REMEDY}") from None


def _connect() -> ModuleType:
    """Ray, connected to a cluster."""
    try:
        import ray
    except ImportError:
        raise DataError("data.engine=ray needs Ray; install it with: pip install 'cram-lm[ray]'") from None
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            address = os.environ.get("RAY_ADDRESS", "not set")
            raise DataError(f"no Ray cluster (RAY_ADDRESS {address}): {str(error).strip().splitlines()[0]}; "
                            "start one with: ray start --head") from None
    return ray


def _leave_probe(folder: Path) -> Path:
    """An empty file that a machine sees if it shares the folder."""
    path = folder.absolute() / f".probe-{uuid.uuid4().hex}.tmp"
    path.touch()
    return path


# ---- inside a worker


def answer(session: tuple[bytes, str, Optional[Path]], item: bytes) -> bytes:
    """The pickled outcome for one item."""
    begun = attempt(_begin, *session)
    return packed(begun) if begun.error is not None else begun.value.answer(item)


@functools.lru_cache(maxsize=1)
def _begin(task: bytes, folder: str, probe: Optional[Path]) -> Session:
    """What a process does once, before its first item."""
    os.environ.update(ONE_THREAD)
    _look_for(probe)
    with contextlib.suppress(FileNotFoundError):
        os.chdir(folder)            # relative paths mean the same as where the command was given
    session = Session(task)
    session.begun.get()
    return session


def _look_for(probe: Optional[Path]) -> None:
    deadline = time.monotonic() + PATIENCE
    while probe is not None and not probe.exists():
        if time.monotonic() > deadline:
            raise DataError(f"{probe.parent}: machine {socket.gethostname()} does not see this folder; "
                            "all machines of the Ray cluster must share it, under the same path")
        time.sleep(0.1)
