"""The shape of a step: how long its rows are, how many tokens it reads, how many it hides, how far attention reaches,
how deep the model is.

A shape follows the progress of the step before, so the next batch can be made while this one computes. All schedules
of shapes move in plateaus: between two of them nothing compiles anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

from cram import schedule


@dataclass(frozen=True)
class Shape:
    """tokens: of the whole step; row: tokens a row is cut into; window: reach of attention to each side, None: all."""

    tokens: int
    row: int
    mask_rate: float
    window: Optional[int]
    layers: int
    rope_base: float

    def changes_the_loss(self, other: "Shape") -> bool:
        """Whether losses under both cannot be compared: anything but the number of tokens differs."""
        return self != Shape(self.tokens, other.row, other.mask_rate, other.window, other.layers, other.rope_base)


def coming_shapes(p: float, config, unit: int) -> list[Shape]:
    """The distinct shapes of all steps from progress p on, in order, but for their number of tokens."""
    train, levels = config.train, config.objective.mask_rate_levels
    begins = {p, *(begin for schedule_ in (train.sequence_schedule, train.window_schedule, train.layer_schedule)
                   for begin, _ in schedule_), *(level / levels for level in range(levels))}
    shapes = [shape_at(begin, config, unit) for begin in sorted(begins) if begin >= p]
    return list({replace(shape, tokens=0): shape for shape in reversed(shapes)}.values())[::-1]


def shape_at(p: float, config, unit: int) -> Shape:
    """The shape of a step whose predecessor had progress p. unit: tokens that all processes take at a time; the batch
    is a multiple of it."""
    model, objective, train = config.model, config.objective, config.train
    row = int(schedule.plateau(p, train.sequence_schedule, train.sequence_length))
    reach = schedule.plateau(p, train.window_schedule, model.window or row)
    last_base = model.rope_base_end or model.rope_base
    return Shape(
        tokens=schedule.batch_tokens(p, train.batch_tokens, train.batch_start_tokens, train.batch_ramp, unit), row=row,
        mask_rate=schedule.mask_rate(p, objective.mask_rate, objective.mask_rate_end, objective.mask_rate_levels),
        window=int(reach) if reach < row else None,
        layers=int(schedule.plateau(p, train.layer_schedule, model.layers)),
        rope_base=last_base if row == train.sequence_length else model.rope_base)
