"""Activations that are computed twice instead of kept.

The backward pass of a layer needs what its forward pass computed. Kept for every layer, that is most of the memory of
training; but it can be computed again from less, layer by layer, when its turn comes:

    none        everything is kept
    selective   the results of matrix products and of attention are kept, which cost most to compute; norms, activations,
                gates and rotations, which are as large and nearly free, run again (Korthikanti et al. 2022, section 5,
                drew the line at attention's scores, which fused kernels never write out)
    full        only the input of each block is kept; the whole block runs again, a third more FLOPs (Chen et al. 2016)

The same operations on the same numbers give the same bits, so all three train the same model. There is no dropout, thus
no generator whose state would have to be kept beside them (``preserve_rng_state=False``). Under Inductor a recomputed
reduction may be compiled in another order than the first time (pytorch issue 186572): equal up to rounding there.
"""

from __future__ import annotations

import functools
from typing import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from cram.errors import CramError

KEPT = frozenset((
    "aten::mm", "aten::addmm", "aten::_scaled_mm",                                       # linear layers; the last in float8
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "cram::attention_forward", "torch_attn::_varlen_attn", "flex_attention"))
# Not aten::bmm: it is sdpa's way where no fused kernel fits, and its result there is all the scores.


def run(mode: str, function: Callable[..., Tensor], *arguments) -> Tensor:
    """function(*arguments), keeping for the backward pass what ``mode`` says: none, selective or full.

    Anything may be among the arguments; gradients reach tensors and parameters alike. Raises CramError for other modes.
    """
    if mode not in ("none", "selective", "full"):
        raise CramError(f"train.recompute '{mode}' is none of none, selective, full")
    if mode == "none" or not torch.is_grad_enabled():
        return function(*arguments)
    contexts = {"context_fn": _selective} if mode == "selective" else {}
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **contexts)


def _policy(context, operation, *arguments, **options) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation.name() in KEPT else CheckpointPolicy.PREFER_RECOMPUTE


_selective = functools.partial(create_selective_checkpoint_contexts, _policy)
