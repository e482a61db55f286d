"""Optimizers and the parameter groups that partition a model.

Every parameter belongs to exactly one group: ``matrices`` (hidden weights, two axes),
``embeddings`` (input and output tables) or ``vectors`` (gains, biases, scales). Muon
takes the matrices when it is chosen, AdamW everything else; weight decay is decoupled
(Loshchilov & Hutter 2019) and spares the vectors.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Optional

import torch
from torch import Tensor, nn

# Quintic iteration x -> a x + b (x xT) x + c (x xT)^2 x, steep at 0 (Jordan 2024, "Muon").
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(g_BMN: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of each matrix towards 1, keeping its singular vectors.

    g_BMN: a batch of M x N matrices, float32. Iterates in bfloat16 on CUDA, float32 elsewhere.
    The result's singular values lie roughly in [0.7, 1.2], which is all that Muon needs.
    """
    a, b, c = NEWTON_SCHULZ
    x = g_BMN.bfloat16() if g_BMN.is_cuda else g_BMN
    tall = x.size(-2) > x.size(-1)
    if tall:  # the Gram matrix is formed on the short side
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(g_BMN.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz (Jordan 2024), for weight matrices.

    The update has root mean square 0.2 x lr whatever the shape (Liu et al. 2025, equation 4), so
    learning rates carry over between widths. Matrices of one shape are orthogonalised together.
    """

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                updates_BMN = orthogonalise(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
                size = 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(updates_BMN.unbind()), alpha=-group["lr"] * size)

    def _nesterov(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer = state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


def partition(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters by kind; each trainable parameter of the model exactly once."""
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    tables |= {id(model.head.weight)}
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for parameter in model.parameters():  # a tied weight appears once
        kind = "embeddings" if id(parameter) in tables else "matrices" if parameter.ndim == 2 else "vectors"
        groups[kind].append(parameter)
    return groups


def make_optimizers(model: nn.Module, config) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon before it when chosen. config: ``cram.schema.Optimizer``. Groups carry their ``peak_lr``."""
    groups = partition(model)
    embedding_lr = config.embedding_lr or config.lr
    adamw = [dict(params=groups["embeddings"], lr=embedding_lr, weight_decay=config.weight_decay),
             dict(params=groups["vectors"], lr=config.lr, weight_decay=0.0)]
    optimizers: list[torch.optim.Optimizer] = []
    if config.type == "muon":
        optimizers.append(Muon(groups["matrices"], config.muon_lr, config.momentum, config.weight_decay))
    else:
        adamw.append(dict(params=groups["matrices"], lr=config.lr, weight_decay=config.weight_decay))
    optimizers.append(torch.optim.AdamW(adamw, betas=(config.beta1, config.beta2), eps=config.eps, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    """Every group's learning rate becomes ``share`` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share


class LossScale:
    """Dynamic loss scale for float16 (Micikevicius et al. 2018, section 3.2).

    Halves when a step overflowed, doubles after ``patience`` good steps. 1 forever when off.
    """

    def __init__(self, enabled: bool, patience: int = 2000):
        self.enabled, self.patience = enabled, patience
        self.scale, self.good_steps = (65536.0 if enabled else 1.0), 0

    def update(self, finite: bool) -> None:
        if not self.enabled:
            return
        if not finite:
            self.scale, self.good_steps = max(self.scale / 2, 1.0), 0
            return
        self.good_steps += 1
        if self.good_steps == self.patience:
            self.scale, self.good_steps = min(self.scale * 2, 2.0**24), 0

    def state_dict(self) -> dict:
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict) -> None:
        self.scale, self.good_steps = state["scale"], state["good_steps"]


def finish_gradients(parameters: list[nn.Parameter], scale: float, clip: Optional[float]) -> Tensor:
    """Undo the loss scale, clip to the global norm; returns the norm before clipping, float32 []."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if scale != 1.0:
        torch._foreach_div_(gradients, scale)
    norm = torch.nn.utils.get_total_norm(gradients)
    if clip is not None:
        torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
    return norm
