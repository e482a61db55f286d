"""AdaLomo (Lv et al. 2023, arXiv 2310.10195, algorithm 1): adaptive learning rates at next to no memory.

The second moment of a matrix is the product of its row and column means (Adafactor, Shazeer & Stern 2018); there is no
first moment. Because an update needs the gradient of its own parameter only, it may run inside the backward pass, and
the gradient is freed at once.

Axes: M rows, N columns.
"""

from __future__ import annotations

from functools import partial
from typing import Optional

import torch
from torch import Tensor, nn

from cram.sharded import local, part_of, whole

TINY = 1e-30            # added to squared gradients
SMALLEST_SIZE = 1e-3    # a parameter's root mean square counts as at least this (Adafactor's epsilon 2)
DECAY_EXPONENT = -0.8   # second moments decay by 1 - t^-0.8, which also corrects their bias (Adafactor, section 7.2)


def rms(x: Tensor) -> Tensor:
    """Root mean square, []."""
    return x.square().mean().sqrt()


class AdaLomo(torch.optim.Optimizer):
    """The update g / sqrt(v), its root mean square clipped to 1, times lr and the parameter's own root mean square.

    fused_backward: each parameter is updated as soon as its gradient has accumulated, and ``grad`` is None again;
    ``step`` then finds no gradient to use. For one backward pass a step, gradients neither clipped nor scaled.
    cautious: decay never against the update, as in ``cram.cautious``.
    ``found_inf``: None, or float32 []; where it is 1 an update changes nothing. Set it before ``step``, or before
    the backward pass when that is fused.
    """

    found_inf: Optional[Tensor] = None
    whole_states = True  # plain and whole on every process, also of sharded parameters

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.0, cautious: bool = False,
                 fused_backward: bool = False):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, cautious=cautious))
        if fused_backward:
            for index, group in enumerate(self.param_groups):  # by index: loading a state replaces the groups
                for parameter in group["params"]:
                    parameter.register_post_accumulate_grad_hook(partial(self._consume, index))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    @torch.no_grad()
    def _consume(self, group_index: int, parameter: nn.Parameter) -> None:
        self._update(parameter, self.param_groups[group_index])
        parameter.grad = None

    def _update(self, parameter: nn.Parameter, group: dict) -> None:
        gradient, weight, state = whole(parameter.grad).float(), whole(parameter), self.state[parameter]
        if not state:
            state.update(self._blank(gradient))
        updates = state["updates"] + 1
        square, share = gradient.square() + TINY, updates**DECAY_EXPONENT
        new = {"updates": updates}
        if gradient.ndim > 1:
            new["row_M"] = state["row_M"].lerp(square.mean(-1), share)
            new["column_N"] = state["column_N"].lerp(square.mean(-2), share)
            update = gradient * (new["row_M"] / new["row_M"].mean()).rsqrt()[:, None] * new["column_N"].rsqrt()
        else:
            new["square"] = state["square"].lerp(square, share)
            update = gradient * new["square"].rsqrt()
        update = update / rms(update).clamp(min=1.0)
        lr = group["lr"] * rms(weight).clamp(min=SMALLEST_SIZE)
        decay = lr * group["weight_decay"]
        if group["cautious"]:
            decay = decay * (update * weight >= 0)
        moved = weight * (1 - decay) - lr * update
        for name, value in new.items():
            self._take(state[name], value)
        self._take(local(parameter), part_of(moved, parameter))

    def _take(self, old: Tensor, new: Tensor) -> None:
        old.copy_(new if self.found_inf is None else torch.where(self.found_inf > 0, old, new))

    @staticmethod
    def _blank(gradient: Tensor) -> dict[str, Tensor]:
        updates = gradient.new_zeros(())
        if gradient.ndim == 1:
            return {"updates": updates, "square": torch.zeros_like(gradient)}
        rows, columns = gradient.shape
        return {"updates": updates, "row_M": gradient.new_zeros(rows), "column_N": gradient.new_zeros(columns)}
