"""Before the first step: the micro-batch, and what a step will cost."""

from __future__ import annotations

import time

import torch

from cram.device import Device, largest_micro_batch
from cram.objective import cross_entropy_sum
from cram.ops import Documents


def trial(model, device: Device, config, tokens: int) -> float:
    """Seconds of one forward and backward over made-up tokens; leaves no trace in the model."""
    started, row = time.perf_counter(), config.train.sequence_length
    ids_N = torch.arange(tokens, device=device.kind) % model.vocab_size
    start_N = torch.arange(tokens, device=device.kind, dtype=torch.int32) // row * row
    positions_K, labels_K = None, ids_N
    if not model.causal:
        positions_K = torch.arange(max(1, round(tokens * config.objective.mask_rate)), device=device.kind)
        labels_K = ids_N[:len(positions_K)]
    with device.autocast():
        loss = cross_entropy_sum(model, ids_N, Documents(start_N, start_N + row, row), positions_K, labels_K,
                                 chunked=config.train.loss == "chunked")
    (loss * 0.0).backward()
    model.zero_grad(set_to_none=True)
    if device.kind == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def choose_micro_batch(model, device: Device, config) -> int:
    """Tokens per forward/backward: as configured; on CUDA the most that fit; on the CPU 8,192 at most."""
    train = config.train
    if train.micro_batch_tokens is not None:
        return train.micro_batch_tokens
    if device.kind == "cuda":
        return largest_micro_batch(lambda tokens: trial(model, device, config, tokens), row=train.sequence_length,
                                   batch=train.batch_tokens, keep_free=8 * model.parameter_count())  # two moments, float32
    rows = train.batch_tokens // train.sequence_length
    parts = next(parts for parts in range(1, rows + 1)
                 if rows % parts == 0 and train.batch_tokens // parts <= max(8192, train.sequence_length))
    return train.batch_tokens // parts


def first_step_seconds(model, device: Device, config, micro_tokens: int, batch_tokens: int) -> float:
    """An estimate of the first optimizer step from a second trial (the first also pays for lazy initialisation).

    The CPU tries a single row, whose rate is no better than a whole micro-batch's.
    """
    tokens = config.train.sequence_length if device.kind == "cpu" else micro_tokens
    trial(model, device, config, tokens)
    return trial(model, device, config, tokens) * batch_tokens / tokens
