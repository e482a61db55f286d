"""What this machine can do at best: matrix products, memory, and how long the least operation takes. Measured here.

The limits of the roofline (Williams et al. 2009; for language models Yuan et al. 2024, arXiv 2402.16363).
"""

from __future__ import annotations

import time
from typing import Callable, Iterator, NamedTuple, Optional

import torch

from cram.device import Device

# Bytes a second of the card's memory, from NVIDIA's data sheets (SXM versions where there are several).
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.04e12, "A10": 600e9, "L40S": 864e9, "L40": 864e9, "L4": 300e9,
             "RTX 4090": 1008e9, "RTX 3090": 936e9, "A6000": 768e9, "T4": 320e9, "V100": 900e9}
SIDES = {"cuda": (4096, 8192), "cpu": (256, 512, 1024)}   # of the square matrices; the best of them counts
LARGE = {"cuda": 2**30, "cpu": 2**26}       # bytes copied: more than any cache holds
SMALL = {"cuda": 2**23, "cpu": 2**18}       # and what fits into one
LEAST_SECONDS, BEST_OF, TINY_CALLS = 0.25, 8, 500


class Machine(NamedTuple):
    """flops: of a large matrix product a second, in the precision of the run; bandwidth, cache_bandwidth: bytes a second read
    and written; call_seconds: of an operation on a single number. sheet_*: what the card's data sheet promises, or None."""

    precision: str
    flops: float
    bandwidth: float
    cache_bandwidth: float
    call_seconds: float
    sheet_flops: Optional[float] = None
    sheet_bandwidth: Optional[float] = None

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that so many FLOPs and bytes take at least."""
        return max(flops / self.flops, moved / self.bandwidth)

    def bound(self, calls: int, flops: float, moved: float) -> str:
        """What limits an operation: compute, memory, or the overhead of being called."""
        seconds = {"compute": flops / self.flops, "memory": moved / self.bandwidth, "overhead": calls * self.call_seconds}
        return max(seconds, key=seconds.__getitem__)


def measure_machine(device: Device, clock: str) -> Machine:
    """Two seconds; the best of many, since neighbours only slow down. clock: as for ``marks.now``."""
    kind = device.kind
    flops = max(2 * side**3 / seconds for side, seconds in products(device, clock))
    sheet = next((value for card, value in BANDWIDTH.items() if card in device.name), None) if kind == "cuda" else None
    return Machine(str(device.dtype).removeprefix("torch."), flops, copied(LARGE[kind], kind, clock),
                   copied(SMALL[kind], kind, clock, calls=50), tiny(kind, clock), device.peak_flops, sheet)


def better(one: Machine, other: Machine) -> Machine:
    """Of two measurements the better of each: the limits do not change, the neighbours do."""
    rates = {name: max(getattr(one, name), getattr(other, name)) for name in ("flops", "bandwidth", "cache_bandwidth")}
    return one._replace(call_seconds=min(one.call_seconds, other.call_seconds), **rates)


def products(device: Device, clock: str) -> Iterator[tuple[int, float]]:
    """(side, seconds) of square matrix products in the precision of the run."""
    for side in SIDES[device.kind]:
        a, b = (torch.randn(side, side, device=device.kind, dtype=device.dtype) for _ in range(2))
        product = torch.empty_like(a)
        yield side, best(lambda: torch.mm(a, b, out=product), clock)


def copied(size: int, kind: str, clock: str, calls: int = 1) -> float:
    """Bytes a second, read and written, of copies of ``size`` bytes."""
    source = torch.ones(size // 4, device=kind)
    target = torch.ones_like(source)

    def copy() -> None:
        for _ in range(calls):
            target.copy_(source)
    return 2 * calls * size / best(copy, clock)


def tiny(kind: str, clock: str) -> float:
    """Seconds of one operation on a single number: all of it overhead."""
    x = torch.zeros(1, device=kind)

    def call() -> None:
        for _ in range(TINY_CALLS):
            x.add_(1)
    with torch.no_grad():
        return best(call, clock) / TINY_CALLS


def best(function: Callable[[], object], clock: str) -> float:
    """Least seconds of a call, of those of a quarter of a second, and at least 8."""
    wait = torch.cuda.synchronize if clock == "cuda" else lambda: None
    read = time.thread_time if clock == "thread" else time.perf_counter
    taken: list[float] = []
    while len(taken) < BEST_OF or sum(taken) < LEAST_SECONDS:
        wait()
        started = read()
        function()
        wait()
        taken.append(read() - started)
    return min(taken)
