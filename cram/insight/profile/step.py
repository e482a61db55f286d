"""The step that is looked at: the real learner, micro-batches and shape of a configuration at one point of its run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import Iterator, Optional

import torch

from cram import schedule
from cram.batches import Batches
from cram.bench.step import RandomText
from cram.device import choose_device, device_kind
from cram.errors import CramError
from cram.learner import Learner, hire_teacher
from cram.parallel import World
from cram.shapes import shape_at
from cram.sizing import choose_micro_batch


class Step:
    """What ``cram.train.Day.optimizer_step`` does, without ledger and telemetry.

    text: ``Shards``, or None for random tokens in documents of realistic lengths. progress: share of the budget spent, which
    decides batch, row length, mask rate, window, depth and learning rate. compiled: as the configuration says, or never.
    clock: as for ``marks.now``; None for the device's own.
    """

    def __init__(self, config, text=None, progress: float = 0.0, compiled: bool = False, clock: Optional[str] = None):
        device = choose_device(config.train)
        self.config, self.wanted, self.clock = config, device.compile, clock or device.kind
        self.device = dataclasses.replace(device, compile=device.compile and compiled)
        vocab_size = config.tokenizer.vocab_size if text is None else text.vocab_size
        teacher = hire_teacher(config, vocab_size, device.kind)
        self.learner = Learner(config, self.device, World(kind=device.kind), vocab_size, teacher)
        self.micro_tokens = choose_micro_batch(self.learner, config, 1)
        self.shape = shape_at(progress, config, self.micro_tokens)
        self.learner.enter(self.shape)
        self.learner.optimizers.set_learning_rate(schedule.learning_rate(progress, config.schedule))
        row, train = config.train.sequence_length, config.train
        text = RandomText(vocab_size, max(self.shape.tokens, 4 * row), config.seed) if text is None else text
        self.batches = Batches(text, config.objective, row=row, seed=config.seed, device=device.kind, order=train.order)
        self.number, self.kinds = 0, []  # of the latest step's micro-batches, whether each is causal

    def __call__(self, prefetch: bool = True) -> list:
        """Take the next step; its micro-batches. prefetch: as in training, a thread beside this one makes the next batch."""
        shape, row = self.shape, self.config.train.sequence_length
        rows = shape.tokens // row
        micro_batches = self.batches.step(self.number, self.number * rows, rows=rows, length=shape.row, prefetch=prefetch,
                                          micro_rows=self.micro_tokens // row, mask_rate=shape.mask_rate)
        self.kinds = kinds = [micro.causal for micro in micro_batches]
        weights = {kind: kinds.count(kind) / len(kinds) / max(1, sum(m.predicted for m in micro_batches if m.causal == kind))
                   for kind in set(kinds)}
        self.learner.update(self.learner.backward(micro_batches, weights))
        self.learner.guard.unread.clear()
        self.number += 1
        return micro_batches

    def wait(self) -> None:
        """Until the device has finished."""
        if self.device.kind == "cuda":
            torch.cuda.synchronize()

    def seconds(self) -> float:
        """Of one step that nobody looks at."""
        read = time.thread_time if self.clock == "thread" else time.perf_counter
        self.wait()
        started = read()
        self()
        self.wait()
        return read() - started

    def needed_pairs(self, micro_batches: list) -> int:
        """Pairs of tokens that see each other, over all micro-batches: what attention has to compute."""
        total = 0
        for micro in micro_batches:
            documents = micro.documents
            if not self.config.model.document_mask:
                documents = type(documents)(None, None, documents.row)
            first_N, last_N = documents.sees(len(micro.ids_N), causal=micro.causal, window=self.shape.window,
                                             device=self.device.kind)
            total += int((last_N - first_N).clamp(min=0).sum())
        return total

    def at_rest(self) -> Iterator[torch.Tensor]:
        """What stays from step to step: weights and optimizer states, averages, a teacher."""
        learner = self.learner
        yield from learner.model.parameters()
        for optimizer in learner.optimizers.members:
            yield from getattr(optimizer, "masters", {}).values()
            for state in optimizer.state.values():
                yield from (value for value in state.values() if torch.is_tensor(value))
        if learner.ema is not None:
            yield from learner.ema.averages.values()
        if learner.teacher is not None:
            yield from learner.teacher.parameters()

    def close(self) -> None:
        self.batches.close()


@contextlib.contextmanager
def prepared(config, text=None, progress: float = 0.0, compiled: bool = False, clock: Optional[str] = None) -> Iterator[Step]:
    """A step, warmed up by one: optimizers have their state."""
    step = Step(config, text, progress, compiled, clock)
    try:
        step()
        yield step
    finally:
        step.close()


def text_of_the_run(config) -> tuple[Optional[object], str]:
    """The packed text of this configuration where ``cram data`` has made it, else None; and which it is, in words."""
    from cram.pipeline import STAGES
    from cram.stages import Runner
    from data_prep.shards import Shards

    try:
        plan = next(plan for plan in Runner(STAGES, config, lambda line: None).plan("data") if plan.stage.name == "data")
    except (CramError, OSError) as error:  # a source that is not here is no reason not to look at a step
        return None, f"random tokens (the run's text cannot be looked for: {error})"
    if plan.state != "fresh":
        return None, "random tokens, in documents of realistic lengths (the run's own text is not prepared)"
    return Shards(Path(plan.folder), "train"), "the run's own"


def refuse(config, progress: float, steps: int, thread_time: bool = False) -> None:
    """Raise CramError for what cannot be profiled."""
    if not 0.0 <= progress < 1.0 or math.isnan(progress):
        raise CramError(f"--progress {progress}: a share of the budget, from 0 to less than 1")
    if steps < 2:
        raise CramError(f"--steps {steps}: at least 2, of which the fastest count")
    if thread_time and (device_kind(config.train) != "cpu" or config.train.threads != 1):
        raise CramError("--thread-time: the time that one thread computes; use train.device=cpu train.threads=1 with it")
    if config.train.parallel != "none":
        raise CramError(f"train.parallel={config.train.parallel}: a profile looks at one process; use train.parallel=none")
