"""Marks in time: of the wall's clock, of a card's stream, or of this thread's own time on the processor."""

from __future__ import annotations

import time
from typing import Any

CLOCKS = ("cpu", "cuda", "thread")


def now(clock: str) -> Any:
    """A mark: seconds on the wall's clock ("cpu"), seconds that this thread has computed ("thread": neighbours do not count),
    or an event in a card's stream ("cuda"), for which nothing waits."""
    if clock == "cpu":
        return time.perf_counter()
    if clock == "thread":
        return time.thread_time()
    import torch
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Seconds between two marks; on a card wait for the later one before."""
    return end - start if isinstance(end, float) else start.elapsed_time(end) / 1e3
