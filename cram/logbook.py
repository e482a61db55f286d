"""What the loop tells of its steps: a row every few steps, made of means since the row before."""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor

from cram.device import Device
from cram.ledger import Ledger
from cram.shapes import Shape


class Logbook:
    """Collects steps and hands rows to the telemetry. The loss stays on the device until a row is due."""

    def __init__(self, device: Device, ledger: Ledger, telemetry, every: int):
        self.device, self.ledger, self.telemetry, self.every = device, ledger, telemetry, every
        self._clear()

    def _clear(self) -> None:
        self._nats_sum, self._predicted = torch.zeros(2, device=self.device.kind).unbind()
        self._tokens, self._flops, self._seconds = 0, 0.0, 0.0

    def add(self, loss: Tensor, predicted: int, skip: Tensor, tokens: int, flops: float, seconds: float) -> None:
        """One step. loss: mean over the predicted tokens, nats; skip: float32 [] both, on the device. Skipped steps count for
        speed, not for the loss."""
        taken = 1.0 - skip
        self._nats_sum += torch.where(taken > 0, loss * predicted, 0.0)
        self._predicted += predicted * taken
        self._tokens, self._flops, self._seconds = self._tokens + tokens, self._flops + flops, self._seconds + seconds

    def is_due(self, step: int, progress: float) -> bool:
        return step % self.every == 0 or step == 1 or progress == 1.0

    def write(self, *, step: int, progress: float, tokens: int, shape: Shape, norm: Optional[Tensor], rates: dict,
              masked: bool) -> None:
        """A row of metrics, and the line of progress. tokens: read so far; norm: of the last gradient."""
        loss = float(self._nats_sum / self._predicted)  # no step taken: nan
        norm = None if norm is None else float(norm)
        speed = self._tokens / self._seconds
        self.telemetry.train({
            "step": step, "progress": progress, "spent": self.ledger.seconds, "loss": _finite(loss), **rates,
            "grad_norm": _finite(norm), "tokens": tokens, "tokens_per_second": speed, "batch_tokens": shape.tokens,
            "row": shape.row, "window": shape.window or shape.row, "layers": shape.layers,
            "mask_rate": shape.mask_rate if masked else None,
            "mfu": self._flops / self._seconds / self.device.peak_flops if self.device.peak_flops else None,
            "memory_bytes": self.device.memory()})
        budget, spent = self.ledger.budget, self.ledger.spent
        share, running = max(spent / budget.amount, 1e-9), self.ledger.seconds - self.ledger.account_seconds["setup"]
        eta = budget.amount - spent if budget.kind == "time" else running * (1 / share - 1)
        self.telemetry.progress(fraction=share, left=budget.show(budget.amount - spent), loss=loss, tokens_per_second=speed,
                                eta=eta)
        self._clear()


def _finite(value: Optional[float]) -> Optional[float]:
    return value if value is not None and math.isfinite(value) else None
