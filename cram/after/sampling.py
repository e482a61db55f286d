"""From logits to a token: temperature, then top-k, nucleus and min-p, in the order of Hugging Face's generate.

Axes: B sequences, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from cram.errors import CramError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    temperature: logits are divided by it; 0: always the likeliest token. top_k: of the k likeliest tokens alone (ties with
    the last stay). top_p: of the fewest tokens that hold this much probability (nucleus, Holtzman et al. 2020, section 3.1).
    min_p: of tokens at least this share as probable as the likeliest (Nguyen et al. 2024, arXiv 2407.01082). None: no such
    limit. Raises CramError for values out of range.
    """

    temperature: float = 1.0
    top_k: Optional[int] = None
    top_p: Optional[float] = None
    min_p: Optional[float] = None

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise CramError(f"temperature {self.temperature}: give 0 (always the likeliest token) or more, such as 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise CramError(f"top-k {self.top_k}: give a whole number from 1, such as 40")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise CramError(f"top-p {self.top_p}: give a probability above 0 and at most 1, such as 0.9")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise CramError(f"min-p {self.min_p}: give a share from 0 to 1, such as 0.05")

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """What a token is drawn from, float32 [B, V]; -inf among the logits is never drawn."""
        logits_BV = logits_BV.float()
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits_BV.argmax(1), logits_BV.shape[1]).float()
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[1]:
            least_B1 = logits_BV.topk(self.top_k).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            sorted_BV, order_BV = logits_BV.softmax(1).sort(dim=1, descending=True, stable=True)
            likelier_BV = sorted_BV.cumsum(1) - sorted_BV  # the probability of all tokens that come first
            likelier_BV[:, 0] = 0
            drop_BV = torch.zeros_like(likelier_BV, dtype=torch.bool).scatter(1, order_BV, likelier_BV >= self.top_p)
            logits_BV = logits_BV.masked_fill(drop_BV, -torch.inf)
        if self.min_p:
            best_B1 = logits_BV.amax(1, keepdim=True)
            logits_BV = logits_BV.masked_fill((logits_BV - best_B1).exp() < self.min_p, -torch.inf)
        return logits_BV.softmax(1)


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Tokens int64 [B] for numbers of [0, 1): the first one up to which the probabilities add up to more than it.

    So a token hangs on its own number alone, whatever else is in the batch, and hardly on the last bits of a logit.
    """
    total_BV = probabilities_BV.double().cumsum(1)
    wanted_B1 = uniform_B.to(total_BV)[:, None] * total_BV[:, -1:]
    token_B = torch.searchsorted(total_BV, wanted_B1, right=True)[:, 0]
    last_B = total_BV.shape[1] - 1 - (probabilities_BV > 0).flip(1).int().argmax(1)
    return torch.minimum(token_B, last_B)
