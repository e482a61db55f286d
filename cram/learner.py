"""What learns in a run: the model, its loss, the optimizers, and what watches over them.

All that is built once, wrapped, compiled, saved and restored together. The loop (train.py) decides when.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from cram import fp8
from cram.audit import Summary, read_ledger
from cram.budget import Budget
from cram.checkpoint import load_model
from cram.device import Device
from cram.ema import EMA
from cram.errors import CramError
from cram.guard import Guard
from cram.loss_scale import LossScale
from cram.model import Transformer, build, refuse_attention
from cram.objective import Loss, predicted_fraction
from cram.optim import Optimizers, finish_gradients
from cram.parallel import World
from cram.shapes import Shape, shape_at
from cram.side_by_side import Workers, add_gradients, worker_count


class Learner:
    """Model, loss and optimizers of a run. teacher: a trained model to learn from, or None."""

    def __init__(self, config, device: Device, world: World, vocab_size: int, teacher: Optional[Transformer] = None):
        self.config, self.device, self.world, self.teacher = config, device, world, teacher
        train = config.train
        refuse_attention(config.model, device.kind)
        if train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
        torch.set_float32_matmul_precision("high")
        torch.manual_seed(config.seed)
        self.model = build(config.model, vocab_size, config.objective.type != "masked", seed=config.seed).to(device.kind)
        self.model.recompute = train.recompute
        self.shape = shape_at(0.0, config, train.batch_tokens)
        take_on(self.model, self.shape)
        if train.fp8:
            if reason := fp8.why_not(device.kind):
                raise CramError(f"train.fp8=true: {reason}; use train.fp8=false")
            fp8.convert(self.model)
        self.loss = Loss(self.model, config.objective, train.loss == "chunked", teacher, config.distill)
        if device.compile:  # each shape is a graph of its own; past the limit dynamo falls back to eager
            torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
            for part in self.model.blocks if train.parallel in ("fsdp", "tp") else [self.loss]:
                part.compile(dynamic=False)
        self.loss = world.wrap(self.loss)
        self.optimizers = Optimizers(self.model, config.optimizer,
                                     iteration=torch.bfloat16 if device.dtype is torch.bfloat16 else None)
        if self.optimizers.fused and device.scaled:
            raise CramError("optimizer.fused_backward=true: this card trains in float16, where an overflow shows after the "
                            "updates; use train.precision=fp32, or optimizer.fused_backward=false")
        self.loss_scale = LossScale(device.scaled, device=device.kind)
        self.guard = Guard(train, device.kind)
        self.ema = EMA(self.model, train.ema) if train.ema is not None else None
        count = worker_count(config, device)
        self.workers = Workers(count) if count > 1 else None
        self._flops: dict[tuple, float] = {}
        self._skip: Optional[Tensor] = None  # the guard's verdict on a fused backward pass
        self._averaged: Optional[Transformer] = None

    def enter(self, shape: Shape) -> None:
        """Take on the shape of the coming step: depth (new blocks are stacked), window, rotary base."""
        if shape.layers > self.model.depth:
            pairs = self.model.stack(shape.layers)
            self.optimizers.copy_state(pairs)
            if self.ema is not None:
                self.ema.copy(self.model, pairs)
        if shape.changes_the_loss(self.shape):
            self.guard.reset()
        self.shape = shape
        take_on(self.model, shape)

    def backward(self, micro_batches: list, weights: dict[bool, float]) -> Tensor:
        """Gradients of the step's loss: the sum over micro-batches of their nats times the weight of their kind. Returns
        that loss, float32 [], over all processes. weights: by whether a micro-batch is causal."""
        if self.workers is not None:
            return self._backward_side_by_side(micro_batches, weights)
        loss_sum = torch.zeros((), device=self.device.kind)
        for number, micro in enumerate(micro_batches, start=1):
            weight = weights[micro.causal]
            with self.world.micro(self.loss, last=number == len(micro_batches)):
                total, nats = self.forward(micro)
                if self.optimizers.fused:  # parameters change as soon as their gradients are there
                    self._skip = self.guard.judge(nats * weight)
                    self.optimizers.before_backward(self._skip)
                (total * (self.loss_scale.scale * (self.world.scale * weight))).backward()
            loss_sum += nats * weight
        return self.world.reduce(loss_sum)

    def forward(self, micro) -> tuple[Tensor, Tensor]:
        """What is minimised in a micro-batch and its nats, as ``Loss``, in the device's precision."""
        with self.device.autocast():
            return self.loss(micro.ids_N, micro.documents, micro.positions_K, micro.labels_K, micro.causal)

    def _backward_side_by_side(self, micro_batches: list, weights: dict[bool, float]) -> Tensor:
        """As ``backward``, by the workers: the same bits."""
        parameters, loss_sum = [*self.model.parameters()], torch.zeros(())

        def gradients_of(micro) -> tuple[Tensor, tuple[Optional[Tensor], ...]]:
            weight = weights[micro.causal]
            total, nats = self.forward(micro)
            scaled = total * (self.loss_scale.scale * (self.world.scale * weight))
            return nats * weight, torch.autograd.grad(scaled, parameters, allow_unused=True)

        for nats, gradients in self.workers.map(gradients_of, micro_batches):
            add_gradients(parameters, gradients)
            loss_sum += nats
        return loss_sum

    def update(self, loss: Tensor) -> tuple[Optional[Tensor], Tensor]:
        """One optimizer step, unless the guard finds that loss, the mean over the step, or its gradient impossible. Returns the
        norm of the gradient and the guard's verdict (1: skipped), float32 [] each; nothing waits for the device."""
        norm, skip = None, self._skip
        if not self.optimizers.fused:
            norm = finish_gradients([*self.model.parameters()], self.loss_scale.scale, self.config.optimizer.clip)
            skip = self.guard.judge(loss, norm)
        self.optimizers.step(skip)
        self.optimizers.zero_grad()
        self.loss_scale.update(skip)
        if self.ema is not None:
            self.ema.update(self.model)
        return norm, skip

    def shrink(self, micro_tokens: int) -> int:
        """Tokens of a smaller micro-batch when memory ran out; the gradients so far are dropped. CramError when it cannot be
        smaller."""
        row = self.config.train.sequence_length
        rows = micro_tokens // row
        if self.world.size > 1:
            raise CramError(f"out of memory with micro-batches of {micro_tokens:,} tokens; several processes cannot go on "
                            "without the one that ran out: set a smaller train.micro_batch_tokens")
        if rows == 1 or self.optimizers.fused:  # part of a fused update may have happened
            raise CramError(f"out of memory with micro-batches of {micro_tokens:,} tokens: make the model or the batch "
                            "smaller, or shorten train.sequence_length, or set train.recompute=full")
        self.optimizers.zero_grad()
        if self.device.kind == "cuda":
            torch.cuda.empty_cache()
        divisor = next(divisor for divisor in range(2, rows + 1) if rows % divisor == 0)  # 2, unless rows is odd
        return micro_tokens // divisor

    def flops(self, shape: Shape, kinds: list[bool]) -> float:
        """FLOPs of a step by formula, whether or not the model has that shape now. kinds: of its micro-batches, whether each
        is causal."""
        key = (shape, sum(kinds), len(kinds))
        if key not in self._flops:  # a walk over all parameters: once for each shape, not every step
            take_on(self.model, shape)
            each = {causal: self._flops_per_token(shape, causal) for causal in set(kinds)}
            take_on(self.model, self.shape)
            self._flops[key] = shape.tokens * sum(each[causal] for causal in kinds) / len(kinds)
        return self._flops[key]

    def _flops_per_token(self, shape: Shape, causal: bool) -> float:
        asked = shape.row, predicted_fraction(causal, shape.mask_rate, shape.row), causal
        taught = self.teacher.flops_per_token(*asked) / 3 if self.teacher else 0.0  # forward alone
        return self.model.flops_per_token(*asked) + taught

    def looked_at(self) -> Transformer:
        """The model whose weights are scored: this one, or a copy with the averages."""
        if self.ema is None:
            return self.model
        if self._averaged is None:
            self._averaged = build(self.config.model, self.model.vocab_size, self.model.causal).to(self.device.kind)
        self._averaged.load_state_dict(self.ema.weights())
        take_on(self._averaged, self.shape)
        return self._averaged

    def state_dict(self) -> dict[str, Any]:
        """All that decides how learning goes on: tensors and plain values, whole on the first process."""
        return {"model": self.world.model_state(self.model), "shape": asdict(self.shape),
                "optimizers": self.world.optimizer_states(self.model, self.optimizers.members),
                "loss_scale": self.loss_scale.state_dict(), "guard": self.guard.state_dict(),
                "ema": self.ema.state_dict() if self.ema is not None else None, "vocab_size": self.model.vocab_size,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state() if self.device.kind == "cuda" else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        self.shape = Shape(**state["shape"])
        take_on(self.model, self.shape)
        self.world.load_model_state(self.model, state["model"])
        self.world.load_optimizer_states(self.model, self.optimizers.members, state["optimizers"])
        self.loss_scale.load_state_dict(state["loss_scale"])
        self.guard.load_state_dict(state["guard"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu())



def take_on(model: Transformer, shape: Shape) -> None:
    """Give the model the depth, window and rotary base of a step."""
    model.depth, model.window, model.rope_base = shape.layers, shape.window, shape.rope_base


def teacher_bill(config) -> Optional[Summary]:
    """The verified ledger of ``distill.teacher``, which this budget has to pay; None without a teacher.

    Raises CramError when that run has not finished, or has cost all that there is.
    """
    if config.distill.teacher is None:
        return None
    folder, budget = Path(config.distill.teacher), Budget.parse(config.budget)
    bill = read_ledger(folder / "ledger.jsonl")
    cost = bill.seconds if budget.kind == "time" else getattr(bill, budget.kind)
    if bill.reason != "finished":
        raise CramError(f"distill.teacher={folder}: that run has not finished; finish it, then take it as teacher")
    if cost >= budget.amount:
        raise CramError(f"distill.teacher={folder}: has cost {budget.show(cost)}, which leaves nothing of "
                        f"budget={budget.text}; give the budget of both together")
    return bill


def hire_teacher(config, vocab_size: int, device: str) -> Optional[Transformer]:
    """The trained model of ``distill.teacher``, or None. CramError when it reads other tokens or predicts something else."""
    if config.distill.teacher is None:
        return None
    folder = Path(config.distill.teacher)
    teacher, learnt = load_model(folder, device), json.loads((folder / "config.json").read_text())["objective"]["type"]
    if teacher.vocab_size != vocab_size:
        raise CramError(f"distill.teacher={folder}: has {teacher.vocab_size} tokens, this run {vocab_size}; train it with the "
                        "same tokenizer")
    if learnt != config.objective.type and (learnt, config.objective.type) != ("hybrid", "causal"):
        raise CramError(f"distill.teacher={folder}: was trained with objective.type={learnt}, this run is to be "
                        f"{config.objective.type}; use the same for both (hybrid can teach causal)")
    return teacher.requires_grad_(False)
