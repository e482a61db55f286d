"""Dynamic loss scale for float16 (Micikevicius et al. 2018, section 3.2), kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, LARGEST = 2.0**16, 2.0**24


class LossScale:
    """Halves when a step is skipped, doubles after ``patience`` steps taken in a row; 1 forever when not enabled.

    ``scale``: float32 [], the same tensor throughout. Nothing here waits for the device. A step that is skipped for
    another reason than an overflow halves it too, which costs nothing but a little of float16's range.
    """

    def __init__(self, enabled: bool, patience: int = 2000, device: torch.device | str = "cpu"):
        self.enabled, self.patience = enabled, patience
        self.scale = torch.tensor(FIRST if enabled else 1.0, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, skip: Tensor) -> None:
        """skip: float32 [], 1 when the step was skipped, else 0."""
        if not self.enabled:
            return
        skipped, good_steps = skip > 0, self.good_steps + 1
        due = good_steps == self.patience
        grown = torch.where(due, self.scale * 2, self.scale).clamp(max=LARGEST)
        self.scale.copy_(torch.where(skipped, self.scale / 2, grown).clamp(min=1.0))
        self.good_steps.copy_(good_steps.masked_fill(skipped | due, 0))

    def state_dict(self) -> dict:
        return {"scale": self.scale.clone(), "good_steps": self.good_steps.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.scale.copy_(state["scale"])
        self.good_steps.copy_(state["good_steps"])
