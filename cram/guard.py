"""Steps that must not be taken: a loss or a gradient that is no number, and a loss that leaps.

A step is skipped when its loss or the norm of its gradient is not finite, or when its loss lies more than
``spike_sigmas`` standard deviations above the mean of the last ``spike_window`` losses of steps that were taken. The idea
is that of OLMo's SkipStepOptimizer (OLMo et al. 2024, "2 OLMo 2 Furious", arXiv:2501.00656), with two differences: a
skipped loss never enters the memory, so that a run of spikes cannot make itself normal, and the norm must be finite only.

Everything is decided on the device: ``judge`` never waits for it, and its answer is a tensor that the optimizers multiply
or select with. The host asks once in a while (``check``), for all steps since the last time at once. The judgement of a
step depends on the losses before it alone, so a resumed run judges as the uninterrupted one did.

Axes: W spike_window.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import torch
from torch import Tensor

# The least standard deviation that is believed, as a share of the mean: a loss that stood still would make any change a spike.
LEAST_SPREAD = 1e-3
TINY = 1e-6                     # nats: the same for a loss near 0


class Report(NamedTuple):
    """skipped: numbers of the steps skipped since the last check, the run's first step is 1; in_a_row: skipped steps at the
    end of the record, without one taken after them; looked_at: steps since the last check."""

    skipped: list[int]
    in_a_row: int
    looked_at: int


class Guard:
    """Judges every step by its loss. config: ``cram.schema.Train`` (spike_sigmas, spike_window)."""

    def __init__(self, config, device: str = "cpu"):
        self.sigmas = config.spike_sigmas
        self.losses_W = torch.zeros(config.spike_window, device=device)         # of taken steps, a ring
        self.place_W = torch.arange(config.spike_window, device=device)
        self.taken = torch.zeros((), dtype=torch.int64, device=device)          # losses remembered since the last reset
        self.in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.step = 0                                                           # judged so far
        self.unread: list[Tensor] = []                                          # judgements since the last check

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Optional[Tensor] = None) -> Tensor:
        """1.0 to skip this step, 0.0 to take it; float32 [] on the device, never read here.

        loss: mean of the step, nats, float32 []. norm: of the whole gradient, float32 []; None: it is never there at once
        (fused backward). A loss-scale overflow shows as a norm that is not finite, and is skipped as well.
        """
        bad = ~loss.isfinite()
        if norm is not None:
            bad = bad | ~norm.isfinite()
        if self.sigmas is not None:
            variance, mean = torch.var_mean(self.losses_W, correction=0)
            spread = torch.maximum(variance.sqrt(), LEAST_SPREAD * mean.abs() + TINY)
            bad = bad | ((self.taken >= len(self.losses_W)) & (loss > mean + self.sigmas * spread))
        here_W = (self.place_W == self.taken % len(self.losses_W)) & ~bad
        self.losses_W = torch.where(here_W, loss, self.losses_W)  # selected, not multiplied: 0 * NaN is NaN
        self.taken = self.taken + (~bad).long()
        self.in_a_row = torch.where(bad, self.in_a_row + 1, 0)
        skip = bad.float()
        self.step += 1
        self.unread.append(skip)
        return skip

    def check(self) -> Report:
        """What was skipped since the last check. Waits for the device, once."""
        *flags, in_a_row = torch.stack([*self.unread, self.in_a_row.float()]).tolist()
        first = self.step - len(flags) + 1
        self.unread.clear()
        return Report([first + number for number, flag in enumerate(flags) if flag], int(in_a_row), len(flags))

    def calm(self) -> bool:
        """Whether the last step was taken. Waits for the device."""
        return not bool(self.in_a_row)

    def reset(self) -> None:
        """Forget the losses: another mask rate or row length makes another loss. Nothing is a spike until W more are known."""
        self.taken = torch.zeros_like(self.taken)

    def pardon(self) -> None:
        """Count skipped steps from 0 again: after a roll-back, whose checkpoint may lie within the bad stretch."""
        self.in_a_row = torch.zeros_like(self.in_a_row)
        self.unread.clear()

    def state_dict(self) -> dict:
        """The whole memory; tensors are never changed in place, so that this is a snapshot."""
        unread = torch.stack(self.unread) if self.unread else torch.zeros(0, device=self.losses_W.device)
        return {"losses": self.losses_W, "taken": self.taken, "in_a_row": self.in_a_row, "step": self.step, "unread": unread}

    def load_state_dict(self, state: dict) -> None:
        device = self.losses_W.device
        self.losses_W, self.taken, self.in_a_row = (state[name].to(device) for name in ("losses", "taken", "in_a_row"))
        self.step, self.unread = state["step"], list(state["unread"].to(device).unbind())
