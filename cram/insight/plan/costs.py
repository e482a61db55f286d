"""What things cost: seconds of a step, a checkpoint, a look at held-out text; and what a named card's would be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

import torch

from cram.errors import CramError
from cram.insight.plan.cards import MFU, Card
from cram.insight.plan.memory import memory
from cram.insight.plan.walk import Outline
from cram.shapes import Shape, coming_shapes
from cram.sizing import share_of_batch

CARD_SETUP, CARD_GRAPH = 15.0, 60.0   # seconds assumed: to build the model, to compile one shape (cram.sizing says a minute)
LOOP_SECONDS = 0.0005       # ledger, telemetry, schedule and the rest, a step (reports/bench/overhead_cpu.json)
SHORT = 0.01                # seconds of a micro-batch, assumed: in less, a card waits for hundreds of kernels to be launched
CARD_DISK = 1e9                       # bytes a second assumed of the disk beside a card


@dataclass(frozen=True)
class Costs:
    """Seconds, but for what says otherwise. micro: of forward and backward of a micro-batch, by shape (its tokens 0);
    rate: FLOP/s, for shapes that are not there; update: of the optimizer's step and the loop, once a step.
    """

    device: str
    kind: str
    measured: bool
    precision: torch.dtype
    micro_tokens: int
    micro: dict[Shape, float]
    rate: float
    update: float
    setup: float
    compile: float
    save: float
    validation: float
    steps: int = 0                              # taken to know that
    remarks: tuple[str, ...] = ()
    memory_bytes: Optional[int] = None          # of the device
    peak_bytes: Optional[int] = None            # measured
    watts: Optional[float] = None               # measured, or the card's design power

    def step(self, shape: Shape, flops: float) -> float:
        """Seconds of a step of this shape."""
        seconds = self.micro.get(replace(shape, tokens=0))
        if seconds is None:
            return flops / self.rate + self.update
        return shape.tokens / self.micro_tokens * seconds + self.update

    def faster(self, factor: float) -> "Costs":
        """The same with steps of ``factor`` times the speed."""
        return replace(self, micro={shape: seconds / factor for shape, seconds in self.micro.items()},
                       rate=self.rate * factor, update=self.update / factor)


def of_card(config, outline: Outline, card: Card) -> Costs:
    """What a named card would cost at the MFU expected of it; ``Costs.faster`` gives the range. Assumed, not measured."""
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.get(
        config.train.precision, torch.bfloat16 if card.bf16 else torch.float16)
    if config.train.precision == "bf16" and not card.bf16:
        raise CramError(f"train.precision=bf16: {card.name} has no bf16; use train.precision=fp16")
    micro_tokens = _fitting(config, outline.model.vocab_size, card, precision)
    shapes = coming_shapes(0.0, config, micro_tokens)
    weights = 4 * outline.parameters
    rate = MFU[1] * card.peak
    causal = config.objective.type == "causal"
    look = outline.flops_per_token(shapes[-1], causal) / 3 * config.train.validation_tokens / rate
    compiled = config.train.compile != "off"
    each = outline.flops_per_token(shapes[-1], causal) * micro_tokens / rate
    remarks = () if each >= SHORT else (
        f"{1e3 * each:.2g} ms a micro-batch is less than launching its kernels takes: so small a model reaches far less of the "
        f"peak than assumed; measure on the card",)
    return Costs(f"{card.name} (data sheet)", "cuda", False, precision, micro_tokens, {}, rate, LOOP_SECONDS, CARD_SETUP,
                 CARD_GRAPH * len(shapes) * compiled, 3 * weights / CARD_DISK, look, remarks=remarks, memory_bytes=card.memory,
                 watts=card.watts)


def _fitting(config, vocab_size: int, card: Card, precision: torch.dtype) -> int:
    """The largest micro-batch whose parts fit into nine tenths of the card, as ``largest_micro_batch`` would try them out."""
    row, batch = config.train.sequence_length, share_of_batch(config, 1)
    if config.train.micro_batch_tokens is not None:
        return config.train.micro_batch_tokens
    parts = memory(config, vocab_size, row, precision)
    moving = parts["activations"] + parts["logits"]
    still = sum(parts.values()) - moving
    rows = batch // row
    for count in range(1, rows + 1):
        tokens = batch // count
        if rows % count == 0 and tokens <= max(65536, row) and still + moving * tokens / row <= 0.9 * card.memory:
            return tokens
    raise CramError(f"does not fit: {(still + moving) / 1e9:.1f} GB with a single row of {row} tokens, more than nine tenths "
                    f"of the {card.memory / 1e9:.0f} GB of {card.name}; make the model smaller, or use train.recompute=full")
