"""AdamW (Loshchilov & Hutter 2019), torch's fused kernel, with cautious decay and, by bitsandbytes, 8-bit moments."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

from cram.cautious import decay_cautiously
from cram.errors import CramError
from cram.sharded import local

NO_BITSANDBYTES = ("optimizer.state_bits=8 needs bitsandbytes: pip install 'bitsandbytes>=0.48' (the extra lowbit), "
                   "or use optimizer.state_bits=32")


class AdamW(torch.optim.AdamW):
    """torch's, fused: one kernel for all parameters, and ``found_inf`` (float32 [], or None), which makes a step change
    nothing where it is 1, without the host's waiting.

    cautious: decay never against the update (``cram.cautious``). The update has the sign of the first moment, so that
    is formed ahead of the kernel and compared with the weight; the kernel decays nothing.
    """

    found_inf: Optional[Tensor] = None

    def __init__(self, params, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
                 weight_decay: float = 0.01, cautious: bool = False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        for group in self.param_groups:
            group["cautious_decay"] = group["weight_decay"] if cautious else 0.0
            group["weight_decay"] = 0.0 if cautious else group["weight_decay"]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            if group["cautious_decay"]:
                self._decay_cautiously(group)
        return super().step(closure)

    def _decay_cautiously(self, group: dict) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            weight, moment = local(parameter), local(parameter.grad)
            if parameter in self.state:  # else the first moment is 0, and the gradient has the sign of the next
                moment = torch.lerp(local(self.state[parameter]["exp_avg"]), moment, 1 - group["betas"][0])
            decay_cautiously(weight, moment, group["lr"] * group["cautious_decay"], self.found_inf)


def adamw_8bit(groups: list[dict], betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW with moments in 8 bits, a scale for each block of 256 (Dettmers et al. 2022).

    It has no flag on the device and waits for the card after every parameter anyway, so ``found_inf`` is read by the
    host. Tensors of fewer than 4,096 numbers keep 32 bits. Raises CramError when the package is missing.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise CramError(NO_BITSANDBYTES) from error

    class SkippableAdamW8bit(AdamW8bit):
        found_inf: Optional[Tensor] = None

        def step(self, closure=None):
            return None if self.found_inf is not None and bool(self.found_inf > 0) else super().step(closure)

    return SkippableAdamW8bit(groups, betas=betas, eps=eps)
