"""The day: spend the budget on optimizer steps, and leave a durable checkpoint inside it.

Time is charged from the moment the ledger opens, before the device is touched. Every schedule follows
progress = spent / budget, and its value at each step is recorded (record.py), so that a run under a clock can be replayed bit
for bit: ``train.replay=<its progress.f64> budget='<its steps> steps'``.

The same loop runs in several processes (parallel.py): the first keeps ledger, telemetry and checkpoints, and decides.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Callable, Optional

import torch
from torch import Tensor

from cram import schedule
from cram.audit import read_ledger
from cram.batches import Batches
from cram.budget import Budget
from cram.config import to_dict
from cram.device import Throttle, choose_device, device_kind, energy_meter, is_out_of_memory, keep_freed_memory
from cram.ended import ended
from cram.errors import CramError
from cram.evaluate.midway import Look
from cram.interrupt import Interrupted, StopSignal
from cram.keeper import Keeper, prove_room
from cram.learner import Learner, hire_teacher, teacher_bill
from cram.ledger import Ledger
from cram.logbook import Logbook
from cram.objective import step_kinds
from cram.pace import Pace
from cram.parallel import Follower, World
from cram.record import Replay
from cram.shapes import Shape, coming_shapes, shape_at
from cram.sizing import choose_micro_batch, compile_all, first_step_seconds, refuse_hasty_compilation, share_of_batch
from cram.telemetry import Telemetry
from data_prep.files import replace_durably
from data_prep.shards import Shards
from data_prep.tokenizer import load_tokenizer

CHECK_EVERY = 10  # steps between looks at the guard: each waits for the device


def pretrain(config, data_dir: Path, tokenizer_dir: Path, run_dir: Path, run_id: str,
             say: Callable[[str], None] = print) -> None:
    """Train until the budget is spent; resume when ``run_dir`` holds an unfinished run of the same id.

    Leaves in run_dir: config.json, ledger.jsonl, ledger.head, progress.f64, jumps.json after a roll-back, metrics.jsonl,
    tensorboard/, checkpoints/.
    Raises CramError on unusable data, a foreign checkpoint, a loss that keeps exploding; Interrupted, saved, on a signal.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    with contextlib.closing(World.start(config.train, device_kind(config.train))) as world:
        run_dir.mkdir(parents=True, exist_ok=True)
        if world.share(world.main and ended(config, run_dir, run_id, say)):
            return
        _spend(config, world, data_dir, tokenizer_dir, run_dir, run_id, say if world.main else lambda line: None)


def _spend(config, world: World, data_dir: Path, tokenizer_dir: Path, run_dir: Path, run_id: str, say) -> None:
    """One session, charged from opening the ledger to closing it."""
    shards, heldout = (Shards(data_dir, split, verify=True) for split in ("train", "validation"))
    ledger, bill = Follower(Budget.parse(config.budget), run_dir), teacher_bill(config)
    refuse_hasty_compilation(config, world.kind)
    if world.main:
        prove_room(config, run_dir, shards.vocab_size)
        replace_durably(run_dir / "config.json", json.dumps(to_dict(config), indent=1).encode())
        ledger = Ledger(run_dir / "ledger.jsonl", Budget.parse(config.budget), run_id, heartbeat=config.telemetry.heartbeat,
                        world_size=world.size)
    try:
        if bill is not None:
            ledger.pay_for_teacher(bill)
        device = choose_device(config.train)
        ledger.measure_energy(energy_meter(config.telemetry.energy, device.kind, say, world.size))
        with StopSignal() as stop:  # also while the model is built: it leaves at the first step
            day = Day(config, device, world, ledger, shards, heldout, load_tokenizer(tokenizer_dir), run_dir, run_id, say)
            with contextlib.closing(day):
                day.run(stop)
    except BaseException as error:  # whatever ends the session, the ledger names it, if the disk takes it
        with contextlib.suppress(OSError):
            ledger.close(f"stopped by {type(error).__name__}")
        raise


class Day:
    """One training process, from building the model to the last checkpoint."""

    def __init__(self, config, device, world: World, ledger: Ledger, shards: Shards, heldout: Shards, tokenizer,
                 run_dir: Path, run_id: str, say):
        started, train = time.perf_counter(), config.train
        self.config, self.device, self.world, self.ledger, self.say = config, device, world, ledger, say
        self.look = Look(config, heldout, tokenizer)
        if device.kind == "cpu":
            keep_freed_memory()
        self.batches = Batches(shards, config.objective, row=train.sequence_length, seed=config.seed, device=device.kind,
                               order=train.order, rank=world.data_rank, world=world.data_world)
        teacher = hire_teacher(config, shards.vocab_size, device.kind)
        self.learner = Learner(config, device, world, shards.vocab_size, teacher)
        self.throttle = Throttle(device.kind)
        self.pace = Pace(ledger, train, ahead=self.throttle.ahead, world=world.size)
        self.replay = Replay.read(train.replay, ledger.budget)
        self.keeper = Keeper(config, run_dir, run_id, world, ledger, self.learner, self.pace, say)
        self.at = self.keeper.at
        self.telemetry = Follower(ledger.budget, run_dir) if not world.main else Telemetry(
            run_dir, config=to_dict(config), resume_step=self.at.step, print_every=config.telemetry.print_every, say=say)
        self.logbook = Logbook(device, ledger, self.telemetry, config.telemetry.log_every)
        self.announce(shards.n_tokens)
        self.pace.setup_seconds = time.perf_counter() - started

    def announce(self, text_tokens: int) -> None:
        """Fix the micro-batch at the first start, time a trial, and say what is going to happen."""
        config, device, budget, model, at = self.config, self.device, self.ledger.budget, self.learner.model, self.at
        if self.ledger.sessions > 1:
            self.telemetry.resume({"step": at.step, "spent": self.ledger.seconds, "lost": self.keeper.lost})
            self.say(f"resuming at step {at.step}: {self.keeper.lost:.1f} s spent since then are lost and stay charged; "
                     f"{budget.show(budget.amount - self.ledger.spent)} left")
        if at.micro_tokens is None:
            at.micro_tokens = int(self.world.agree(choose_micro_batch(self.learner, config, self.world.data_world)))
        at.micro_tokens = math.gcd(at.micro_tokens, share_of_batch(config, self.world.data_world))  # of more processes
        shape = self.next_shape()
        if device.compile:
            with self.ledger.account("compile"):
                compile_all(self.learner, config, at.micro_tokens, coming_shapes(at.progress, config, shape.tokens),
                            lambda: bool(self.world.agree(budget.kind == "time" and self.ledger.spent > budget.amount)))
        self.pace.expect(first_step_seconds(self.learner, config, at.micro_tokens, shape.tokens // self.world.data_world),
                         shape.tokens, self.look.tokens)
        self.telemetry.plan({
            "device": device.name, "processes": self.world.size, "parallel": config.train.parallel,
            "parameters": model.parameter_count(), "micro_batch_tokens": at.micro_tokens,
            "precision": str(device.dtype).removeprefix("torch."),
            "attention": model.backend, "compile": device.compile,
            "flops_per_token": self.learner.flops(shape, self.kinds(shape)) / shape.tokens})
        each = f"{self.world.size} x " if self.world.size > 1 else ""
        self.say(f"plan: {model.parameter_count():,} parameters on {each}{device.name}, {device.dtype}, attention "
                 f"{model.backend}, torch.compile {'on' if device.compile else 'off'}; steps of {config.train.batch_tokens:,} "
                 f"tokens in micro-batches of {at.micro_tokens:,}; text of {text_tokens:,} tokens; budget {budget.text}")

    def run(self, stop: StopSignal) -> None:
        """Step until the budget says stop; validate, log and save on the way; save at the end."""
        self.ledger.switch("steps")
        if self.keeper.saved_step is None:
            self.keeper.save()  # proves that the disk takes a checkpoint, and measures what that costs
        while (progress := self.next_progress()) is not None:
            if self.world.any(stop.received):
                self.leave()
            before, every = self.at.progress, self.config.train.validate_every
            self.optimizer_step(progress)
            if self.at.step % CHECK_EVERY == 0 and self.exploded():
                self.roll_back()
            elif progress < 1.0 and progress // every > before // every and self.world.agree(self.pace.may_validate()):
                self.validate()
            due = self.world.agree(self.pace.save_is_due(self.at.step)) and self.has_room(self.pace.save_seconds)
            if due and self.learner.guard.calm():  # else the good checkpoints would make room for bad ones
                self.keeper.save()
        self.finish()

    def next_progress(self) -> Optional[float]:
        """Progress of the next step, or None when the budget is spent."""
        shape = self.next_shape()
        work = {"time": 0.0, "steps": 1, "tokens": shape.tokens, "flops": self.learner.flops(shape, self.kinds(shape))}
        progress = self.world.agree(self.pace.next_progress(work[self.ledger.budget.kind], self.at.progress))
        return progress if progress is None or self.replay is None else float(self.replay.progress[self.at.step])

    def next_shape(self) -> Shape:
        return shape_at(self.at.progress, self.config, self.at.micro_tokens * self.world.data_world)

    def kinds(self, shape: Shape) -> list[bool]:
        """Of each micro-batch of the coming step, in all processes, whether it is causal."""
        return step_kinds(self.config.objective, self.at.step, shape.tokens // self.at.micro_tokens)

    def has_room(self, seconds: float) -> bool:
        return bool(self.world.agree(self.pace.has_room(seconds)))

    def optimizer_step(self, progress: float) -> None:
        """Forward and backward over the micro-batches, then one update, unless the guard has it skipped."""
        learner, at, row, started = self.learner, self.at, self.config.train.sequence_length, time.perf_counter()
        if self.replay is not None:
            at.first_row = self.replay.jumps.get(at.step, at.first_row)
        shape = self.next_shape()
        learner.enter(shape)
        learner.optimizers.set_learning_rate(schedule.learning_rate(progress, self.config.schedule))
        loss, predicted = self.gradients(shape)
        with self.ledger.account("steps"):
            norm, skip = learner.update(loss)
            self.throttle.queued()
        flops = learner.flops(shape, self.kinds(shape))
        at.step, at.first_row, at.progress = at.step + 1, at.first_row + shape.tokens // row, progress
        self.ledger.count(steps=1, tokens=shape.tokens, flops=flops)
        self.keeper.record.add(progress)
        seconds = time.perf_counter() - started
        self.pace.step_seconds.append(seconds)
        self.logbook.add(loss, predicted, skip, shape.tokens, flops, seconds)
        if self.logbook.is_due(at.step, progress):
            self.logbook.write(step=at.step, progress=progress, tokens=at.first_row * row, shape=shape, norm=norm,
                               rates=learner.optimizers.rates(), masked=self.config.objective.type != "causal")

    def gradients(self, shape: Shape) -> tuple[Tensor, int]:
        """The gradient of the mean loss over all tokens predicted in the step (hybrid: of each kind's mean, by its share of
        the micro-batches). Returns that loss, nats, and the number of tokens.

        Out of memory: once more in micro-batches of half the size; the batch and what is hidden in it stay the same.
        """
        row, at, kinds = self.config.train.sequence_length, self.at, self.kinds(shape)
        with self.ledger.account("data_wait"):
            micro_batches = self.batches.step(at.step, at.first_row, rows=shape.tokens // row, length=shape.row,
                                              micro_rows=at.micro_tokens // row, mask_rate=shape.mask_rate)
        predicted = {kind: max(1, self.world.sum(sum(micro.predicted for micro in micro_batches if micro.causal == kind)))
                     for kind in sorted(set(kinds))}
        weights = {kind: kinds.count(kind) / len(kinds) / number for kind, number in predicted.items()}
        try:
            with self.ledger.account("steps"):
                return self.learner.backward(micro_batches, weights), sum(predicted.values())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        smaller = self.learner.shrink(at.micro_tokens)  # outside the handler: what failed has let go of its memory
        self.event("out of memory", f"micro-batches of {smaller:,} tokens from now on, not {at.micro_tokens:,}; the batch "
                                    "stays the same")
        at.micro_tokens = smaller
        return self.gradients(shape)

    def exploded(self) -> bool:
        """Note which steps were skipped since the last look; whether there have been too many in a row."""
        report = self.learner.guard.check()
        if report.skipped:
            self.event("skipped", f"the loss or its gradient was no number, or far above the losses before: "
                                  f"{len(report.skipped)} of the last {report.looked_at} steps changed nothing")
        grace = 16 if self.device.scaled else 0  # float16: until its scale has come down
        return report.in_a_row >= self.config.train.skip_limit + grace

    def roll_back(self) -> None:
        """Back to a checkpoint, on with the text that follows."""
        lost, at = self.keeper.roll_back(), self.at
        self.telemetry.resume({"step": at.step, "spent": self.ledger.seconds, "lost": lost})
        self.event("rolled back", f"on from here with the text that follows; {lost:.1f} s are lost and stay charged")

    def event(self, what: str, told: str) -> None:
        """What should not happen every day, said and kept among the metrics."""
        self.say(f"step {self.at.step}: {what}: {told}")
        self.telemetry.event({"step": self.at.step, "event": what, "told": told, "spent": self.ledger.seconds})

    def validate(self) -> None:
        """A small held-out score and one sample, charged; changes nothing in the run."""
        started = time.perf_counter()
        with self.ledger.account("validation"):
            model = self.learner.looked_at()
            with self.world.evaluation(model):
                score, sample = self.look(model, self.device, self.at.micro_tokens)
            self.telemetry.validation({"step": self.at.step, "progress": self.at.progress, "spent": self.ledger.seconds,
                                       **score})
            if sample is not None:
                self.telemetry.sample(sample, self.at.step)
        self.pace.validated(time.perf_counter() - started)

    def leave(self) -> None:
        """Save and go, as a signal asked."""
        self.keeper.save()
        self.ledger.close("interrupted")
        self.say(f"stopped at step {self.at.step} and saved; the same command resumes")
        raise Interrupted

    def finish(self) -> None:
        """The last checkpoint, inside the budget; then the ledger is closed for good."""
        at, budget = self.at, self.ledger.budget
        if at.step == 0:
            raise CramError(f"budget={budget.text}: spent before the first step ({self.ledger.seconds:.1f} s for building and "
                            "saving); give it more")
        self.exploded()
        self.keeper.save()
        self.ledger.close("finished")
        reason = "budget spent"
        if at.progress < 1.0:
            why = "lost work" if self.ledger.account_seconds["lost"] > 0.01 * self.ledger.seconds else "slower steps"
            reason = f"{why} used up the budget at progress {at.progress:.3f}, before the learning rate reached 0"
            self.say(f"warning: {reason}")
        elif at.step == 1:
            self.say("warning: the budget was enough for one step, of learning rate 0: nothing was learnt")
        if self.world.main:
            spent = read_ledger(self.ledger.path)
            self.say(f"pretrain: {at.step:,} steps; {budget.show(spent.spent)} of {budget.text} spent ({spent.fraction:.1%})")
            self.telemetry.end({"step": at.step, "progress": at.progress, "spent": spent.seconds, "reason": reason})

    def close(self) -> None:
        """Let go of threads and files."""
        self.batches.close()
        self.keeper.record.close()
        self.telemetry.close()
