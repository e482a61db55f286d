"""What the training engine cannot do, or would not do: schedules in plateaus, and keys that nothing reads."""

from __future__ import annotations

from typing import Callable, Iterator

from cram.config import COMMAND_LINE, lookup
from cram.explain import show
from cram.schema import Config

Refusal = tuple[tuple[str, ...], str]  # as in refusals.py: the keys concerned, what is wrong and the remedy

# (keys, whether nothing reads them, when they are read, remedy). A file may set them for another run; the command line is
# typed for this one.
IDLE: tuple[tuple[tuple[str, ...], Callable[[Config], bool], str, str], ...] = (
    (("objective.mask_rate", "objective.mask_rate_end", "objective.mask_rate_levels"),
     lambda c: c.objective.type == "causal", "with objective.type=masked or hybrid", "add objective.type=masked"),
    (("objective.causal_share",), lambda c: c.objective.type != "hybrid", "with objective.type=hybrid",
     "add objective.type=hybrid"),
    (("distill.weight", "distill.temperature"), lambda c: c.distill.teacher is None, "with distill.teacher",
     "add distill.teacher=runs/big/pretrain"),
    (("optimizer.muon_lr", "optimizer.momentum"), lambda c: c.optimizer.type != "muon", "with optimizer.type=muon",
     "add optimizer.type=muon"),
    (("optimizer.cautious",), lambda c: c.optimizer.cautious and c.optimizer.weight_decay == 0,
     "with optimizer.weight_decay above 0", "add optimizer.weight_decay=0.01"),
)


def idle(config: Config, places: dict[str, str]) -> Iterator[Refusal]:
    """Keys of the command line that would silently do nothing."""
    for keys, unread, when, remedy in IDLE:
        for key in keys:
            if places.get(key) == COMMAND_LINE and unread(config):
                yield (key,), f"{key}={show(lookup(config, key))} does nothing: only read {when}; {remedy}, or leave it out"


def levels(config: Config) -> Iterator[Refusal]:
    """Schedules in plateaus: [[0, first], [progress, next], ..., [progress, last]]."""
    train, model = config.train, config.model
    reach = model.window or train.sequence_length
    for name, end, end_key in (("sequence_schedule", train.sequence_length, "train.sequence_length"),
                               ("window_schedule", reach, "model.window" if model.window else "train.sequence_length"),
                               ("layer_schedule", model.layers, "model.layers")):
        plateaus, keys = getattr(train, name), (f"train.{name}", end_key)
        if not plateaus:
            continue
        if any(len(level) != 2 for level in plateaus):
            yield keys, (f"train.{name} {show(plateaus)} is not a list of [progress, value] pairs, such as "
                         f"[[0, {end // 2}], [0.5, {end}]]")
            continue
        begins, values = zip(*plateaus)
        if begins[0] != 0 or list(begins) != sorted(set(begins)) or begins[-1] >= 1:
            yield keys, f"train.{name} {show(plateaus)}: the progresses must begin with 0, rise, and stay below 1"
        if any(value < 1 or value != int(value) for value in values) or list(values) != sorted(set(values)):
            yield keys, f"train.{name} {show(plateaus)}: the values must be whole numbers from 1 on, and rise"
        elif values[-1] != end:
            yield keys, f"train.{name} {show(plateaus)} ends at {int(values[-1])}, but {end_key} is {end}; make them equal"
        elif name == "sequence_schedule" and any(value < 2 or end % value for value in values):
            yield keys, f"train.{name} {show(plateaus)}: every length must be at least 2 and divide train.sequence_length {end}"
