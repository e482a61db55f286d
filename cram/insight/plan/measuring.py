"""Costs measured on this machine.

The learner of a run (``cram.learner``) takes real steps on random text, made into batches as in training; it writes a
checkpoint where runs are written and scores text as a validation does. What the loop adds around a step is taken from
``reports/bench/overhead_cpu.json``.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator, Optional

import numpy as np
import torch

from cram import checkpoint
from cram.batches import Batches
from cram.bench.step import RandomText, switches_of_training
from cram.device import choose_device, energy_meter
from cram.errors import CramError
from cram.evaluate.heldout import Targets, score_targets
from cram.insight.plan.costs import LOOP_SECONDS, Costs
from cram.insight.plan.host import available_bytes, physical_bytes, resident_bytes, resident_peak
from cram.insight.plan.memory import memory
from cram.learner import Learner
from cram.objective import step_kinds
from cram.parallel import World
from cram.shapes import Shape, coming_shapes
from cram.sizing import choose_micro_batch, compile_all, first_step_seconds, share_of_batch

WARM_UP, LEAST_STEPS = 2, 3
LARGEST_SAVED = 10**9       # bytes: larger checkpoints are not written whole, a part of them tells the speed


def measure(config, seconds: float, say: Callable[[str], None] = lambda line: None,
            clock: Callable[[], float] = time.perf_counter) -> Costs:
    """Measure for about ``seconds`` (at least a few steps). CramError when the model does not fit, or cannot train here."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device, remarks = choose_device(config.train), []
    refuse_size(config, device)
    with switches_of_training(config.train, device), contextlib.ExitStack() as leave:
        before, began = resident_bytes(), clock()
        learner = Learner(config, device, World(kind=device.kind), config.tokenizer.vocab_size)
        micro_tokens = math.gcd(choose_micro_batch(learner, config, 1), share_of_batch(config, 1))
        shapes = [replace(shape, tokens=0) for shape in coming_shapes(0.0, config, micro_tokens)]
        estimate = first_step_seconds(learner, config, micro_tokens, micro_tokens)
        setup = clock() - began
        compiling = _compile(learner, config, micro_tokens, shapes, say, clock)
        rows = _rows(config, micro_tokens, 0.0 if device.compile else estimate, seconds, remarks)
        say(f"measuring steps of {rows * config.train.sequence_length:,} tokens on {device.name}")
        meter = energy_meter(config.telemetry.energy, device.kind, lambda line: None)
        joules, began = meter(), clock()
        micro, update, taken = _steps(learner, config, shapes, rows, micro_tokens, seconds, leave, clock)
        watts = (meter() - joules) / (clock() - began) if joules is not None else None
        peak = _peak(device.kind, before)
        look = _validation_seconds(learner, config, rows, clock)
        save = _save_seconds(learner, config, remarks, clock)
        flops = sum(learner.flops(replace(shape, tokens=micro_tokens), step_kinds(config.objective, 0, 1)) for shape in micro)
        if device.compile:
            torch.compiler.reset()
    total = torch.cuda.get_device_properties(0).total_memory if device.kind == "cuda" else physical_bytes()
    return Costs(device.name, device.kind, True, device.dtype, micro_tokens, micro, flops / sum(micro.values()),
                 update + LOOP_SECONDS, setup, compiling, save, look, taken, tuple(remarks), total, peak, watts)


def refuse_size(config, device) -> None:
    """CramError when even one row would take more memory than is free, before any of it is taken."""
    free = torch.cuda.mem_get_info()[0] if device.kind == "cuda" else available_bytes()
    row = config.train.sequence_length
    needed = sum(memory(config, config.tokenizer.vocab_size, row, device.dtype).values())
    if free is not None and needed > free:
        raise CramError(f"does not fit: even with one row of {row} tokens it takes {needed / 2**30:.1f} GiB, and "
                        f"{free / 2**30:.1f} GiB are free on {device.name}; make the model smaller, or name a card with --gpu")


def _compile(learner: Learner, config, micro_tokens: int, shapes: list[Shape], say, clock) -> float:
    """Seconds to compile all that a run will; 0 where nothing is compiled."""
    if not learner.device.compile:
        return 0.0
    say("compiling, as a run would")
    began = clock()
    compile_all(learner, config, micro_tokens, shapes, lambda: False)
    return clock() - began


def _rows(config, micro_tokens: int, estimate: float, seconds: float, remarks: list[str]) -> int:
    """Rows that are timed at once: those of a micro-batch, or fewer where that would take very long."""
    rows = micro_tokens // config.train.sequence_length
    least = estimate * (WARM_UP + LEAST_STEPS)
    if least <= 4 * seconds:
        return rows
    fewer = max(1, int(rows * 2 * seconds / least))
    remarks.append(f"timed on {fewer} of the {rows} rows of a micro-batch, the rest in proportion")
    return fewer


def _steps(learner: Learner, config, shapes: list[Shape], rows: int, micro_tokens: int, seconds: float,
           leave: contextlib.ExitStack,
           clock: Callable[[], float]) -> tuple[dict[Shape, float], float, int]:
    """(seconds of a micro-batch by shape, of an update, steps timed). Shapes take turns; those of fewer layers come last in
    the reckoning: a model grows and never shrinks, so they are left to the rate."""
    row, vocab_size = config.train.sequence_length, config.tokenizer.vocab_size
    text = RandomText(vocab_size, max(64, 8 * rows) * row)
    batches = {shape: Batches(text, config.objective, row=row, seed=config.seed, device=learner.device.kind)
               for shape in shapes}
    for made in batches.values():
        leave.callback(made.close)
    learner.optimizers.set_learning_rate(0.01)
    full = [shape for shape in shapes if shape.layers == config.model.layers]
    timings: dict[Shape, list[float]] = {shape: [] for shape in full}
    updates, until, number = [], None, 0
    while until is None or clock() < until or min(map(len, timings.values())) < LEAST_STEPS:
        for shape in full:
            learner.enter(replace(shape, tokens=rows * row))
            learner.guard.reset()
            began = clock()
            micro = batches[shape].step(number, number * rows, rows=rows, length=shape.row, micro_rows=rows,
                                        mask_rate=shape.mask_rate)
            predicted = max(1, sum(each.predicted for each in micro))
            loss = learner.backward(micro, dict.fromkeys((False, True), 1 / predicted))
            _wait(learner)
            between = clock()
            learner.update(loss)
            learner.guard.check()
            _wait(learner)
            if number >= WARM_UP:
                timings[shape].append(between - began)
                updates.append(clock() - between)
        number += 1
        if number == WARM_UP:
            until = clock() + seconds
    scale = micro_tokens / (rows * row)
    return {shape: typical(values) * scale for shape, values in timings.items()}, typical(updates), len(updates)


def typical(values: list[float]) -> float:
    """Their mean without the slowest fiftieth: what a run pays on the average, small delays included, had nothing held it up
    for long."""
    kept = sorted(values)[:max(1, math.floor(0.98 * len(values)))]
    return sum(kept) / len(kept)


def _wait(learner: Learner) -> None:
    if learner.device.kind == "cuda":
        torch.cuda.synchronize()


def _peak(kind: str, before: Optional[int]) -> Optional[int]:
    """Bytes that training took at most; on the CPU by the memory of the process."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resident_peak()
    return None if before is None or peak is None else max(0, peak - before)


def _validation_seconds(learner: Learner, config, rows: int, clock: Callable[[], float]) -> float:
    """Of one look at held-out text: so many rows are scored three times, the rest in proportion."""
    row, rng = config.train.sequence_length, np.random.default_rng(0)
    ids_N = rng.integers(len(RandomText.special), learner.model.vocab_size, rows * row)
    ids_N[0] = RandomText.special["cls"]
    share = 1.0 if learner.model.causal else config.evaluate.mask_rate
    positions_K = np.sort(rng.choice(len(ids_N), max(1, round(share * len(ids_N))), replace=False))
    targets = Targets(ids_N, positions_K, ids_N[positions_K], 1, len(ids_N))
    times = []
    for _ in range(3):
        began = clock()
        score_targets(learner.model, targets, row=row, special=RandomText.special, batch_tokens=rows * row,
                      device=learner.device.kind, autocast=learner.device.autocast())
        times.append(clock() - began)
    passes = 2 if config.objective.type == "hybrid" else 1
    return passes * min(times) * config.train.validation_tokens / len(ids_N)


def _save_seconds(learner: Learner, config, remarks: list[str], clock: Callable[[], float]) -> float:
    """Of one checkpoint, written where the runs will be."""
    state = learner.state_dict()
    size = checkpoint.state_bytes(state)
    with scratch(Path(config.out), remarks) as folder:
        began = clock()
        if size <= LARGEST_SAVED:
            checkpoint.save(folder, state, step=0, run_id="plan", keep=1, say=remarks.append)
            return clock() - began
        checkpoint.save(folder, {"part": torch.zeros(LARGEST_SAVED // 16)}, step=0, run_id="plan", keep=1, say=remarks.append)
        return (clock() - began) * size / (LARGEST_SAVED / 4)


@contextlib.contextmanager
def scratch(out: Path, remarks: list[str]) -> Iterator[Path]:
    """A folder on the disk of ``out`` (or of the nearest folder above it that exists) that is gone afterwards; on the system's
    disk for temporary files, with a remark, where one may not write."""
    above = next(path for path in [out.absolute(), *out.absolute().parents] if path.exists())
    try:
        folder = Path(tempfile.mkdtemp(prefix=".cram-plan-", dir=above))
    except OSError as error:
        remarks.append(f"a checkpoint was timed on the disk for temporary files: {above} takes none ({error.strerror})")
        folder = Path(tempfile.mkdtemp(prefix="cram-plan-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
