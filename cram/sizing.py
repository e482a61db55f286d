"""Before the first step: the micro-batch, and what a step will cost."""

from __future__ import annotations

import time

import torch

from cram.device import is_out_of_memory, largest_micro_batch
from cram.errors import CramError
from cram.learner import Learner
from cram.objective import predicted_fraction
from cram.ops import Documents


def trial(learner: Learner, config, tokens: int) -> float:
    """Seconds of one forward and backward over made-up tokens in full rows; leaves no trace in the model."""
    started, row, device = time.perf_counter(), config.train.sequence_length, learner.device
    ids_N = torch.arange(tokens, device=device.kind) % learner.model.vocab_size
    start_N = torch.arange(tokens, device=device.kind, dtype=torch.int32) // row * row
    positions_K, labels_K = None, ids_N
    if not learner.model.causal:
        hidden = tokens * predicted_fraction(False, config.objective.mask_rate, row)
        positions_K = torch.arange(round(hidden), device=device.kind)
        labels_K = ids_N[:len(positions_K)]
    with device.autocast():
        total, _ = learner.loss(ids_N, Documents(start_N, start_N + row, row), positions_K, labels_K, learner.model.causal)
    if learner.optimizers.fused:
        learner.optimizers.before_backward(torch.ones((), device=device.kind))  # skip: no update
    (total * 0.0).backward()
    learner.optimizers.zero_grad()
    if device.kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def choose_micro_batch(learner: Learner, config, world: int) -> int:
    """Tokens per forward/backward of each of ``world`` processes that share the batch: as configured; on CUDA the most that
    fit; on the CPU 8,192 at most; the whole batch where AdaLomo updates inside the backward pass. CramError when the batch
    cannot be divided among them."""
    train, row = config.train, config.train.sequence_length
    if train.batch_tokens % (row * world):
        raise CramError(f"train.batch_tokens {train.batch_tokens} cannot be divided among {world} processes in whole rows of "
                        f"{row} tokens; nearest: {max(round(train.batch_tokens / row / world), 1) * row * world}")
    batch = train.batch_tokens // world
    if train.micro_batch_tokens is not None:
        if batch % train.micro_batch_tokens:
            raise CramError(f"train.micro_batch_tokens {train.micro_batch_tokens} does not divide the {batch} tokens that each "
                            f"of {world} processes takes of a batch")
        return train.micro_batch_tokens
    if config.optimizer.fused_backward:
        return batch
    if learner.device.kind == "cuda" and learner.world.size > 1:
        raise CramError(f"train.parallel={train.parallel} needs train.micro_batch_tokens: trying sizes out would hang as soon as "
                        f"one card alone ran out of memory; begin with {min(batch, 64 * row)}")
    if learner.device.kind == "cuda":
        return largest_micro_batch(lambda tokens: trial(learner, config, tokens), row=row, batch=batch,
                                   keep_free=8 * learner.model.parameter_count())  # two moments, float32
    rows = batch // row
    parts = next(parts for parts in range(1, rows + 1) if rows % parts == 0 and batch // parts <= max(8192, row))
    return batch // parts


def first_step_seconds(learner: Learner, config, micro_tokens: int, batch_tokens: int) -> float:
    """An estimate of the first optimizer step from a second trial (the first also pays for lazy initialisation).

    The CPU tries a single row, whose rate is no better than a whole micro-batch's. 0 when memory runs out: the first step
    deals with that.
    """
    tokens = config.train.sequence_length if learner.device.kind == "cpu" else micro_tokens
    try:
        trial(learner, config, tokens)
        return trial(learner, config, tokens) * batch_tokens / tokens
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 0.0
