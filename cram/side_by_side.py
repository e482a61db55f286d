"""Micro-batches side by side on a processor: each is computed by a worker with its share of the threads.

The operations of a small model are too short to be divided: every one of them begins and ends by waiting for all threads. A
micro-batch has hundreds of them and nothing to wait for, so that workers seldom meet (``reports/speed_log.md``).

Bits depend on neither the workers' timing nor their number: each returns its gradients, and they are added in the order of the
micro-batches, as one worker alone would add them.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Callable, Iterable, Iterator, Optional, Sequence, TypeVar

import torch
from torch import Tensor, nn

from cram.device import Device

Item, Result = TypeVar("Item"), TypeVar("Result")


def worker_count(config, device: Device) -> int:
    """Workers of this process: as configured (``train.workers``); null: the most that torch has threads for and that divide
    the batch into whole rows. 1 where they cannot be: on a card, compiled, under torchrun, with a fused update."""
    train = config.train
    if device.kind != "cpu" or device.compile or train.parallel != "none" or config.optimizer.fused_backward:
        return 1
    if train.workers is not None:
        return train.workers
    rows = math.gcd(train.batch_tokens, train.batch_start_tokens or train.batch_tokens) // train.sequence_length
    return next(count for count in range(torch.get_num_threads(), 0, -1) if rows % count == 0)


class Workers:
    """``count`` threads, each with its share of torch's."""

    def __init__(self, count: int):
        self.count, threads = count, torch.get_num_threads()
        share = max(1, threads // count)
        self._pool = ThreadPoolExecutor(count, "micro-batch", torch.set_num_threads, (share,))

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Results in the items' order; as many are at work, or finished and not yet taken, as there are workers. What one
        raises is raised here, when none is at work any more."""
        for low in range(0, len(items), self.count):
            futures = [self._pool.submit(function, item) for item in items[low:low + self.count]]
            wait(futures)
            for future in futures:
                yield future.result()


def add_gradients(parameters: Iterable[nn.Parameter], gradients: Iterable[Optional[Tensor]]) -> None:
    """Add to ``.grad``; None: the parameter had no part."""
    there = [(parameter, gradient) for parameter, gradient in zip(parameters, gradients) if gradient is not None]
    new = [(parameter, gradient) for parameter, gradient in there if parameter.grad is None]
    old = [(parameter.grad, gradient) for parameter, gradient in there if parameter.grad is not None]
    if old:
        torch._foreach_add_(*map(list, zip(*old)))
    for parameter, gradient in new:
        parameter.grad = gradient
