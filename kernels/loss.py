"""Linear layer and cross-entropy in one operation: the logits are never held whole.

The last layer of a language model makes the largest tensor of the whole step, P x V logits, of which
only one number is wanted, their loss. It is a sum over rows, so rows can be taken a chunk at a time:

    logits_CV   = x_CD weight_VDT                  one buffer, used again by every chunk
    loss       += sum of the rows' losses
    dlogits_CV  = d loss / d logits_CV             written over logits_CV
    dx_CD       = dlogits_CV weight_VD
    dweight_VD += dlogits_CVT x_CD                 in float32

The gradient is complete when the forward pass ends, and the backward pass only multiplies it by the
gradient that comes in: the logits are computed once, as in the plain way. (Grave et al. 2017 chunk the
softmax; Hsu et al. 2024, "Liger Kernel", section 3.2, compute the gradient in the forward pass.)

The third line is elementwise but for two sums along a row: ``kernels/loss_triton.py`` on CUDA, where its
derivation stands, and ``loss_rows_`` below everywhere else.

Axes: P predicted positions, taken C at a time and in that R at a time; D model width; V vocabulary.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20  # of logits in one chunk: large enough for the matrix products, small beside the model
CACHED_ROWS = 128  # of a chunk at a time, in PyTorch's own operations: a few of them pass over the same numbers


def linear_cross_entropy(x_PD: Tensor, weight_VD: Tensor, labels_P: Tensor, *, ignore_index: int = -100,
                         softcap: Optional[float] = None, z_loss: float = 0.0, chunk: Optional[int] = None) -> Tensor:
    """Sum of the negative log-likelihood (nats) of softmax(logits) over the labels that are not ignore_index.

    logits = x weightT, then softcap * tanh(logits / softcap) when softcap is given (Gemma 2, 2024, section 2);
    z_loss adds that weight times log(Z)^2 (PaLM, Chowdhery et al. 2022, section 5). labels_P: int64 or
    int32. Matrix products are taken in the dtype of x, or autocast's; a weight of another dtype is cast once.
    chunk: rows at a time; None: so many that their logits take CHUNK_BYTES, see ``rows_per_chunk``.

    Returns a float32 scalar (float64 for float64 x). It can be differentiated once. Raises ValueError for
    shapes or dtypes that do not fit, a chunk below 1 and a softcap that is not positive. A label outside
    [0, V) raises RuntimeError on the CPU; on CUDA, where asking would wait for the card, the loss is nan.
    """
    _check(x_PD, weight_VD, labels_P, softcap, chunk)
    kind = x_PD.device.type
    if torch.is_autocast_enabled(kind) and x_PD.dtype is not torch.float64:  # autocast leaves float64 alone
        x_PD = x_PD.to(torch.get_autocast_dtype(kind))
    if chunk is None:
        chunk = rows_per_chunk(len(weight_VD), x_PD.dtype)
    gradients = torch.is_grad_enabled() and (x_PD.requires_grad or weight_VD.requires_grad)
    return linear_cross_entropy_op(x_PD, weight_VD, labels_P, ignore_index, softcap, z_loss, chunk, gradients)[0]


def rows_per_chunk(v: int, dtype: torch.dtype) -> int:
    """Rows of V logits that fit in CHUNK_BYTES, a multiple of 128 and at least that."""
    return max(128, CHUNK_BYTES // (v * dtype.itemsize) // 128 * 128)


def _check(x_PD: Tensor, weight_VD: Tensor, labels_P: Tensor, softcap: Optional[float], chunk: Optional[int]) -> None:
    x, weight, labels = x_PD.shape, weight_VD.shape, labels_P.shape
    if len(x) != 2 or len(weight) != 2 or x[1] != weight[1] or labels != x[:1] or not weight[0]:
        raise ValueError(f"x {tuple(x)}, weight {tuple(weight)}, labels {tuple(labels)}: expected [P, D], [V, D], [P]")
    if not (x_PD.dtype.is_floating_point and weight_VD.dtype.is_floating_point):
        raise ValueError(f"x {x_PD.dtype}, weight {weight_VD.dtype}: expected floating-point numbers")
    if labels_P.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels {labels_P.dtype}: expected integers (int64 or int32), each row's right class")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}: at least one row at a time")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap}: must be positive; None for no cap")


@torch.library.custom_op("cram::linear_cross_entropy", mutates_args=())
def linear_cross_entropy_op(x_PD: Tensor, weight_VD: Tensor, labels_P: Tensor, ignore_index: int, softcap: Optional[float],
                            z_loss: float, chunk: int, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [], d loss / dx [P, D] in the dtype of x, d loss / dweight [V, D] in float32 (both [0] unless gradients)."""
    loss_rows = _loss_rows_for(x_PD)
    loss, dx_PD, dweight_VD = _outputs(x_PD, weight_VD, gradients)
    loss_P = loss.new_zeros(len(x_PD))
    weight_VD, labels_P = weight_VD.to(x_PD.dtype), labels_P.contiguous()
    buffer_CV = x_PD.new_empty(min(chunk, len(x_PD)), len(weight_VD))
    for start in range(0, len(x_PD), chunk):  # products go into tensors that exist already: autocast leaves those alone
        rows = slice(start, start + chunk)
        x_CD = x_PD[rows]
        logits_CV = torch.mm(x_CD, weight_VD.t(), out=buffer_CV[:len(x_CD)])
        loss_rows(logits_CV, labels_P[rows], loss_P[rows], ignore_index=ignore_index, softcap=softcap, z_loss=z_loss,
                  gradients=gradients)  # from here on the buffer holds d loss / d logits
        if gradients:
            torch.mm(logits_CV, weight_VD, out=dx_PD[rows])
            _add_product(dweight_VD, logits_CV.t(), x_CD)
    return loss_P.sum(), dx_PD, dweight_VD


@linear_cross_entropy_op.register_fake
def _(x_PD, weight_VD, labels_P, ignore_index, softcap, z_loss, chunk, gradients):
    return _outputs(x_PD, weight_VD, gradients)


def _outputs(x_PD: Tensor, weight_VD: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors that the operation returns, without their values; sums are at least float32."""
    loss = x_PD.new_zeros((), dtype=torch.promote_types(x_PD.dtype, torch.float32))
    if not gradients:
        return loss, x_PD.new_empty(0), loss.new_empty(0)
    return loss, x_PD.new_empty(x_PD.shape), loss.new_zeros(weight_VD.shape)


def _add_product(sum_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """sum += left right, added up in the dtype of sum also where the factors have fewer bits."""
    if sum_VD.dtype == left_VC.dtype:
        sum_VD.addmm_(left_VC, right_CD)
    elif sum_VD.is_cuda:
        torch.addmm(sum_VD, left_VC, right_CD, out_dtype=sum_VD.dtype, out=sum_VD)
    else:  # out_dtype exists on CUDA alone: each chunk's product is rounded, as in the plain way, their sum is not
        sum_VD.add_(torch.mm(left_VC, right_CD))


def _setup(ctx, inputs, output) -> None:
    _, dx_PD, dweight_VD = output
    ctx.gradients = inputs[-1]
    ctx.mark_non_differentiable(dx_PD, dweight_VD)
    ctx.save_for_backward(dx_PD, dweight_VD)


@torch.autograd.function.once_differentiable
def _backward(ctx, grad_loss: Tensor, *_) -> tuple[Optional[Tensor], ...]:
    if not ctx.gradients:
        raise RuntimeError("cram::linear_cross_entropy was called with gradients=False: there is nothing to go back to")
    dx_PD, dweight_VD = ctx.saved_tensors
    return (dx_PD * grad_loss if ctx.needs_input_grad[0] else None,
            dweight_VD * grad_loss if ctx.needs_input_grad[1] else None, *[None] * 6)


linear_cross_entropy_op.register_autograd(_backward, setup_context=_setup)


def _loss_rows_for(x_PD: Tensor):
    """The middle step for this device. The Triton kernel computes in float32, so float64 keeps to PyTorch."""
    if not x_PD.is_cuda or x_PD.dtype is torch.float64:
        return loss_rows_
    from . import loss_triton
    return loss_triton.loss_rows_


def loss_rows_(logits_CV: Tensor, labels_C: Tensor, loss_C: Tensor, *, ignore_index: int, softcap: Optional[float],
               z_loss: float, gradients: bool) -> None:
    """Each row's loss into loss_C and, when gradients are wanted, d loss / d logits over logits_CV.

    Computes in the dtype of loss_C. Without gradients logits_CV is left with values of no meaning.
    """
    p_RV = torch.empty_like(logits_CV[:CACHED_ROWS], dtype=loss_C.dtype)
    z_RV = None if logits_CV.dtype == loss_C.dtype else torch.empty_like(p_RV)
    for start in range(0, len(logits_CV), CACHED_ROWS):
        rows = slice(start, start + CACHED_ROWS)
        logits_RV, count = logits_CV[rows], len(logits_CV[rows])
        wide_RV = logits_RV if z_RV is None else z_RV[:count].copy_(logits_RV)
        _loss_of_a_few_(logits_RV, labels_C[rows].long()[:, None], loss_C[rows], wide_RV, p_RV[:count], ignore_index, softcap,
                        z_loss, gradients)


def _loss_of_a_few_(logits_RV: Tensor, label_R1: Tensor, loss_R: Tensor, z_RV: Tensor, p_RV: Tensor, ignore_index: int,
                    softcap: Optional[float], z_loss: float, gradients: bool) -> None:
    """``loss_rows_`` of so few rows that what passes over them stays in the cache. z_RV: the logits in the dtype of loss_R, and
    p_RV: a buffer; both are overwritten.

    The sum of exp(z - top) is 1 / the largest probability, since exp(top - top) is 1: so the softmax holds it already.
    """
    slope_RV = None
    if softcap is not None:
        z_RV.div_(softcap).tanh_()
        slope_RV = z_RV.square().neg_().add_(1) if gradients else None
        z_RV.mul_(softcap)

    kept_R1 = label_R1 != ignore_index
    label_R1 = torch.where(kept_R1, label_R1, 0)
    top_R1 = z_RV.amax(1, keepdim=True)
    below_top_R1 = top_R1 - z_RV.gather(1, label_R1)
    torch.softmax(z_RV, 1, out=p_RV)
    log_sum_R1 = -p_RV.amax(1, keepdim=True).log()
    log_z_R1 = log_sum_R1 + top_R1
    loss_R.copy_(torch.where(kept_R1, log_sum_R1 + below_top_R1 + z_loss * log_z_R1.square(), 0)[:, 0])

    if gradients:
        if z_loss or not kept_R1.all():
            p_RV.mul_(torch.where(kept_R1, 1 + 2 * z_loss * log_z_R1, 0))
        p_RV.scatter_add_(1, label_R1, -kept_R1.to(p_RV.dtype))
        logits_RV.copy_(p_RV if slope_RV is None else p_RV.mul_(slope_RV))
