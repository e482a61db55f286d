"""One whole training step, as ``cram.train`` takes it, with every attention back end: forward and backward over the
micro-batches, clipping, update.

Same model, same packed batch for all, made by ``cram.batches`` from random tokens in documents of realistic lengths.
Time is wall-clock until the device has finished; making the batch is not timed. On the CPU the demo configurations
take the place of the days.
"""

from __future__ import annotations

import contextlib
import copy
import os
from functools import partial
from typing import Callable, Iterator, Optional

import numpy as np
import torch

from cram.batches import Batches, MicroBatch
from cram.bench.attention import document_starts
from cram.bench.measure import HostTimer, attempt, no_silent_fallback, race
from cram.config import load
from cram.device import Device, choose_device, keep_freed_memory
from cram.learner import Learner
from cram.objective import predicted_fraction
from cram.ops import BACKENDS
from cram.parallel import World
from cram.sizing import choose_micro_batch
from data_prep.tokenizer import SPECIAL_IDS

CONFIGS = {"cuda": ("bert_day", "gpt_day"), "cpu": ("demo", "demo_gpt")}
LEARNING_RATE = 0.01  # share of the peak: the same batch is learnt again and again
WARM_UP = 3           # steps before any is timed; the first compiles
REPEATS = {"cuda": 10, "cpu": 10}
VIEW = {"title": "A training step with each attention back end", "panel": "{config}: {parameters:,} parameters, "
        "{batch_tokens:,} tokens a step in micro-batches of {micro_tokens:,}, rows of {row:,}",
        "x": "config", "line": "backend", "kind": "bars", "baseline": "sdpa", "y": [["tokens_per_second", "tokens/s"]],
        "columns": [["attention", "backend", ""], ["step, ms (quartiles)", "step", "spread"],
                    ["tokens/s", "tokens_per_second", ",.0f"], ["MFU", "mfu", ".1%"],
                    ["peak memory, GiB", "peak_gib", ".2f"], ["loss", "loss", ".5f"], ["warm-up, s", "warm_up_s", ".1f"]]}
NOTES = ["MFU: FLOPs of the model by formula (attention over whole rows) over the card's dense bf16 peak.",
         "peak memory: what a step takes at most, with parameters, gradients and optimizer states.",
         "loss: nats a predicted token in the first timed step, after the same warm-up steps for all."]


class RandomText:
    """Stands for packed shards (``data_prep.shards.Shards``): random tokens, a [CLS] at every document's start."""

    special = SPECIAL_IDS
    dtype, row_tokens = np.dtype("uint16"), None

    def __init__(self, vocab_size: int, tokens: int, seed: int = 0):
        self.vocab_size, self.n_tokens = vocab_size, tokens
        self.tokens = np.random.default_rng(seed).integers(len(self.special), vocab_size, tokens).astype(np.uint16)
        self.tokens[document_starts(tokens, seed)] = self.special["cls"]

    def read(self, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]


class Competitor:
    """A model in training with one attention back end. Raises CramError where that cannot run."""

    def __init__(self, config, device: Device):
        self.device, self.learner = device, Learner(config, device, World(kind=device.kind), config.tokenizer.vocab_size)
        self.learner.optimizers.set_learning_rate(LEARNING_RATE)
        self.losses: list[torch.Tensor] = []

    def ready(self, batch: list[MicroBatch]) -> Callable[[], None]:
        return partial(self.step, batch)

    def step(self, batch: list[MicroBatch]) -> None:
        """``cram.train.Day.optimizer_step`` without its book-keeping."""
        predicted = max(1, sum(micro.predicted for micro in batch))
        loss = self.learner.backward(batch, dict.fromkeys((False, True), 1 / predicted))
        self.learner.update(loss)
        self.losses.append(loss)

    def bytes_at_rest(self) -> int:
        """Parameters and optimizer states."""
        return sum(p.nbytes for p in self.learner.model.parameters()) + self.learner.optimizers.memory(self.device.kind)

    def peak_bytes(self, batch: list[MicroBatch]) -> Optional[int]:
        """What one step holds at most; None on the CPU."""
        if self.device.kind != "cuda":
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.step(batch)
        torch.cuda.synchronize()
        return self.bytes_at_rest() + torch.cuda.max_memory_allocated() - before


@contextlib.contextmanager
def switches_of_training(train, device: Device) -> Iterator[None]:
    """torch's global switches as ``cram.train`` sets them; those that can be are put back."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
              torch.utils.deterministic.fill_uninitialized_memory, torch.get_float32_matmul_precision())
    if device.kind == "cpu":
        keep_freed_memory()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]
        torch.set_float32_matmul_precision(before[3])


def measure(device: str, quick: bool, repeats: int, say: Callable[[str], None]) -> Iterator[list[dict]]:
    """The rows of one configuration after another: one for each back end. quick: steps of one micro-batch on a card."""
    for name in CONFIGS[device]:
        config = load(name, [f"train.device={device}"])
        chosen = choose_device(config.train)
        with switches_of_training(config.train, chosen), no_silent_fallback():
            rows = measure_config(name, config, chosen, quick, repeats)
            if chosen.compile:
                torch.compiler.reset()
        say(f"step: {name}: " + ", ".join(f"{row['backend']} " + (f"{row['step']['ms']:.1f} ms" if "step" in row else "failed")
                                          for row in rows))
        yield rows


def measure_config(name: str, config, device: Device, quick: bool, repeats: int) -> list[dict]:
    """One row for each back end, all with the micro-batch that fits sdpa, which holds its mask in memory."""
    row = config.train.sequence_length
    config.model.attention = "sdpa"
    model = (learner := Learner(config, device, World(kind=device.kind), config.tokenizer.vocab_size)).model
    micro_tokens = choose_micro_batch(learner, config, 1)
    flops = model.flops_per_token(row, predicted_fraction(model.causal, config.objective.mask_rate, row))
    batch_tokens = micro_tokens if quick else config.train.batch_tokens
    facts = {"config": name, "row": row, "parameters": model.parameter_count(), "batch_tokens": batch_tokens,
             "micro_tokens": micro_tokens, "precision": str(device.dtype).removeprefix("torch."), "compile": device.compile}
    del model, learner
    batch = make_batch(config, device, batch_tokens, micro_tokens)

    rows, competitors = {}, {}
    for backend in BACKENDS:
        own = copy.deepcopy(config)
        own.model.attention = backend
        competitor, error = attempt(Competitor, own, device)
        rows[backend] = {**facts, "backend": backend} | ({"error": error} if error else {})
        if competitor is not None:
            competitors[backend] = competitor
    turns = {backend: partial(competitor.ready, batch) for backend, competitor in competitors.items()}
    for backend, timing in race(turns, HostTimer(device.kind), repeats, WARM_UP).items():
        row, competitor = rows[backend], competitors[backend]
        if isinstance(timing, str):
            row["error"] = timing
            continue
        speed, peak = batch_tokens / timing.median, competitor.peak_bytes(batch)
        row |= {"step": timing.milliseconds(), "tokens_per_second": speed,
                "mfu": flops * speed / device.peak_flops if device.peak_flops else None, "peak_bytes": peak,
                "peak_gib": peak and peak / 2**30, "loss": float(competitor.losses[WARM_UP]), "warm_up_s": timing.warm_up}
    return list(rows.values())


def make_batch(config, device: Device, tokens: int, micro_tokens: int) -> list[MicroBatch]:
    """The micro-batches of one step, on the device."""
    row = config.train.sequence_length
    text = RandomText(config.tokenizer.vocab_size, tokens)
    batches = Batches(text, config.objective, row=row, seed=config.seed, device=device.kind)
    try:
        return batches.step(0, 0, rows=tokens // row, micro_rows=micro_tokens // row, mask_rate=config.objective.mask_rate,
                            prefetch=False)
    finally:
        batches.close()
