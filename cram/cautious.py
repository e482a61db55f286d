"""Cautious weight decay (Chen et al. 2025, arXiv 2510.12402, algorithm 1): never against the update."""

from __future__ import annotations

from typing import Optional

from torch import Tensor


def decay_cautiously(weight: Tensor, update: Tensor, share: float, skip: Optional[Tensor]) -> None:
    """Take ``share`` off each weight whose update, the amount about to be subtracted, does not have the other sign.

    update: of the weight's shape; only its sign matters. skip: None, or float32 []; where it is 1 nothing changes.
    """
    decayed = (update * weight >= 0).type_as(weight)  # 0 or 1; 0 for what is not a number
    if skip is not None:
        decayed.mul_(1 - skip)
    weight.addcmul_(weight, decayed, value=-share)  # where masked_fill_ or where would take five times as long on a CPU
