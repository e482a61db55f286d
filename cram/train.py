"""The day: spend the budget on optimizer steps, and leave a durable checkpoint inside it.

Time is charged from the moment the ledger opens, before the device is touched. Every
schedule follows progress = spent / budget, and its value at each step is recorded in
``progress.f64`` (float64, one a step), so that a run under a clock can be replayed bit for bit: ``train.replay=<that file> budget='<its steps> steps'``.

What shapes a batch (mask rate, batch size) follows the progress of the step before, so the
next batch can be made while this one computes.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import torch

from cram import checkpoint, schedule
from cram.batches import Batches
from cram.budget import Budget
from cram.ledger import Ledger, read_ledger
from cram.config import to_dict
from cram.device import choose_device, energy_meter, keep_freed_memory
from cram.ended import ended
from cram.errors import CramError
from cram.evaluate.heldout import score_heldout
from cram.evaluate.samples import one_sample
from data_prep.files import replace_durably
from cram.interrupt import Interrupted, StopSignal
from cram.model import build, refuse_attention
from cram.objective import cross_entropy_sum
from cram.optim import LossScale, finish_gradients, make_optimizers, set_learning_rate
from cram.pace import Pace, read_replay
from cram.sizing import choose_micro_batch, first_step_seconds
from cram.telemetry import Telemetry
from data_prep.shards import Shards
from data_prep.tokenizer import load_tokenizer


def pretrain(config, data_dir: Path, tokenizer_dir: Path, run_dir: Path, run_id: str,
             say: Callable[[str], None] = print) -> None:
    """Train until the budget is spent; resume when ``run_dir`` holds an unfinished run of the same id.

    Leaves in run_dir: config.json, ledger.jsonl, progress.f64, metrics.jsonl, tensorboard/, checkpoints/.
    Raises CramError on unusable data, a foreign checkpoint or a diverged loss; Interrupted after
    saving on a signal.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    if ended(config, run_dir, run_id, say):
        return
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    shards, heldout = (Shards(data_dir, split, verify=True) for split in ("train", "validation"))
    replace_durably(run_dir / "config.json", json.dumps(to_dict(config), indent=1).encode())
    ledger = Ledger(run_dir / "ledger.jsonl", Budget.parse(config.budget), run_id, heartbeat=config.telemetry.heartbeat)
    try:
        device = choose_device(config.train)
        ledger.measure_energy(energy_meter(config.telemetry.energy, device.kind, say))
        day = Day(config, device, ledger, shards, heldout, load_tokenizer(tokenizer_dir), run_dir, run_id, say)
        try:
            with StopSignal() as stop:
                day.run(stop)
        finally:
            day.close()
    except BaseException as error:  # whatever ends the session, the ledger names it
        ledger.close(f"stopped by {type(error).__name__}")
        raise


class Unlogged:
    """Sums over the steps since the last row of metrics; the loss stays on the device until it is asked for."""

    def __init__(self, device: str):
        self.loss_sum = torch.zeros((), device=device)
        self.predicted = self.tokens = 0
        self.flops = self.seconds = 0.0

    def add(self, loss_sum: torch.Tensor, predicted: int, tokens: int, flops: float, seconds: float) -> None:
        self.loss_sum += loss_sum
        self.predicted, self.tokens = self.predicted + predicted, self.tokens + tokens
        self.flops, self.seconds = self.flops + flops, self.seconds + seconds


class Day:
    """One training process, from building the model to the last checkpoint."""

    def __init__(self, config, device, ledger: Ledger, shards: Shards, heldout: Shards, tokenizer, run_dir: Path,
                 run_id: str, say):
        self.config, self.device, self.ledger, self.say = config, device, ledger, say
        self.shards, self.heldout, self.tokenizer = shards, heldout, tokenizer
        self.run_dir, self.run_id = run_dir, run_id
        started, train = time.perf_counter(), config.train
        refuse_attention(config.model, device.kind)
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
        if device.kind == "cpu":
            keep_freed_memory()
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.seed)
        self.batches = Batches(self.shards, config.objective, row=train.sequence_length, seed=config.seed,
                               device=device.kind, order=train.order)
        self.model = build(config.model, self.shards.vocab_size, config.objective.type == "causal",
                           seed=config.seed).to(device.kind)
        self.loss_sum = torch.compile(cross_entropy_sum, dynamic=False) if device.compile else cross_entropy_sum
        self.optimizers = make_optimizers(self.model, config.optimizer)
        self.loss_scale = LossScale(enabled=device.scaled)
        self.pace = Pace(ledger, train)
        self.replay = read_replay(train.replay, ledger.budget)
        self.step = self.first_row = 0             # finished optimizer steps, consumed rows
        self.progress = 0.0                        # of the last finished step
        self.micro_tokens: Optional[int] = None    # per forward/backward, frozen at the first start
        self.saved_step: Optional[int] = None
        self.compiled_shapes: set[tuple] = set()
        self.unlogged = Unlogged(device.kind)
        self.resume()
        self.measure()
        self.pace.setup_seconds = time.perf_counter() - started

    def run(self, stop: StopSignal) -> None:
        """Step until the budget says stop; validate, log and save on the way; save at the end."""
        self.ledger.switch("steps")
        if self.saved_step is None:
            self.save()  # proves that the disk takes a checkpoint, and measures what that costs
        while (progress := self.next_progress()) is not None:
            if stop.received:
                self.leave()
            every, before = self.config.train.validate_every, self.progress
            self.optimizer_step(progress)
            if progress < 1.0 and progress // every > before // every and self.pace.has_room(self.pace.validation_seconds):
                self.validate()
            if self.pace.save_is_due(self.step) and self.pace.has_room(self.pace.save_seconds):
                self.save()
        self.finish()

    def next_progress(self) -> Optional[float]:
        """Progress of the next step, or None when the budget is spent."""
        rate, tokens = self.batch_shape()
        work = {"time": 0.0, "steps": 1, "tokens": tokens, "flops": tokens * self.flops_per_token(rate)}
        progress = self.pace.next_progress(work[self.ledger.budget.kind], self.progress)
        return progress if progress is None or self.replay is None else float(self.replay[self.step])

    def optimizer_step(self, progress: float) -> None:
        """Forward and backward over the micro-batches, then one update. The gradient is that of the mean loss
        over all tokens predicted in the step."""
        config, started = self.config, time.perf_counter()
        rate, tokens = self.batch_shape()
        rows = tokens // config.train.sequence_length
        with self.ledger.account("data_wait"):
            micro_batches = self.batches.step(
                self.step, self.first_row, micro_batches=tokens // self.micro_tokens,
                micro_rows=self.micro_tokens // config.train.sequence_length, mask_rate=rate)
        predicted = max(1, sum(micro.predicted for micro in micro_batches))
        set_learning_rate(self.optimizers, schedule.learning_rate(progress, config.schedule))
        loss_sum = torch.zeros((), device=self.device.kind)
        with self.ledger.account(self.step_category(rate)):
            for micro in micro_batches:
                with self.device.autocast():
                    loss = self.loss_sum(self.model, micro.ids_N, micro.documents, micro.positions_K, micro.labels_K,
                                         config.objective.z_loss, config.train.loss == "chunked")
                (loss * (self.loss_scale.scale / predicted)).backward()
                loss_sum += loss.detach()
            norm = finish_gradients(list(self.model.parameters()), self.loss_scale.scale, config.optimizer.clip)
            finite = not self.loss_scale.enabled or bool(norm.isfinite())  # float16 may overflow: skip that step
            for optimizer in self.optimizers:
                if finite:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.loss_scale.update(finite)
            if self.device.kind == "cuda":
                torch.cuda.synchronize()  # the clock must see finished work only
        flops = tokens * self.flops_per_token(rate)
        self.step, self.first_row, self.progress = self.step + 1, self.first_row + rows, progress
        self.ledger.count(steps=1, tokens=tokens, flops=flops)
        self.progress_file.write(np.float64(progress).tobytes())
        seconds = time.perf_counter() - started
        self.pace.step_seconds.append(seconds)
        self.unlogged.add(loss_sum, predicted, tokens, flops, seconds)
        if self.step % config.telemetry.log_every == 0 or self.step == 1 or progress == 1.0:
            self.log(float(norm), rate, tokens)

    def batch_shape(self) -> tuple[float, int]:
        """Mask rate and tokens of the next step."""
        objective, train = self.config.objective, self.config.train
        rate = schedule.mask_rate(self.progress, objective.mask_rate, objective.mask_rate_end, objective.mask_rate_levels)
        return rate, schedule.batch_tokens(self.progress, train.batch_tokens, train.batch_start_tokens, train.batch_ramp,
                                           self.micro_tokens)

    def flops_per_token(self, rate: float) -> float:
        return self.model.flops_per_token(self.config.train.sequence_length, 1.0 if self.model.causal else rate)

    def step_category(self, rate: float) -> str:
        """'compile' for the first step of each shape when compiling, else 'steps'."""
        shape = (self.micro_tokens, rate)
        if not self.device.compile or shape in self.compiled_shapes:
            return "steps"
        self.compiled_shapes.add(shape)
        return "compile"

    def log(self, norm: float, rate: float, batch_tokens: int) -> None:
        """One row of metrics: means since the row before. Stops a run whose loss is no number any more."""
        since, self.unlogged = self.unlogged, Unlogged(self.device.kind)
        loss, speed = float(since.loss_sum) / since.predicted, since.tokens / since.seconds
        rates = {"muon_lr" if "momentum" in group else "lr": group["lr"]
                 for optimizer in self.optimizers for group in optimizer.param_groups}
        self.telemetry.train({
            "step": self.step, "progress": self.progress, "spent": self.ledger.seconds, "loss": loss,
            "lr": rates["lr"], "muon_lr": rates.get("muon_lr"), "grad_norm": norm,
            "tokens": self.first_row * self.config.train.sequence_length, "tokens_per_second": speed,
            "batch_tokens": batch_tokens, "mask_rate": None if self.model.causal else rate,
            "mfu": since.flops / since.seconds / self.device.peak_flops if self.device.peak_flops else None,
            "memory_bytes": self.device.memory()})
        budget, spent = self.ledger.budget, self.ledger.spent
        share, running = max(spent / budget.amount, 1e-9), self.ledger.seconds - self.ledger.account_seconds["setup"]
        eta = budget.amount - spent if budget.kind == "time" else running * (1 / share - 1)
        self.telemetry.progress(fraction=share, left=budget.show(budget.amount - spent), loss=loss,
                                tokens_per_second=speed, eta=eta)
        if not math.isfinite(loss):
            raise CramError(f"step {self.step}: the loss is {loss}; lower optimizer.lr and optimizer.muon_lr, or use "
                            "train.precision=fp32: that is a new run with a budget of its own")

    def validate(self) -> None:
        """A small held-out score and one sample, charged; changes nothing in the run."""
        started = time.perf_counter()
        with self.ledger.account("validation"):
            train, evaluate = self.config.train, self.config.evaluate
            score = score_heldout(self.model, self.heldout, row=train.sequence_length, mask_rate=evaluate.mask_rate,
                                  max_tokens=train.validation_tokens, batch_tokens=self.micro_tokens,
                                  device=self.device.kind, autocast=self.device.autocast())
            sample = one_sample(self.model, self.tokenizer, evaluate, device=self.device.kind)
            self.telemetry.validation({"step": self.step, "progress": self.progress, "spent": self.ledger.seconds,
                                       "loss": score["loss"], "accuracy": score["accuracy"],
                                       "bits_per_byte": score.get("bits_per_byte")})
            if sample is not None:
                self.telemetry.sample(sample, self.step)
        self.pace.validated(time.perf_counter() - started)

    def save(self) -> None:
        """A durable checkpoint of this moment, charged."""
        started = time.perf_counter()
        with self.ledger.account("saving"):
            self.progress_file.flush()
            os.fsync(self.progress_file.fileno())
            state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                     "loss_scale": self.loss_scale.state_dict(), "vocab_size": self.shards.vocab_size, "step": self.step,
                     "first_row": self.first_row, "progress": self.progress, "micro_tokens": self.micro_tokens,
                     "pace": self.pace.state_dict(), "rng": torch.get_rng_state(),
                     "cuda_rng": torch.cuda.get_rng_state() if self.device.kind == "cuda" else None}
            self.ledger.checkpoint(self.step)
            checkpoint.save(self.run_dir / "checkpoints", state, step=self.step, run_id=self.run_id,
                            keep=self.config.train.keep_checkpoints)
        self.saved_step = self.step
        self.pace.saved(time.perf_counter() - started)

    def resume(self) -> None:
        """Take up the newest good checkpoint, if any; what was spent since is lost and stays charged."""
        state = checkpoint.load_newest(self.run_dir / "checkpoints", self.run_id, self.say, self.device.kind)
        if state is not None:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.loss_scale.load_state_dict(state["loss_scale"])
            self.pace.load_state_dict(state["pace"])
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu())
            self.step, self.first_row, self.progress = state["step"], state["first_row"], state["progress"]
            self.micro_tokens, self.saved_step = state["micro_tokens"], state["step"]
        lost = self.ledger.resume(self.step)
        self.progress_file = open(self.run_dir / "progress.f64", "ab")
        self.progress_file.truncate(8 * self.step)  # the steps after the checkpoint are not part of the run
        self.telemetry = Telemetry(self.run_dir, config=to_dict(self.config), resume_step=self.step,
                                   print_every=self.config.telemetry.print_every, say=self.say)
        if self.ledger.sessions > 1:
            budget = self.ledger.budget
            self.telemetry.resume({"step": self.step, "spent": self.ledger.seconds, "lost": lost})
            self.say(f"resuming at step {self.step}: {lost:.1f} s spent since then are lost and stay charged; "
                     f"{budget.show(budget.amount - self.ledger.spent)} left")

    def measure(self) -> None:
        """Fix the micro-batch at the first start, time a trial, and announce the plan."""
        config, train, device = self.config, self.config.train, self.device
        attention = self.model.backend
        self.micro_tokens = self.micro_tokens or choose_micro_batch(self.model, device, config)
        rate, tokens = self.batch_shape()
        self.pace.expect(first_step_seconds(self.model, device, config, self.micro_tokens, tokens), tokens)
        self.telemetry.plan({
            "device": device.name, "parameters": self.model.parameter_count(), "flops_per_token": self.flops_per_token(rate),
            "micro_batch_tokens": self.micro_tokens, "precision": str(device.dtype).removeprefix("torch."),
            "attention": attention, "compile": device.compile})
        self.say(f"plan: {self.model.parameter_count():,} parameters on {device.name}, {device.dtype}, attention {attention}, "
                 f"torch.compile {'on' if device.compile else 'off'}; steps of {train.batch_tokens:,} tokens in "
                 f"micro-batches of {self.micro_tokens:,}; text of {self.shards.n_tokens:,} tokens; "
                 f"budget {self.ledger.budget.text}")

    def leave(self) -> None:
        """Save and go, as a signal asked."""
        if self.saved_step != self.step:
            self.save()
        self.ledger.close("interrupted")
        self.say(f"stopped at step {self.step} and saved; the same command resumes")
        raise Interrupted

    def finish(self) -> None:
        """The last checkpoint, inside the budget; then the ledger is closed for good."""
        if self.step == 0:
            raise CramError(f"budget={self.ledger.budget.text}: spent before the first step ({self.ledger.seconds:.1f} s for "
                            "building and saving); give it more")
        if self.saved_step != self.step:
            self.save()
        self.ledger.close("finished")
        reason = "budget spent"
        if self.progress < 1.0:
            reason = f"lost work used up the budget at progress {self.progress:.3f}, before the learning rate reached 0"
            self.say(f"warning: {reason}")
        summary = read_ledger(self.ledger.path)
        self.say(f"pretrain: {self.step:,} steps; {self.ledger.budget.show(summary.spent)} of {self.ledger.budget.text} spent "
                 f"({summary.fraction:.1%})")
        self.telemetry.end({"step": self.step, "progress": self.progress, "spent": summary.seconds,
                            "reason": reason})

    def close(self) -> None:
        """Let go of threads and files."""
        self.batches.close()
        self.progress_file.close()
        self.telemetry.close()
