"""Write kernels/launch_table.json: tiles, warps and stages of the attention kernels, for each card.

    python scripts/tune.py                         every architecture by the estimate of kernels/tune.py, no card needed
    python scripts/tune.py --architecture sm_90    this one only (some five minutes of one core)
    python scripts/tune.py --card                  the best by estimate, timed on the card that is here; then FUSED_ROW

Only the rows of that architecture change. A crash leaves the table whole: either as it was, or with what was found so far.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Callable, Optional

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

import torch  # noqa: E402

from cram._kernels import launch as launching  # noqa: E402
from cram._kernels.ahead import CARDS  # noqa: E402
from cram._kernels.attention import FUSED_ROW  # noqa: E402
from cram._kernels.launch import HEAD_DIMS, TABLE, Launch, key  # noqa: E402
from cram._kernels.tune import DIRECTIONS, search  # noqa: E402
from cram.bench.attention import EPS, ROTARY, Case, Problem, _both, forwards  # noqa: E402
from cram.bench.measure import CudaTimer, HostTimer, attempt, no_silent_fallback, race  # noqa: E402
from data_prep.files import replace_durably  # noqa: E402

COMMENT = ("Written by scripts/tune.py. block_m: queries of a tile, block_n: keys. how: 'ahead' is the best by the estimate of "
           "kernels/tune.py; 'measured' is the fastest on the card named, milliseconds being the forward pass (forward) or the "
           "whole backward pass (dq, dkv), median, geometric mean over two row lengths, 65,536 tokens of width 768.")
TOKENS, WIDTH = 65536, 768
ROWS = {False: (128, 512), True: (512, 1024)}  # row lengths timed; up to FUSED_ROW with norm and rotation in the kernel
FINALISTS, ROUNDS = 5, 15
THRESHOLDS = (128, 256, 512, 1024, 2048)

Say = Callable[[str], None]


def entry(launch: Launch, how: str, milliseconds: Optional[float] = None, **more: str) -> dict:
    return {**launch._asdict(), "milliseconds": milliseconds, "how": how, **more}


def rewrite(table: Path, changed: dict[str, dict]) -> None:
    """Put rows into the table, one a line, sorted by card, head dimension and direction; the others stay."""
    rows = json.loads(table.read_text())["launches"] | changed
    order = {name: i for i, name in enumerate([*CARDS, "full", "causal", *DIRECTIONS])}
    names = sorted(rows, key=lambda name: [order[part] if part in order else int(part) for part in name.split()])
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(rows[name])}" for name in names)
    replace_durably(table, f'{{"comment": {json.dumps(COMMENT)},\n "launches": {{\n{lines}\n}}}}\n'.encode())


def tune_ahead(architecture: str, table: Path, run: Callable, say: Say) -> None:
    """The best by the estimate; causal and full alike, since the estimate does not tell them apart."""
    for head_dim in HEAD_DIMS:
        for direction in DIRECTIONS:
            best = search(direction, architecture, head_dim, run)[0]
            rewrite(table, {key(architecture, head_dim, causal, direction): entry(best.launch, "ahead")
                            for causal in (False, True)})
            made = best.compiled
            say(f"{architecture} {head_dim} {direction}: {tuple(best.launch)}, {best.clocks:.3f} clocks a score, "
                f"{made.registers} registers, {made.stack} bytes spilled, {made.shared} bytes shared")


class Load:
    """Packed documents and what the kernels need to attend over them."""

    def __init__(self, head_dim: int, causal: bool, row: int, tokens: int, width: int, device: str):
        p = Problem(Case(head_dim, width // head_dim, causal, None, tokens, row), device)
        sees, seen_by = p.sight("triton").mask
        fused = row <= FUSED_ROW
        cos_TE, sin_TE = (x.half() if p.dtype == torch.bfloat16 else x for x in p.rope)
        norm = (p.position_N.int(), cos_TE, sin_TE, p.q_gain.detach(), p.k_gain.detach()) if fused else (None,) * 5
        self.qkv, self.do = tuple(x.detach() for x in (p.q, p.k, p.v)), p.do
        self.how = {"scale": head_dim ** -0.5, "softcap": 0.0, "eps": EPS, "causal": causal}
        self.sees, self.norm, self.masks = sees, norm, (sees, seen_by)
        self.o, self.lse = self.forward(launching.SAFE["forward"])

    def forward(self, launch: Launch) -> tuple[torch.Tensor, ...]:
        return launching.forward(*self.qkv, self.sees, *self.norm, **self.how, launch=launch)

    def call(self, direction: str, launches: dict[str, Launch]) -> tuple[torch.Tensor, ...]:
        """The forward pass, or the whole backward pass, launched this way."""
        if direction == "forward":
            return self.forward(launches["forward"])
        return launching.backward(self.do, *self.qkv, self.o, self.lse, *self.masks, *self.norm, **self.how,
                                  dq_launch=launches["dq"], dkv_launch=launches["dkv"])

    def right(self, direction: str, launches: dict[str, Launch]) -> None:
        """Raise AssertionError when results differ from those of the safe launch by more than rounding."""
        for ours, safe in zip(self.call(direction, launches), self.call(direction, launching.SAFE), strict=True):
            if ours is not None:
                torch.testing.assert_close(ours.float(), safe.float(), rtol=0.03, atol=0.03 * float(safe.abs().max()))


def fastest(direction: str, launches: dict[str, Launch], finalists: list[Launch], loads: list[Load], timer: HostTimer,
            rounds: int, say: Say) -> tuple[Launch, float]:
    """The finalist with the least time, geometric mean over the loads, in milliseconds; the other kernels as in launches."""
    means = {}
    for launch in finalists:
        error = next((error for load in loads for _, error in [attempt(load.right, direction, launches | {direction: launch})]
                      if error), None)
        if error:
            say(f"  {direction} {tuple(launch)}: left out, {error}")
        else:
            means[launch] = 1.0
    for load in loads:
        turns = {launch: lambda launch=launch: lambda: load.call(direction, launches | {direction: launch}) for launch in means}
        for launch, timing in race(turns, timer, rounds).items():
            means[launch] *= float("inf") if isinstance(timing, str) else (1e3 * timing.median) ** (1 / len(loads))
    say("  " + direction + ": " + ", ".join(f"{tuple(launch)} {mean:.3f} ms" for launch, mean in means.items()))
    best = min(means, key=means.get, default=None)
    if best is None or means[best] == math.inf:
        raise RuntimeError(f"{direction}: no launch ran and gave the results of the safe one")
    return best, means[best]


def tune_card(architecture: str, table: Path, run: Callable, say: Say) -> None:
    """Time the finalists of the estimate, the head dimension of the shipped configurations first."""
    card, timer = torch.cuda.get_device_name(), CudaTimer()
    for head_dim in (64, 128, 32):
        finalists = {direction: [found.launch for found in search(direction, architecture, head_dim, run)[:FINALISTS]]
                     for direction in DIRECTIONS}
        for causal in (False, True):
            say(f"{architecture} {head_dim} {'causal' if causal else 'full'}")
            loads = [Load(head_dim, causal, row, TOKENS, WIDTH, "cuda") for row in ROWS[causal]]
            launches, changed = {direction: ready[0] for direction, ready in finalists.items()}, {}
            for direction in DIRECTIONS:
                launches[direction], mean = fastest(direction, launches, finalists[direction], loads, timer, ROUNDS, say)
                changed[key(architecture, head_dim, causal, direction)] = entry(launches[direction], "measured", round(mean, 4),
                                                                                card=card)
            rewrite(table, changed)
    launching.table.cache_clear()
    launching.choose.cache_clear()


def compare_fused(rows: tuple[int, ...], tokens: int, width: int, device: str, timer: HostTimer, rounds: int, say: Say) -> None:
    """Norm and rotation inside the kernels or before them, by torch.compile: time forward and backward for several rows."""
    say(f"FUSED_ROW in kernels/attention.py is {FUSED_ROW}: rows up to it are fused. Forward and backward, median:")
    for causal in (False, True):
        for row in rows:
            with no_silent_fallback():
                p = Problem(Case(64, width // 64, causal, None, tokens, row), device)
                paths = {name: run for name, (run, _) in forwards(p, ROTARY).items() if name.startswith("triton") and run}
                turns = {name: lambda run=run: _both(p, ROTARY, run) for name, run in paths.items()}
                found = race(turns, timer, rounds)
            failed = "".join(f", {name}: {why}" for name, why in found.items() if isinstance(why, str))
            times = sorted((1e3 * timing.median, name) for name, timing in found.items() if not isinstance(timing, str))
            say(f"  {'causal' if causal else 'full'}, rows of {row}, fastest first: "
                + ", ".join(f"{name} {milliseconds:.3f} ms" for milliseconds, name in times) + failed)


def main(arguments: Optional[list[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--architecture", choices=tuple(CARDS), help="only this one, ahead of time")
    what.add_argument("--card", action="store_true", help="time launches on the card that is here")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile (default: cores)")
    options = parser.parse_args(arguments)
    if options.card and not torch.cuda.is_available():
        parser.error("--card: torch sees no CUDA card here")
    architecture = launching.architecture(torch.device("cuda")) if options.card else options.architecture
    if options.card and architecture not in CARDS:
        parser.error(f"{architecture} is not among {', '.join(CARDS)}; add what it holds to CARDS in kernels/ahead.py and to "
                     "MULTIPLY_ADDS in kernels/tune.py")
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True)

    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        if options.card:
            tune_card(architecture, TABLE, pool.map, say)
        for name in [] if options.card else [architecture] if architecture else CARDS:
            tune_ahead(name, TABLE, pool.map, say)
    if options.card:
        compare_fused(THRESHOLDS, TOKENS // 2, WIDTH, "cuda", CudaTimer(), ROUNDS, say)
    return 0


if __name__ == "__main__":
    sys.exit(main())
