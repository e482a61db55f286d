"""Choose how the attention kernels are launched on a card that is not here.

A kernel owns a tile of queries (forward, dq) or of keys (dkv) and streams blocks of the other kind past it. The
compiler says for every candidate what it would take, and from that follows an estimate: clocks of a multiprocessor
for one score, one pair of a query and a key that see each other. Per score there are

    issue    instructions of a thread for a block x warps / 4 schedulers: each starts one instruction a clock
    exp      one exponential; a multiprocessor makes 16 a clock
    matrix   head dimension x products multiply-adds on the tensor cores
    load     bytes streamed from the second-level cache: a larger tile uses each of them more often
    wait     clocks that a warp alone would wait in every block: for matrix products, barriers, loads

Different warps do different ones at the same time, so the longest cannot be hidden, and the rest is hidden the
better the more warps a scheduler can choose from:

    clocks = longest + (sum of all - longest) / warps per scheduler

Tiles compute scores that no one asked for where documents end inside them, in proportion to their size: the last
factor. A launch that spills registers counts a quarter more; one that spills many comes last. What does not fit the
card, or misses its tensor cores, is out. The estimate ranks; it does not predict a time. ``scripts/tune.py --card``
measures the best of the list.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

from .ahead import Compiled, compile_ahead
from .launch import Launch

DIRECTIONS = ("forward", "dq", "dkv")
# Multiply-adds of 16-bit numbers per clock and multiprocessor, dense, sums in float32 (NVIDIA's architecture papers; sm_86 and
# sm_89 are GeForce). For sm_75 Triton makes no tensor-core code: its multiply-adds are among the instructions issued.
MULTIPLY_ADDS = {"sm_75": float("inf"), "sm_80": 1024, "sm_86": 256, "sm_89": 256, "sm_90": 2048, "sm_100": 4096}
PRODUCTS = {"forward": 2, "dq": 3, "dkv": 4}
EXPONENTIALS = 16  # per clock and multiprocessor, on all of these cards (CUDA C++ programming guide, arithmetic throughput)
SCHEDULERS = 4
CACHE = 40         # bytes per clock and multiprocessor: an A100's 5,120 for the whole chip
STEP = 500         # clocks that a warp alone waits in a block for products and barriers: a guess
LATENCY = 500      # clocks until a load comes back; with more stages more blocks are on their way
SPILL = 1.25       # what a launch that spills counts more,
SPILL_MOST = 64    # up to so many bytes a thread; beyond them
SPILL_MUCH = 100   # any other is better
DOCUMENT = 512     # tokens: the length that the share of useless scores is reckoned for
FINALISTS = 4      # launches whose other numbers of stages are compiled, too


class Found(NamedTuple):
    """A candidate: estimated clocks per useful score (the rank), and what the compiler made with norm and rotation."""

    launch: Launch
    clocks: float
    compiled: Compiled


def owned(direction: str, launch: Launch) -> tuple[int, int]:
    """(rows a program owns, rows of a block it streams)."""
    return (launch.block_n, launch.block_m) if direction == "dkv" else (launch.block_m, launch.block_n)


def candidates(direction: str, head_dim: int, stages: int) -> list[Launch]:
    """Tiles that may fit the registers: 255 a thread, for the sums and the scores at least."""
    sums, scores = {"forward": (1, 1), "dq": (1, 2), "dkv": (2, 2)}[direction]
    launches = []
    for rows in (32, 64, 128):
        for warps in (4, 8):
            for streamed in (32, 64, 128):
                held = rows * (sums * head_dim + scores * streamed) / (32 * warps)
                if held <= 240 and (rows, warps) != (32, 8):
                    blocks = (streamed, rows) if direction == "dkv" else (rows, streamed)
                    launches.append(Launch(*blocks, warps, stages))
    return launches


def estimate(direction: str, architecture: str, head_dim: int, launch: Launch, compiled: Compiled, fused: bool) -> float:
    """Clocks of a multiprocessor per useful score, see above; infinite for what cannot run or misses the tensor cores."""
    programs = compiled.programs(architecture, launch.warps)
    if not programs or (architecture != "sm_75" and not compiled.matrix(architecture)):
        return float("inf")
    rows, streamed = owned(direction, launch)
    scores = rows * streamed
    angles = 2 * head_dim if fused and direction != "dkv" else 0  # cosines and sines, half precision
    parts = (compiled.loop * launch.warps / SCHEDULERS / scores, 1 / EXPONENTIALS,
             PRODUCTS[direction] * head_dim / MULTIPLY_ADDS[architecture], (4 * head_dim + angles) / rows / CACHE,
             (STEP + LATENCY / launch.stages) / scores)
    hidden = programs * launch.warps / SCHEDULERS
    clocks = max(parts) + (sum(parts) - max(parts)) / hidden
    spilled = SPILL_MUCH if compiled.stack > SPILL_MOST else SPILL if compiled.stack else 1
    return clocks * (1 + (rows + streamed / 2) / DOCUMENT) * spilled


def dtype(architecture: str) -> str:
    """bf16 where the card has it."""
    return "fp16" if architecture == "sm_75" else "bf16"


def judge(task: tuple[str, str, int, Launch]) -> Found:
    """Compile one candidate with and without norm and rotation; both are used (``FUSED_ROW``), so the mean counts."""
    direction, architecture, head_dim, launch = task
    fused, raw = (compile_ahead(direction, architecture, head_dim, launch, dtype=dtype(architecture), norm=on, rope=on)
                  for on in (True, False))
    clocks = sum(estimate(*task, compiled, on) for compiled, on in ((fused, True), (raw, False))) / 2
    return Found(launch, clocks, fused)


def search(direction: str, architecture: str, head_dim: int, run: Callable = map) -> list[Found]:
    """All candidates that can run, best first. Tiles at two stages, then one and three stages for the best of them.

    run: ``map``, or that of a pool of processes: a compilation takes one to eight seconds. sm_75 cannot copy in the
    background, so more stages bring it nothing, and without tensor cores large tiles spill and compile for minutes.
    """
    def compiled(launches: list[Launch]) -> list[Found]:
        return list(run(judge, [(direction, architecture, head_dim, launch) for launch in launches]))

    if architecture == "sm_75":
        found = compiled([one for one in candidates(direction, head_dim, 1) if max(one.block_m, one.block_n) <= 64])
    else:
        found = sorted(compiled(candidates(direction, head_dim, 2)), key=lambda one: one.clocks)
        found += compiled([one.launch._replace(stages=stages) for one in found[:FINALISTS] for stages in (1, 3)])
    return sorted((one for one in found if one.clocks < float("inf")), key=lambda one: one.clocks)
