"""Muon: momentum orthogonalised by a Newton-Schulz iteration (Jordan 2024), for weight matrices.

Axes: B matrices of one shape, M rows, N columns.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Optional

import torch
from torch import Tensor, nn

from cram.cautious import decay_cautiously
from cram.sharded import local, part_of, whole

# Quintic iteration x -> a x + b (x xT) x + c (x xT)^2 x, steep at 0 (Jordan 2024, "Muon").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(g_BMN: Tensor, steps: int = 5, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Move the singular values of each matrix towards 1, keeping its singular vectors.

    g_BMN: a batch of M x N matrices, or one alone, float32. dtype: of the iteration; None: bfloat16 on CUDA, float32
    elsewhere. The result's singular values lie roughly in [0.7, 1.2], which is all that Muon needs.
    """
    if g_BMN.ndim == 2:
        return orthogonalise(g_BMN[None], steps, dtype)[0]
    a, b, c = NEWTON_SCHULZ
    x = g_BMN.to(dtype or (torch.bfloat16 if g_BMN.is_cuda else g_BMN.dtype))
    tall = x.size(-2) > x.size(-1)
    if tall:  # the Gram matrix is formed on the short side
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # sums within the products
    return (x.mT if tall else x).to(g_BMN.dtype)


class Muon(torch.optim.Optimizer):
    """The update has root mean square 0.2 x lr whatever the shape (Liu et al. 2025, equation 4), so learning rates
    carry over between widths. Matrices of one shape are orthogonalised together; sharded ones are gathered for it, and
    every process keeps its part of the update. The parameters of a group are all plain or all sharded.

    cautious: decay never against the update (``cram.cautious``); iteration: dtype, as in ``orthogonalise``.
    ``found_inf``, as in torch's fused optimizers: None, or float32 []; where it is 1, ``step`` changes nothing.
    """

    found_inf: Optional[Tensor] = None

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0, cautious: bool = False,
                 iteration: Optional[torch.dtype] = None):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, cautious=cautious))
        self.iteration = iteration

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._move(parameters, group)

    def _move(self, parameters: list[nn.Parameter], group: dict) -> None:
        """One update of the matrices of one shape."""
        lr, decay, skip = group["lr"], group["lr"] * group["weight_decay"], self.found_inf
        moments_BMN = torch.stack([whole(self._nesterov(p, group["momentum"])) for p in parameters])
        updates_BMN = orthogonalise(moments_BMN, dtype=self.iteration)
        if skip is not None:
            updates_BMN = updates_BMN * (1 - skip)
        weights = [local(p) for p in parameters]
        updates = [part_of(update, p) for update, p in zip(updates_BMN.unbind(), parameters)]
        if group["cautious"]:
            for weight, update in zip(weights, updates):
                decay_cautiously(weight, update, decay, skip)
        else:
            kept = 1 - decay if skip is None else torch.full_like(skip, 1 - decay).masked_fill_(skip > 0, 1.0)
            torch._foreach_mul_(weights, kept)
        torch._foreach_add_(weights, updates, alpha=-lr * 0.2 * max(parameters[0].shape) ** 0.5)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Momentum after this gradient, and once more towards it. A skipped step sees its momentum as the gradient:
        nothing moves, and what is not finite stays out."""
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf > 0, state["momentum"], gradient)
        buffer = state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)
