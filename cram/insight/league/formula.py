"""What the configuration on a card says that steps, tokens and FLOPs must be."""

from __future__ import annotations

import math

from cram.errors import CramError
from cram.insight.league.card import Card
from cram.objective import predicted_fraction
from cram.shapes import coming_shapes

LARGEST = {"layers": 4096, "width": 1 << 17, "heads": 1 << 12}  # of a model that a card may claim: it is built to be counted


def tokens_per_step(card: Card) -> tuple[int, int]:
    """Fewest and most tokens of a step: with a batch ramp they differ."""
    train = card.config.train
    ramped = train.batch_ramp > 0 and train.batch_start_tokens is not None
    return min(train.batch_start_tokens, train.batch_tokens) if ramped else train.batch_tokens, train.batch_tokens


def model_of(card: Card):
    """The model on the meta device: shapes without numbers."""
    import torch

    from cram.model import build
    config, vocabulary = card.config, card.body["data"]["vocab_size"]
    for name, most in LARGEST.items():
        if not 0 < getattr(config.model, name) <= most:
            raise CramError(f"model.{name}={getattr(config.model, name)}: no model of a card is as large")
    if type(vocabulary) is not int or not 0 < vocabulary <= 1 << 24:
        raise CramError(f"a vocabulary of {vocabulary} tokens cannot be")
    if not 0 < config.objective.mask_rate_levels <= 10_000:
        raise CramError(f"objective.mask_rate_levels={config.objective.mask_rate_levels}: no run of a card has as many")
    with torch.device("meta"):
        return build(config.model, vocabulary, config.objective.type != "masked")


def counted(card: Card) -> tuple[int, float, float]:
    """Parameters; fewest and most FLOPs per token of the model alone, over all shapes and kinds of step of its schedules."""
    model, settings = model_of(card), card.config
    causal = {"masked": (False,), "causal": (True,), "hybrid": (False, True)}[settings.objective.type]
    found = []
    for shape in coming_shapes(0.0, settings, card.plan["micro_batch_tokens"] * card.plan["processes"]):
        model.depth, model.window = shape.layers, shape.window
        found += [model.flops_per_token(shape.row, predicted_fraction(kind, shape.mask_rate, shape.row), kind)
                  for kind in causal]
    return model.parameter_count(), min(found), max(found)


def flops_per_token(card: Card) -> tuple[float, float]:
    """Fewest and most FLOPs per token of a step. With a teacher, whose size no card tells, the plan's figure where the shape is
    constant, else no upper end."""
    _, low, high = counted(card)
    if card.config.distill.teacher is None:
        return low, high
    return (card.plan["flops_per_token"],) * 2 if low == high else (low, math.inf)
