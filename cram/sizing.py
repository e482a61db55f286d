"""Before the first step: the micro-batch, and what a step will cost."""

from __future__ import annotations

import math
import time
from typing import Callable, Optional

import torch

from cram.budget import Budget
from cram.device import compiles, is_out_of_memory, largest_micro_batch
from cram.errors import CramError
from cram.learner import Learner, take_on
from cram.objective import predicted_fraction
from cram.ops import Documents
from cram.shapes import Shape
from cram.side_by_side import worker_count


def trial(learner: Learner, config, tokens: int, shape: Optional[Shape] = None, causal: Optional[bool] = None) -> float:
    """Seconds of one forward and backward over made-up tokens; leaves no trace in the model.

    Without a shape: full rows, not compiled, to see what fits. With one: as in training, so that what it needs compiled
    is compiled. causal: None as the model was built.
    """
    started, device, before = time.perf_counter(), learner.device, learner.shape
    row, rate = (shape.row, shape.mask_rate) if shape else (config.train.sequence_length, config.objective.mask_rate)
    causal = learner.model.causal if causal is None else causal
    ids_N = torch.arange(tokens, device=device.kind) % learner.model.vocab_size
    start_N = torch.arange(tokens, device=device.kind, dtype=torch.int32) // row * row
    positions_K, labels_K = None, ids_N
    if not causal:
        hidden = tokens * predicted_fraction(False, rate, row)
        positions_K = torch.arange(round(hidden), device=device.kind)
        labels_K = ids_N[:len(positions_K)]
    # a module's forward is called as it is, its compiled code only through the module
    loss = learner.loss if shape or learner.world.size > 1 else learner.loss.forward
    if shape:
        take_on(learner.model, shape)
    with device.autocast():
        total, _ = loss(ids_N, Documents(start_N, start_N + row, row), positions_K, labels_K, causal)
    if learner.optimizers.fused:
        learner.optimizers.before_backward(torch.ones((), device=device.kind))  # skip: no update
    (total * 0.0).backward()
    learner.optimizers.zero_grad()
    take_on(learner.model, before)
    if device.kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def share_of_batch(config, world: int) -> int:
    """Tokens that each of ``world`` processes takes of a batch; micro-batches divide it. With a batch ramp of the smallest
    batch, or the ramp would not show. CramError when it cannot be divided."""
    train, row = config.train, config.train.sequence_length
    batch = math.gcd(train.batch_tokens, train.batch_start_tokens or train.batch_tokens)
    if batch % (row * world):
        raise CramError(f"train.batch_tokens {batch} cannot be divided among {world} processes in whole rows of {row} "
                        f"tokens; nearest: {max(round(batch / row / world), 1) * row * world}")
    return batch // world


def choose_micro_batch(learner: Learner, config, world: int) -> int:
    """Tokens per forward/backward of each of ``world`` processes that share the batch: as configured; on CUDA the most that
    fit; on the CPU 8,192 at most, and at least one for each of its workers; the whole batch where AdaLomo updates inside the
    backward pass."""
    train, row, batch = config.train, config.train.sequence_length, share_of_batch(config, world)
    if train.micro_batch_tokens is not None:
        if batch % train.micro_batch_tokens:
            raise CramError(f"train.micro_batch_tokens {train.micro_batch_tokens} does not divide the {batch} tokens that each "
                            f"of {world} processes takes of a batch")
        return train.micro_batch_tokens
    if config.optimizer.fused_backward:
        return batch
    if learner.device.kind == "cuda" and learner.world.size > 1:
        raise CramError(f"train.parallel={train.parallel} needs train.micro_batch_tokens: trying sizes out would hang as soon "
                        f"as one card alone ran out of memory; begin with {min(batch, 64 * row)}")
    if learner.device.kind == "cuda":
        return largest_micro_batch(lambda tokens: trial(learner, config, tokens), row=row, batch=batch,
                                   keep_free=8 * learner.model.parameter_count())  # two moments, float32
    rows = batch // row
    workers = worker_count(config, learner.device)
    parts = next(parts for parts in range(workers, rows + 1, workers)
                 if rows % parts == 0 and batch // parts <= max(8192, row))
    return batch // parts


def refuse_hasty_compilation(config, kind: str) -> None:
    """Before the clock starts: CramError when compiling would use up the budget. kind: "cpu" or "cuda"."""
    budget = Budget.parse(config.budget)
    if compiles(config.train, kind) and budget.kind == "time" and budget.amount < 120:
        raise CramError(f"budget={config.budget} with torch.compile: compiling alone takes about a minute; use train.compile=off "
                        "or two minutes or more")


def compile_all(learner: Learner, config, micro_tokens: int, shapes: list[Shape], spent: Callable[[], bool]) -> None:
    """Compile for every shape to come, so that none falls due when there is no time for it. spent: whether the budget is;
    then CramError."""
    kinds = {"masked": (False,), "causal": (True,), "hybrid": (False, True)}[config.objective.type]
    for shape in shapes:
        for causal in kinds:
            trial(learner, config, micro_tokens, shape, causal)
            if spent():
                raise CramError(f"budget={config.budget}: compiling took all of it ({len(shapes) * len(kinds)} graphs, one for "
                                "each shape of a step); give it more, use train.compile=off, or fewer plateaus")


def first_step_seconds(learner: Learner, config, micro_tokens: int, batch_tokens: int) -> float:
    """An estimate of the first optimizer step from a second trial (the first also pays for lazy initialisation).

    The CPU tries a single row, whose rate is no better than a whole micro-batch's, unless that is compiled. 0 when memory
    runs out: the first step deals with that.
    """
    whole = learner.device.kind == "cuda" or learner.device.compile
    tokens, shape = micro_tokens if whole else config.train.sequence_length, learner.shape if learner.device.compile else None
    try:
        trial(learner, config, tokens, shape)
        return trial(learner, config, tokens, shape) * batch_tokens / tokens
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
