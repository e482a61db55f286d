"""AdamW in the computer's memory (ZeRO-Offload, Ren et al. 2021, section 4): the card keeps weights and gradients only.

A step copies the gradients down, runs torch's fused AdamW on the processor, and copies the weights up.
"""

from __future__ import annotations

import torch
from torch import nn

from cram.adamw import AdamW
from cram.sharded import local


class OffloadedAdamW(AdamW):
    """``AdamW`` over float32 copies of the parameters (``masters``), which with the moments live on the CPU, in pinned
    memory when the parameters are on a card. A sharded parameter is offloaded by each process for its own part.

    The host waits for the card once a step, for the gradients. Masters are taken from the parameters anew after
    construction, ``load_state_dict`` and ``refresh``; nothing else may change the weights between steps.
    """

    def __init__(self, groups: list[dict], **settings):
        self.masters: dict[nn.Parameter, nn.Parameter] = {
            parameter: self._master(parameter) for group in groups for parameter in group["params"]}
        super().__init__([{**group, "params": [self.masters[p] for p in group["params"]]} for group in groups], **settings)
        self.stale = True

    @staticmethod
    @torch.no_grad()
    def _master(parameter: nn.Parameter) -> nn.Parameter:
        part = local(parameter)
        return nn.Parameter(torch.empty(part.shape, dtype=torch.float32, pin_memory=part.is_cuda))

    @torch.no_grad()
    def step(self, closure=None):
        for parameter, master in self.masters.items():
            if self.stale:
                master.copy_(local(parameter), non_blocking=True)
            if parameter.grad is None:
                master.grad = None
                continue
            if master.grad is None:
                master.grad = torch.empty_like(master, pin_memory=parameter.is_cuda)
            master.grad.copy_(local(parameter.grad), non_blocking=True)
        self.stale = False
        self._wait()
        super().step(closure)
        for parameter, master in self.masters.items():
            if master.grad is not None:
                local(parameter).copy_(master, non_blocking=True)

    def _wait(self) -> None:
        """Until the copies have arrived: fetching the flag, queued behind them, or the card itself."""
        if self.found_inf is not None:
            self.found_inf = self.found_inf.cpu()
        elif any(parameter.is_cuda for parameter in self.masters):
            torch.cuda.current_stream().synchronize()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Frees the parameters' gradients; the buffers down here stay."""
        for parameter in self.masters:
            parameter.grad = None

    def refresh(self) -> None:
        """Take the weights from the parameters at the next step, because something else has changed them."""
        self.stale = True

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        self.refresh()
