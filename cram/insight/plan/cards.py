"""Named cards: what their data sheets and price lists say. Nothing here was measured by us.

Peak: dense bf16 (T4, V100: fp16) with fp32 accumulation, as ``cram.device.PEAK_FLOPS`` has it. Memory, bandwidth and power: NVIDIA's
data sheets. Prices: what one provider asked an hour for one card on the day named; others ask a fifth or four times as much.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Optional

from cram.device import PEAK_FLOPS
from cram.errors import CramError

# Share of the peak that training reaches (MFU): low, expected, high. Small models at 8,192 tokens and more a micro-batch reach 33 to
# 41% of an H100 in public reports (torchtitan, Liang et al. 2024, arXiv 2410.06511; nanochat's speed runs); half of the usual on a
# card whose kernels nobody has tuned. An assumption: `cram plan` on the card itself measures.
MFU = (0.20, 0.35, 0.45)
GB = 10**9


@dataclass(frozen=True)
class Card:
    """memory: bytes; bandwidth: bytes/s; watts: thermal design power; usd_per_hour: None where we know no price."""

    name: str
    memory: int
    bandwidth: float
    watts: int
    bf16: bool
    source: str
    usd_per_hour: Optional[float] = None
    price_source: str = ""

    @property
    def peak(self) -> float:
        """Dense FLOP/s."""
        return PEAK_FLOPS[self.name]


_LAMBDA, _AKASH = "Lambda, lambda.ai/instances, 2026-09-20", "Akash, akash.network/pricing/gpus, 2026-09-20"
CARDS = {card.name: card for card in (
    Card("H200", 141 * GB, 4.8e12, 700, True, "NVIDIA H200 data sheet, SXM", 4.45, _AKASH),
    Card("H100", 80 * GB, 3.35e12, 700, True, "NVIDIA H100 data sheet, SXM", 4.29, _LAMBDA),
    Card("A100", 80 * GB, 2.039e12, 400, True, "NVIDIA A100 data sheet, 80 GB SXM", 2.79, _LAMBDA),
    Card("A10", 24 * GB, 600e9, 150, True, "NVIDIA A10 data sheet", 1.29, _LAMBDA),
    Card("L40S", 48 * GB, 864e9, 350, True, "NVIDIA L40S data sheet"),
    Card("L40", 48 * GB, 864e9, 300, True, "NVIDIA L40 data sheet"),
    Card("L4", 24 * GB, 300e9, 72, True, "NVIDIA L4 data sheet"),
    Card("RTX 4090", 24 * GB, 1008e9, 450, True, "NVIDIA Ada GPU architecture white paper, appendix A", 0.39, _AKASH),
    Card("RTX 3090", 24 * GB, 936e9, 350, True, "NVIDIA GA102 white paper, appendix A", 0.16, _AKASH),
    Card("A6000", 48 * GB, 768e9, 300, True, "NVIDIA RTX A6000 data sheet", 1.09, _LAMBDA),
    Card("T4", 16 * GB, 320e9, 70, False, "NVIDIA T4 data sheet", 0.15, _AKASH),
    Card("V100", 16 * GB, 900e9, 300, False, "NVIDIA V100 data sheet, 16 GB SXM2", 0.79, _LAMBDA))}


def find_card(name: str) -> Card:
    """By name, whatever the case, with or without 'RTX'. CramError naming those there are."""
    wanted = name.lower().replace("nvidia", "").replace("geforce", "").replace("rtx", "").replace("-", " ").strip()
    for card in CARDS.values():
        if card.name.lower().replace("rtx", "").strip() == wanted:
            return card
    near = difflib.get_close_matches(name.upper(), CARDS, n=1)
    raise CramError(f"--gpu {name}: not among the cards we have figures of; "
                    + (f"did you mean '{near[0]}'? " if near else "") + f"possible: {', '.join(CARDS)}")
