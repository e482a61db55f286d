"""Workers that are processes of this machine.

The standard pools fall short of four needs. ``multiprocessing.Pool.imap`` reads all of a lazy iterator at once.
``ProcessPoolExecutor`` cannot stop work in progress before Python 3.14, does not say what a worker died of, and imports
the caller's main script into every worker. So a worker here is a new Python process that answers over one socket. It is
never a fork: tokenizers and numpy run threads, and a fork of those deadlocks. Its libraries run one thread each.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection, Pipe, wait as wait_for
from typing import Any, Iterator, NamedTuple

from data_prep.errors import DataError
from data_prep.task import ONE_THREAD, REMEDY, Outcome, Session, Task, packed, pickled

ORPHAN_CHECK = 0.5      # seconds between looks for the parent, where the kernel does not tell
PR_SET_PDEATHSIG = 1    # linux/prctl.h


class Worker(NamedTuple):
    """A process and the parent's end of its socket."""

    process: subprocess.Popen
    socket: Connection


class Processes:
    """Up to ``workers`` Python processes, started as items come."""

    def __init__(self, task: Task, workers: int) -> None:
        self.workers = workers
        self._task = pickled(task, "the function")
        self._pool: dict[Connection, Worker] = {}

    def grow(self) -> None:
        """Start one more process, if there may be one more; its first answer says that it has started."""
        if len(self._pool) == self.workers:
            return
        ours, theirs = Pipe()
        code = (f"import sys; sys.path[:] = {[str(path) for path in sys.path]!r}; "
                f"from data_prep.engine_processes import serve; serve({theirs.fileno()}, {os.getpid()})")
        with theirs, _interrupts_held():
            process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                                       env={**os.environ, **ONE_THREAD})
            self._pool[ours] = Worker(process, ours)
        self._send(self._pool[ours], self._task)

    def give(self, worker: Worker, item: Any) -> None:
        """Send an item to a worker that waits for one."""
        self._send(worker, pickled(item, "an item"))

    def answers(self, wait: bool) -> list[tuple[Worker, Outcome]]:
        """Outcomes that have arrived; with ``wait``, at least one. Raises DataError for a worker that died."""
        ready = wait_for(list(self._pool), None if wait else 0)
        return [(self._pool[socket], self._receive(self._pool[socket])) for socket in ready]

    def close(self) -> None:
        """Stop every process, in the middle of its work if need be, and wait until it is gone."""
        for worker in self._pool.values():
            worker.process.kill()
        for worker in self._pool.values():
            worker.process.wait()
            worker.socket.close()
        self._pool.clear()

    def _send(self, worker: Worker, content: bytes) -> None:
        try:
            worker.socket.send_bytes(content)
        except OSError:
            raise _died(worker) from None

    def _receive(self, worker: Worker) -> Outcome:
        try:
            content = worker.socket.recv_bytes()
        except (EOFError, OSError):
            raise _died(worker) from None
        return pickle.loads(content)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started inside never see Ctrl-C: their parent does, and stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _died(worker: Worker) -> DataError:
    code = worker.process.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return DataError(f"a worker process {how}; {REMEDY}")


# ---- inside a worker


def serve(descriptor: int, parent: int) -> None:
    """Answer on a socket until it closes: first that the task has begun, then an outcome for each item."""
    _end_with(parent)
    with Connection(descriptor) as socket, contextlib.suppress(EOFError, OSError):
        session = Session(socket.recv_bytes())
        socket.send_bytes(packed(session.begun))
        while True:
            socket.send_bytes(session.answer(socket.recv_bytes()))


def _end_with(parent: int) -> None:
    """See to it that this process ends with its parent, whatever the parent dies of; a file it writes could hit the next run.

    Linux kills it at once, when the parent's thread that started it ends (prctl(2)). Elsewhere it looks for its parent.
    """
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL)) == 0:
        if os.getppid() != parent:              # it died before the request
            os._exit(1)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK)
    os._exit(1)
