"""The steps that a budget buys, without taking them: the loop's own rules walked over arithmetic.

``cram.train`` asks for the shape of the next step, for its cost in the unit of the budget, and then whether it fits. The walk
asks the same functions in the same order; where nothing changes from step to step it leaps.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Optional

import torch

from cram import schedule
from cram.config import from_dict
from cram.errors import CramError
from cram.learner import take_on
from cram.model import Transformer
from cram.objective import predicted_fraction, step_kinds
from cram.shapes import Shape, shape_at

LEAST_LEAP = 8          # steps; fewer are walked one by one


@dataclass(frozen=True)
class Leg:
    """Steps of one shape, one after the other. tokens, flops: of all of them; spent: in the budget's unit."""

    shape: Shape
    steps: int
    tokens: int
    flops: float
    spent: float


class Outline:
    """A model without its numbers (torch's meta device): what it has, and what a step of it costs.

    vocab_size: as configured unless told. Counts and FLOPs are those of the model that will train.
    """

    def __init__(self, config, vocab_size: Optional[int] = None, teacher: Optional["Outline"] = None):
        self.config, self.teacher = config, teacher
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the attention back end of this device is of no interest
            self.model = Transformer(config.model, vocab_size or config.tokenizer.vocab_size, config.objective.type != "masked")
        self._flops: dict[tuple, float] = {}

    @property
    def parameters(self) -> int:
        """Trainable numbers; a tied matrix counts once."""
        return self.model.parameter_count()

    @property
    def inner_parameters(self) -> int:
        """Those of the blocks, without tables of embeddings and head (N of Kaplan et al. 2020, section 2.1)."""
        tables = sum(module.weight.numel() for block in self.model.blocks for module in block.modules()
                     if isinstance(module, torch.nn.Embedding))
        return sum(parameter.numel() for block in self.model.blocks for parameter in block.parameters()) - tables

    def flops(self, shape: Shape, kinds: list[bool]) -> float:
        """FLOPs of a step, as ``Learner.flops`` counts them. kinds: of its micro-batches, whether each is causal."""
        key = (shape, sum(kinds), len(kinds))
        if key not in self._flops:
            each = {causal: self.flops_per_token(shape, causal) for causal in set(kinds)}
            self._flops[key] = shape.tokens * sum(each[causal] for causal in kinds) / len(kinds)
        return self._flops[key]

    def flops_per_token(self, shape: Shape, causal: bool) -> float:
        """Of forward and backward, with a teacher's forward pass."""
        asked = shape.row, predicted_fraction(causal, shape.mask_rate, shape.row), causal
        take_on(self.model, shape)
        return self.model.flops_per_token(*asked) + (self.teacher.model.flops_per_token(*asked) / 3 if self.teacher else 0.0)


def outline_of(config, vocab_size: Optional[int] = None) -> Outline:
    """The outline of a run, with that of its teacher. CramError when the teacher's configuration is not there."""
    return Outline(config, vocab_size, _teacher(config))


def _teacher(config) -> Optional[Outline]:
    if config.distill.teacher is None:
        return None
    path = Path(config.distill.teacher) / "config.json"
    if not path.is_file():
        raise CramError(f"distill.teacher: no {path}; give the pretraining folder of a finished run")
    return Outline(from_dict(json.loads(path.read_text(encoding="utf-8"))), config.tokenizer.vocab_size)


def walk(config, outline: Outline, micro_tokens: int, amount: float, cost: Callable[[Shape, float], float],
         spent: float = 0.0, reserve: float = 0.0) -> list[Leg]:
    """The legs of a run with a budget of ``amount``, in order.

    cost(shape, flops): of one step, in the unit of amount. micro_tokens: of a micro-batch, all processes together. spent: before
    the first step; reserve: what a time budget keeps back (``Pace.reserve``). A budget too small for one step gives no leg.
    """
    legs: list[Leg] = []
    progress, step, room = 0.0, 0, amount - reserve
    while progress < 1.0:
        shape = shape_at(progress, config, micro_tokens)
        kinds = step_kinds(config.objective, step, shape.tokens // micro_tokens)
        flops = outline.flops(shape, kinds)
        each = cost(shape, flops)
        leap = _leap(config, progress, spent, each, room, kinds)
        if not leap:
            following = schedule.progress(amount, spent, each, reserve)
            if following is None:
                break
            leap, progress = 1, max(following, progress)
        else:
            progress = (spent + leap * each) / room
        legs = _joined(legs, Leg(shape, leap, leap * shape.tokens, leap * flops, leap * each))
        spent, step = spent + leap * each, step + leap
    return legs


def _leap(config, progress: float, spent: float, each: float, room: float, kinds: list[bool]) -> int:
    """Steps that will all be like this one, two steps short of where anything may change; 0 when they are few."""
    share = config.objective.causal_share * len(kinds)
    if progress < config.train.batch_ramp or (config.objective.type == "hybrid" and share != int(share)):
        return 0
    border = min((begin for begin in _begins(config) if begin > progress), default=1.0)
    steps = math.floor((border * room - spent) / each) - 2
    return steps if steps >= LEAST_LEAP else 0


def _begins(config) -> Iterator[float]:
    """Where on the way something begins: a plateau of a schedule, a mask rate."""
    train, levels = config.train, config.objective.mask_rate_levels
    for plateaus in (train.sequence_schedule, train.window_schedule, train.layer_schedule):
        yield from (begin for begin, _ in plateaus)
    yield from (level / levels for level in range(levels))


def _joined(legs: list[Leg], leg: Leg) -> list[Leg]:
    """With one more leg, as part of the last when its shape is the same."""
    if not legs or legs[-1].shape != leg.shape:
        return [*legs, leg]
    last = legs[-1]
    return [*legs[:-1], Leg(leg.shape, last.steps + leg.steps, last.tokens + leg.tokens, last.flops + leg.flops,
                            last.spent + leg.spent)]
