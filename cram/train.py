"""The day: spend the budget on optimizer steps, and leave a durable checkpoint inside it.

Time is charged from the first line of ``pretrain`` on: the ledger opens before the device
is taken. Every schedule follows progress = spent / budget, and its value at each step is
recorded in ``progress.f64`` (float64, one a step), so that a run under a clock can be
replayed bit for bit: ``train.replay=<that file> budget='<its steps> steps'``.

What shapes a batch (mask rate, batch size) follows the progress of the step before, so the
next batch can be made while this one computes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import torch

from cram import checkpoint, schedule
from cram.batches import Batches
from cram.budget import Budget, Ledger, read_ledger
from cram.config import to_dict
from cram.device import choose_device, energy_meter, largest_micro_batch
from cram.errors import CramError
from cram.evaluate.heldout import score_heldout
from cram.files import replace_durably
from cram.interrupt import Interrupted, StopSignal
from cram.model import build
from cram.objective import cross_entropy_sum
from cram.ops import Documents
from cram.optim import LossScale, finish_gradients, make_optimizers, set_learning_rate
from cram.telemetry import Telemetry
from data_prep.shards import Shards


def pretrain(config, data_dir: Path, run_dir: Path, run_id: str, say: Callable[[str], None] = print) -> None:
    """Train until the budget is spent; resume when ``run_dir`` holds an unfinished run of the same id.

    Leaves in run_dir: config.json, ledger.jsonl, progress.f64, metrics.jsonl, tensorboard/, checkpoints/.
    Raises CramError on unusable data, a foreign checkpoint or a diverged loss; Interrupted after
    saving on a signal.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    ledger_path = run_dir / "ledger.jsonl"
    if ledger_path.exists() and read_ledger(ledger_path).reason == "finished":
        say("pretrain: this run has already spent its budget")
        return
    if not ledger_path.exists() and checkpoint.list_checkpoints(run_dir / "checkpoints"):
        raise CramError(f"{ledger_path}: missing, but there are checkpoints: what they cost cannot be proved. "
                        "Restore the ledger, or start a new run with --force")
    replace_durably(run_dir / "config.json", json.dumps(to_dict(config), indent=1).encode())
    device = choose_device(config.train)
    ledger = Ledger(ledger_path, Budget.parse(config.budget), run_id, heartbeat=config.telemetry.heartbeat,
                    energy=energy_meter(config.telemetry.energy, device.kind, say))
    try:
        with StopSignal() as stop:
            Day(config, device, ledger, data_dir, run_dir, run_id, say).run(stop)
    except BaseException as error:  # whatever ended the session, the ledger says so
        ledger.close(f"stopped by {type(error).__name__}")
        raise


class Day:
    """One training process, from building the model to the last checkpoint."""

    def __init__(self, config, device, ledger: Ledger, data_dir: Path, run_dir: Path, run_id: str, say):
        self.config, self.device, self.ledger, self.say = config, device, ledger, say
        self.run_dir, self.run_id = run_dir, run_id
        train = config.train
        if train.threads:
            torch.set_num_threads(train.threads)
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.seed)
        self.shards, self.heldout = Shards(data_dir, "train"), Shards(data_dir, "validation")
        self.batches = Batches(self.shards, config.objective, row=train.sequence_length, seed=config.seed,
                               device=device.kind)
        self.model = build(config.model, self.shards.vocab_size, config.objective.type == "causal",
                           seed=config.seed).to(device.kind)
        self.loss_sum = torch.compile(cross_entropy_sum) if device.compile else cross_entropy_sum
        self.optimizers = make_optimizers(self.model, config.optimizer)
        self.loss_scale = LossScale(enabled=device.scaled)
        self.replay = read_replay(train.replay, ledger.budget)
        self.step = self.first_row = 0              # finished optimizer steps, consumed rows
        self.progress = 0.0                         # of the last finished step
        self.micro_tokens: Optional[int] = None     # per forward/backward, frozen at the first start
        self.step_seconds: deque[float] = deque(maxlen=16)
        self.save_seconds = self.validation_seconds = 0.0   # slowest so far
        self.saved_step, self.saved_at = -1, 0.0
        self.compiled_shapes: set[tuple] = set()
        self.loss = math.nan
        self.resume()
        self.measure()

    # ---- the loop

    def run(self, stop: StopSignal) -> None:
        """Step until the budget says stop; validate, log and save on the way; save at the end."""
        self.ledger.switch("steps")
        if self.step == 0:
            self.save()  # proves that the disk takes a checkpoint, and measures what that costs
        while (progress := self.next_progress()) is not None:
            if stop.received:
                self.save()
                self.ledger.close("interrupted")
                self.telemetry.close()
                self.say(f"stopped at step {self.step}, saved; run the same command again to resume")
                raise Interrupted
            before = self.progress
            self.optimizer_step(progress)
            every = self.config.train.validate_every
            if progress < 1.0 and int(progress / every) > int(before / every) and self.has_room(self.validation_seconds):
                self.validate()
            if self.save_is_due() and self.has_room(self.save_seconds):
                self.save()
        self.finish()

    def optimizer_step(self, progress: float) -> None:
        """Forward and backward over the micro-batches, then one update. Gradients are of the mean loss
        over all tokens predicted in the step."""
        config, started = self.config, time.perf_counter()
        rate, tokens = self.batch_shape()
        with self.ledger.account("data_wait"):
            micro_batches = self.batches.step(
                self.step, self.first_row, micro_batches=tokens // self.micro_tokens,
                micro_rows=self.micro_tokens // config.train.sequence_length, mask_rate=rate)
        predicted = sum(micro.predicted for micro in micro_batches)
        share = schedule.learning_rate(progress, config.schedule)
        set_learning_rate(self.optimizers, share)
        total = torch.zeros((), device=self.device.kind)
        with self.ledger.account(self.step_category(rate)):
            for micro in micro_batches:
                with self.device.autocast():
                    loss = self.loss_sum(self.model, micro.ids_N, micro.documents, micro.positions_K, micro.labels_K,
                                         config.objective.z_loss)
                (loss * (self.loss_scale.scale / max(predicted, 1))).backward()
                total += loss.detach()
            norm = finish_gradients(list(self.model.parameters()), self.loss_scale.scale, config.optimizer.clip)
            finite = not self.loss_scale.enabled or bool(norm.isfinite())
            for optimizer in self.optimizers:
                if finite:
                    optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.loss_scale.update(finite)
            if self.device.kind == "cuda":
                torch.cuda.synchronize()  # the clock must see finished work
        flops = tokens * self.model.flops_per_token(config.train.sequence_length, self.predicted_fraction(rate))
        self.step += 1
        self.first_row += tokens // config.train.sequence_length
        self.progress = progress
        self.ledger.count(steps=1, tokens=tokens, flops=flops)
        self.progress_file.write(np.float64(progress).tobytes())
        seconds = time.perf_counter() - started
        self.step_seconds.append(seconds)
        if self.step % config.telemetry.log_every == 0 or self.step == 1 or progress == 1.0:
            self.log(total, predicted, norm, share, rate, tokens, tokens / seconds, flops / seconds)

    def finish(self) -> None:
        """The last checkpoint, inside the budget; then the ledger is closed for good."""
        if self.step == 0:
            raise CramError(f"budget {self.ledger.budget.text} was spent before the first step "
                            f"({self.ledger.seconds:.1f} s for building and saving); give it more")
        if self.saved_step != self.step:
            self.save()
        self.ledger.close("finished")
        self.batches.close()
        reason = "budget spent"
        if self.progress < 1.0:
            reason = f"lost work used up the budget at progress {self.progress:.3f}, before the learning rate reached 0"
            self.say(f"warning: {reason}")
        self.telemetry.end({"step": self.step, "progress": self.progress, "spent": self.ledger.seconds, "reason": reason})
        self.telemetry.close()

    # ---- when to stop

    def next_progress(self) -> Optional[float]:
        """Progress of the next step, or None at the end. The run's last step has progress 1."""
        if self.progress == 1.0:
            return None
        budget = self.ledger.budget
        spent, cost = self.ledger.spent, self.step_cost()
        if budget.kind != "time":
            progress = schedule.progress(budget.amount, spent, cost)
        else:
            progress = schedule.progress(budget.amount, spent, cost, self.reserve())
            if progress is None and self.step and spent + cost + 1.5 * self.save_seconds < budget.amount:
                progress = 1.0  # the step before took longer than foreseen: this one closes the run
        if progress is None or self.replay is None:
            return progress and max(progress, self.progress)
        return float(self.replay[self.step])

    def step_cost(self) -> float:
        """What the next step costs in the budget's unit; seconds: as much as the slowest of the recent ones."""
        rate, tokens = self.batch_shape()
        match self.ledger.budget.kind:
            case "time":
                return max(self.step_seconds)
            case "steps":
                return 1
            case "tokens":
                return tokens
        return tokens * self.model.flops_per_token(self.config.train.sequence_length, self.predicted_fraction(rate))

    def reserve(self) -> float:
        """Seconds kept back for the last checkpoint: twice the slowest so far and a margin for a busy machine."""
        if self.config.train.reserve is not None:
            return self.config.train.reserve
        return 2 * self.save_seconds + min(0.2 + 0.004 * self.ledger.budget.amount, 10.0)

    def has_room(self, seconds: float) -> bool:
        """Whether something may be done on the side without endangering the end."""
        budget = self.ledger.budget
        return budget.kind != "time" or self.ledger.spent + 2 * seconds + self.reserve() < budget.amount

    def save_is_due(self) -> bool:
        train = self.config.train
        if train.checkpoint_every_steps is not None:
            return self.step % train.checkpoint_every_steps == 0
        every = train.checkpoint_every
        if every is None:
            every = min(max(100 * self.save_seconds, 10.0), 600.0)
        return time.monotonic() - self.saved_at > every

    # ---- what a step looks like

    def batch_shape(self) -> tuple[float, int]:
        """Mask rate and tokens of the next step."""
        objective, train = self.config.objective, self.config.train
        rate = schedule.mask_rate(self.progress, objective.mask_rate, objective.mask_rate_end, objective.mask_rate_levels)
        return rate, schedule.batch_tokens(self.progress, train.batch_tokens, train.batch_start_tokens, train.batch_ramp,
                                           self.micro_tokens)

    def predicted_fraction(self, rate: float) -> float:
        return 1.0 if self.model.causal else rate

    def step_category(self, rate: float) -> str:
        """'compile' for the first step of each shape when compiling, else 'steps'."""
        shape = (self.micro_tokens, rate)
        if not self.device.compile or shape in self.compiled_shapes:
            return "steps"
        self.compiled_shapes.add(shape)
        return "compile"

    # ---- on the side

    def validate(self) -> None:
        """A small held-out score, charged; it changes nothing in the run."""
        started = time.perf_counter()
        with self.ledger.account("validation"):
            train = self.config.train
            score = score_heldout(self.model, self.heldout, row=train.sequence_length,
                                  mask_rate=self.config.evaluate.mask_rate, max_tokens=train.validation_tokens,
                                  batch_tokens=self.micro_tokens, device=self.device.kind, autocast=self.device.autocast())
        self.telemetry.validation({"step": self.step, "progress": self.progress, "spent": self.ledger.seconds,
                                   "loss": score["loss"], "accuracy": score["accuracy"],
                                   "bits_per_byte": score.get("bits_per_byte")})
        self.validation_seconds = max(self.validation_seconds, time.perf_counter() - started)

    def log(self, total, predicted, norm, share, rate, tokens, tokens_per_second, flops_per_second) -> None:
        """One row of metrics; stops a run whose loss is no number any more."""
        self.loss = float(total) / max(predicted, 1)
        rates = {"muon_lr" if "momentum" in group else "lr": group["lr"]
                 for optimizer in self.optimizers for group in optimizer.param_groups}
        self.telemetry.train({
            "step": self.step, "progress": self.progress, "spent": self.ledger.seconds, "loss": self.loss,
            "lr": rates["lr"], "muon_lr": rates.get("muon_lr"), "grad_norm": float(norm),
            "tokens": self.first_row * self.config.train.sequence_length, "tokens_per_second": tokens_per_second,
            "batch_tokens": tokens, "mask_rate": None if self.model.causal else rate,
            "mfu": flops_per_second / self.device.peak_flops if self.device.peak_flops else None,
            "memory_bytes": self.device.memory()})
        budget = self.ledger.budget
        share = self.ledger.spent / budget.amount
        self.telemetry.progress(fraction=share, left=budget.show(budget.amount - self.ledger.spent), loss=self.loss,
                                tokens_per_second=tokens_per_second, eta=self.ledger.seconds * (1 / max(share, 1e-9) - 1))
        if not math.isfinite(self.loss):
            raise CramError(f"step {self.step}: the loss is {self.loss}; lower optimizer.lr or optimizer.muon_lr, or use "
                            "train.precision=fp32, and start a new run")

    # ---- state

    def save(self) -> None:
        """A durable checkpoint of this moment, charged."""
        started = time.perf_counter()
        with self.ledger.account("saving"):
            self.progress_file.flush()
            os.fsync(self.progress_file.fileno())
            state = {"model": self.model.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers],
                     "loss_scale": self.loss_scale.state_dict(), "vocab_size": self.shards.vocab_size, "step": self.step,
                     "first_row": self.first_row, "progress": self.progress, "micro_tokens": self.micro_tokens,
                     "rng": torch.get_rng_state(),
                     "cuda_rng": torch.cuda.get_rng_state() if self.device.kind == "cuda" else None}
            self.ledger.checkpoint(self.step)
            checkpoint.save(self.run_dir / "checkpoints", state, step=self.step, run_id=self.run_id,
                            keep=self.config.train.keep_checkpoints)
        self.save_seconds = max(self.save_seconds, time.perf_counter() - started)
        self.saved_step, self.saved_at = self.step, time.monotonic()

    def resume(self) -> None:
        """Take up the newest good checkpoint, if any; what was spent since is lost and stays charged."""
        state = checkpoint.load_newest(self.run_dir / "checkpoints", self.run_id, self.say, self.device.kind)
        if state is not None:
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.loss_scale.load_state_dict(state["loss_scale"])
            torch.set_rng_state(state["rng"].cpu())
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu())
            self.step, self.first_row, self.progress = state["step"], state["first_row"], state["progress"]
            self.micro_tokens, self.saved_step = state["micro_tokens"], state["step"]
        lost = self.ledger.resume(self.step)
        self.progress_file = open(self.run_dir / "progress.f64", "ab")
        self.progress_file.truncate(8 * self.step)  # the steps after the checkpoint are not part of the run
        self.telemetry = Telemetry(self.run_dir, config=to_dict(self.config), resume_step=self.step,
                                   resume_spent=self.ledger.seconds, say=self.say,
                                   print_every=self.config.telemetry.print_every)
        if self.ledger.sessions > 1:
            self.telemetry.resume({"step": self.step, "spent": self.ledger.seconds, "lost": lost})
            budget = self.ledger.budget
            self.say(f"resuming at step {self.step}: {lost:.1f} s of work were lost and stay charged; "
                     f"{budget.show(budget.amount - self.ledger.spent)} left")

    def measure(self) -> None:
        """Fix the micro-batch at the first start, time a trial, and announce the plan."""
        train, objective = self.config.train, self.config.objective
        row = train.sequence_length
        if self.micro_tokens is None:
            self.micro_tokens = train.micro_batch_tokens
        if self.micro_tokens is None and self.device.kind == "cuda":
            self.micro_tokens = largest_micro_batch(self.trial, row=row, batch=train.batch_tokens)
        if self.micro_tokens is None:
            parts = next(parts for parts in range(1, train.batch_tokens // row + 1)
                         if (train.batch_tokens // row) % parts == 0 and train.batch_tokens // parts <= max(8192, row))
            self.micro_tokens = train.batch_tokens // parts
        tokens = row if self.device.kind == "cpu" else self.micro_tokens
        self.trial(tokens)  # the first one also pays for lazy initialisation
        started = time.perf_counter()
        self.trial(tokens)
        self.step_seconds.append((time.perf_counter() - started) * self.batch_shape()[1] / tokens)
        fraction = self.predicted_fraction(objective.mask_rate)
        plan = {"device": self.device.name, "parameters": self.model.parameter_count(),
                "flops_per_token": self.model.flops_per_token(row, fraction), "micro_batch_tokens": self.micro_tokens,
                "precision": str(self.device.dtype).removeprefix("torch."), "attention": "sdpa",
                "compile": self.device.compile}
        self.telemetry.plan(plan)
        self.say(f"plan: {plan['parameters']:,} parameters on {plan['device']}, {plan['precision']}, attention "
                 f"{plan['attention']}, torch.compile {'on' if plan['compile'] else 'off'}; {train.batch_tokens:,} tokens a step "
                 f"in micro-batches of {self.micro_tokens:,}, {self.shards.n_tokens:,} tokens to train on; "
                 f"budget {self.ledger.budget.text}")

    def trial(self, tokens: int) -> None:
        """One forward and backward on made-up tokens; leaves no trace in the model."""
        device, vocab = self.device.kind, self.shards.vocab_size
        ids_N = torch.arange(tokens, device=device) % vocab
        row = self.config.train.sequence_length
        index_N = torch.arange(tokens, device=device, dtype=torch.int32)
        documents = Documents(index_N - index_N % row, index_N - index_N % row + row, row)
        positions_K, labels_K = None, ids_N
        if not self.model.causal:
            positions_K = torch.arange(max(1, round(tokens * self.config.objective.mask_rate)), device=device)
            labels_K = ids_N[:len(positions_K)]
        with self.device.autocast():
            loss = cross_entropy_sum(self.model, ids_N, documents, positions_K, labels_K, self.config.objective.z_loss)
        (loss * 0.0).backward()
        self.model.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()


def read_replay(path: Optional[str], budget: Budget) -> Optional[np.ndarray]:
    """The recorded progress of every step, float64 [steps]; CramError unless it fits the step budget."""
    if path is None:
        return None
    try:
        recorded = np.fromfile(path, dtype=np.float64)
    except OSError as error:
        raise CramError(f"train.replay={path}: {error.strerror}; give the progress.f64 of a finished run") from error
    if budget.kind != "steps" or len(recorded) != budget.amount:
        raise CramError(f"train.replay={path}: holds {len(recorded)} steps; set budget='{len(recorded)} steps'")
    return recorded
