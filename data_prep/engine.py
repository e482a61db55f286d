"""Work on parts: one function, many items, some workers.

A part is worked on alone and its results go to files, so what comes out depends neither on the number of workers nor on
who finished first. Workers are processes of this machine (engine_processes.py) or of a Ray cluster (engine_ray.py).
Both are driven by one loop, ``_work``: it keeps every worker busy and one item ready, and holds no more than that.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Literal, Optional

from data_prep.engine_processes import Processes
from data_prep.engine_ray import RayWorkers
from data_prep.errors import DataError
from data_prep.task import Task


def run(function: Callable[..., Any], items: Iterable[Any], *, workers: Optional[int] = None,
        engine: Literal["processes", "ray"] = "processes", start: Optional[Callable[..., Any]] = None, start_args: tuple = (),
        shared: Optional[Path] = None) -> Iterator[tuple[Any, Any]]:
    """Yield (item, ``function(item)``) for every item, as they finish.

    function, start: defined at the top level of an importable module, or a ``functools.partial`` of such. start is called
        once a worker, and what it returns is the second argument of function: ``function(item, start(*start_args))``.
    items: may be lazy and large: at most workers + 1 are held at a time, and none is pulled before there is room.
    workers: None for one a CPU core that this process may use (ray: one a core of the cluster). Of processes, one
        worker, or one item, needs none but this one.
    shared: folder the function writes to; engine "ray" makes sure that every machine sees it.

    Ending early, by an error, Ctrl-C or ``close()``, stops the workers at once: their work must bear being cut off.
    Raises what the function raised (DataError as it was, others with the worker's traceback as a note); DataError when a
    worker dies; TypeError for what cannot be sent to a worker.
    """
    if workers is not None and workers < 1:
        raise DataError(f"data.workers is {workers}; it must be 1 or more, or null for one a CPU core")
    task = Task(function, start, tuple(start_args))
    if engine == "ray":
        return _work(functools.partial(RayWorkers, task, workers, shared), iter(items))
    if engine != "processes":
        raise DataError(f"data.engine is {engine!r}; it must be 'processes' or 'ray'")
    return _work_with_processes(task, iter(items), workers or cores())


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work_with_processes(task: Task, items: Iterator[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """In this process when there is one worker or one item, else in several."""
    head = deque()
    if workers > 1:
        for item in items:
            head.append(item)
            if len(head) == 2:
                yield from _work(functools.partial(Processes, task, workers), _chain(head, items))
                return
    yield from _work_here(task, _chain(head, items))


def _chain(head: deque, items: Iterator[Any]) -> Iterator[Any]:
    """itertools.chain that lets go of what it has given."""
    while head:
        yield head.popleft()
    yield from items


def _work_here(task: Task, items: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    started = False
    for item in items:
        if not started:
            state, started = task.begin(), True
        yield item, task.apply(item, state)


def _work(open_pool: Callable[[], Any], items: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    """Hand the items to the workers of a pool: ``grow``, ``give``, ``answers`` and ``close`` are all it needs to know."""
    waiting: deque[Any] = deque()
    busy: dict[Any, Any] = {}
    idle: list[Any] = []
    more = True
    pool = open_pool()
    try:
        while more or waiting or busy:
            room = more and len(waiting) + len(busy) <= pool.workers
            finished: deque[tuple[Any, Any]] = deque()
            for worker, outcome in pool.answers(wait=not room):
                value = outcome.get()
                idle.append(worker)
                if worker in busy:              # a first answer only says that the worker has started
                    finished.append((busy.pop(worker), value))
            while idle and waiting:
                worker = idle.pop()
                busy[worker] = waiting.popleft()
                pool.give(worker, busy[worker])
            while finished:
                yield finished.popleft()
            if room:
                try:
                    waiting.append(next(items))
                    pool.grow()
                except StopIteration:
                    more = False
    finally:
        pool.close()
