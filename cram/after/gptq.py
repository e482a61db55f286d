"""GPTQ: rounding a matrix so that what it does to real inputs changes least (Frantar et al. 2023, arXiv 2210.17323).

For the inputs X that the matrix W saw on calibration text, the error is ||(W - Wq) X||^2 = tr((W - Wq) H (W - Wq)^T) with
H = X X^T. Columns are rounded one after another, and what a column loses is made up for by those not yet rounded: with U
the upper Cholesky factor of H^-1, column j moves by -(w_i - q_i) U_ij / U_ii (algorithm 1). A group of columns is also the
block within which updates are made at once; all columns behind it follow in one product. Levels are found when a group is
reached, from its weights as they are by then. H is damped by 1% of its mean diagonal. Columns keep their order (the
activation order of the authors' later code is left out: groups would no longer be contiguous).

Axes: O outputs, C inputs, N calibration tokens.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cram.after.round_to_nearest import Levels, encode, decode, find_levels
from cram.errors import CramError
from cram.layers import View

DAMPING = 0.01
ORDER = (("attention", ("q", "k", "v")), ("attention", ("out",)), ("mlp", ("gate", "up")), ("mlp", ("down",)))


def gptq(weight_OC: Tensor, hessian_CC: Tensor, bits: int, group: int) -> tuple[Tensor, Levels]:
    """Codes uint8 [O, C] and their levels. hessian_CC: X X^T, up to a factor, float64.

    With a diagonal H this is rounding to nearest. Raises CramError for a Hessian that is not finite, or groups that do not
    divide the inputs.
    """
    weight_OC = weight_OC.detach().float().clone()
    if not torch.isfinite(hessian_CC).all():
        raise CramError("GPTQ: the calibration text gives activations that are not finite; the model has exploded")
    hessian_CC = hessian_CC.double().clone()
    diagonal_C = hessian_CC.diagonal()
    diagonal_C += DAMPING * diagonal_C.mean().clamp_min(torch.finfo(torch.float32).tiny)
    inverse_CC = torch.cholesky_inverse(torch.linalg.cholesky(hessian_CC))
    upper_CC = torch.linalg.cholesky(inverse_CC, upper=True)
    upper_CC = (upper_CC / upper_CC.diagonal()[:, None]).float()  # row i over U_ii
    codes, scales, lows = [], [], []
    for begin in range(0, weight_OC.shape[1], group):
        end = begin + group
        block_OG = weight_OC[:, begin:end]
        levels = find_levels(block_OG, bits, group)
        lost_OG = torch.zeros_like(block_OG)
        for column in range(group):
            code_O1 = encode(block_OG[:, column:column + 1], levels, bits)
            lost_OG[:, column:column + 1] = block_OG[:, column:column + 1] - decode(code_O1, levels)
            block_OG[:, column + 1:] -= lost_OG[:, column:column + 1] * upper_CC[begin + column, begin + column + 1:end]
            codes.append(code_O1)
        weight_OC[:, end:] -= lost_OG @ upper_CC[begin:end, end:]
        scales.append(levels.scale)
        lows.append(levels.low)
    return torch.cat(codes, 1), Levels(torch.cat(scales, 1), torch.cat(lows, 1))


@torch.no_grad()
def gptq_blocks(model: Any, views: Sequence[View], bits: int, groups: Mapping[str, int],
                replace: Callable[[nn.Module, str, Tensor, Levels], None]) -> None:
    """Every matrix of every block in turn, each with the inputs that the matrices before it, already rounded, give it.

    model: ``cram.model.Transformer``. views: of the calibration text. groups: of each matrix, by its name in the model.
    replace(block, name, codes, levels) puts the rounded matrix in the place of ``name`` in the block.
    """
    streams = [(view, x_ND := model.embedded(view), x_ND) for view in views]
    for layer, block in enumerate(model.blocks[:model.depth]):
        for part, names in ORDER:
            linears = {f"{part}.{name}": linear for name in names
                       if (linear := getattr(block.get_submodule(part), name)) is not None}
            hessian_CC = second_moment(next(iter(linears.values())),  # those of one line read the same inputs
                                       (lambda at=at: model.layer(layer, at[1], at[2], at[0]) for at in streams))
            for name, linear in linears.items():
                replace(block, name, *gptq(linear.weight, hessian_CC, bits, groups[f"blocks.{layer}.{name}"]))
        streams = [(view, model.layer(layer, x_ND, x0_ND, view), x0_ND) for view, x_ND, x0_ND in streams]


def second_moment(linear: nn.Linear, runs: Iterable[Callable[[], Any]]) -> Tensor:
    """X X^T, float64 [C, C], of the inputs that ``linear`` gets while these run."""
    total_CC = torch.zeros(linear.in_features, linear.in_features, dtype=torch.float64, device=linear.weight.device)

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x_NC = inputs[0].flatten(0, -2).float()
        total_CC.add_((x_NC.T @ x_NC).double())

    hook = linear.register_forward_pre_hook(look)
    try:
        for run in runs:
            run()
    finally:
        hook.remove()
    return total_CC
