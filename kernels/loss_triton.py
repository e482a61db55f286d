"""Loss and gradient of rows of logits, in place: the middle step of ``kernels/loss.py`` as one Triton kernel.

For one row of raw logits a_V with label y, softcap c and z-loss weight w:

    z_v  = c tanh(a_v / c)                             (z = a without a cap)
    Z    = sum_v exp(z_v),   p_v = exp(z_v) / Z
    loss = log Z - z_y + w (log Z)^2

d log Z / dz_v = p_v, so with [v = y] one at the label and zero elsewhere

    d loss / dz_v = p_v - [v = y] + 2 w log Z p_v
    d loss / da_v = (p_v (1 + 2 w log Z) - [v = y]) (1 - tanh^2(a_v / c))

Two passes over the row. The first finds log Z online (Milakov & Gimelshein 2018, algorithm 3): the largest
logit so far and the sum of exponentials relative to it, rescaled whenever a larger one turns up. The second
computes the gradient and writes it over the logits it has just read. One program owns a row, so nothing is
shared, nothing is atomic and the same input gives the same bits.
"""

from __future__ import annotations

from typing import Optional

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits a program holds at once: 16 a thread
WARPS = 8


@triton.jit
def _tanh(y):
    """tanh without libdevice: exp may be 0 or infinite, which gives -1 or 1, never nan. Absolute error about 1e-7."""
    return 1 - 2 / (1 + tl.exp(2 * y))


@triton.jit
def _loss_row(logits, labels, loss, row_stride, ignore_index, softcap, z_loss,
              V: tl.constexpr, BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, GRADIENT: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * row_stride  # in 64 bits: rows times V may exceed 32
    label = tl.load(labels + row).to(tl.int64)
    kept = label != ignore_index
    # Read before the second pass writes. A label outside the row would be read from a neighbour: nan instead.
    z_label = tl.load(logits + label, mask=(label >= 0) & (label < V), other=float("nan")).to(tl.float32)
    if SOFTCAP:
        z_label = softcap * _tanh(z_label / softcap)

    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(logits + column, mask=column < V, other=float("-inf")).to(tl.float32)
        if SOFTCAP:  # which would lift the -inf beyond the row's end to -softcap
            z = tl.where(column < V, softcap * _tanh(z / softcap), float("-inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(z - higher), 0)
        top = higher
    log_z = top + tl.log(total)
    tl.store(loss + row, tl.where(kept, tl.log(total) + (top - z_label) + z_loss * log_z * log_z, 0.0))

    if GRADIENT:
        for start in range(0, V, BLOCK):
            column = start + tl.arange(0, BLOCK)
            z = tl.load(logits + column, mask=column < V, other=0.0).to(tl.float32)
            if SOFTCAP:
                tanh = _tanh(z / softcap)
                z = softcap * tanh
            gradient = tl.exp(z - log_z) * (1 + 2 * z_loss * log_z) - tl.where(column == label, 1.0, 0.0)
            if SOFTCAP:
                gradient *= 1 - tanh * tanh
            gradient = tl.where(kept, gradient, 0.0)
            tl.store(logits + column, gradient.to(logits.dtype.element_ty), mask=column < V)


def loss_rows_(logits_CV: Tensor, labels_C: Tensor, loss_C: Tensor, *, ignore_index: int, softcap: Optional[float],
               z_loss: float, gradients: bool) -> None:
    """Each row's loss into loss_C, float32 [C], and, when gradients are wanted, d loss / d logits over logits_CV.

    logits_CV: float32, float16 or bfloat16, finite, rows contiguous; computed on in float32. labels_C: contiguous integers.
    """
    rows, v = logits_CV.shape
    _loss_row[(rows,)](logits_CV, labels_C, loss_C, logits_CV.stride(0), ignore_index, softcap or 1.0, z_loss,
                       V=v, BLOCK=min(BLOCK, triton.next_power_of_2(v)), SOFTCAP=softcap is not None, GRADIENT=gradients,
                       num_warps=WARPS)
