"""Linear layers in 8-bit floats (Micikevicius et al. 2022): twice the arithmetic of bfloat16, on cards that have it.

**Two formats.** Eight bits are one sign, some exponent, some mantissa. ``e4m3`` has 3 bits of mantissa, so rounding moves
a number by at most 1/16 of itself, and reaches 448; weights and activations take it. ``e5m2`` has 2 bits, so 1/8, and
reaches 57,344; gradients take it: they spread over more orders of magnitude, and noise in them averages out over steps.

**Scaling.** Such formats cover few powers of two (e4m3: 2^-9 to 2^8), so every tensor is first multiplied by one number
that lifts its largest magnitude, amax, to the top of the format, and the product is divided by the two numbers
afterwards. amax is that of this very tensor (dynamic scaling): one more pass over it, which torch.compile fuses with
whatever made it, but no history to keep, to checkpoint and to be wrong about. The scale stays on the device; nothing
waits for it. A tensor with inf or nan comes out as nan, so a broken step is seen as one.

**Three products.** A linear layer multiplies once forward and twice backward. All three sum in float32:

    y_NF  =  x_ND   w_FD^T        over D        e4m3 x e4m3
    dx_ND = dy_NF   w_FD          over F        e5m2 x e4m3
    dw_FD = dy_NF^T x_ND          over N        e5m2 x e4m3

**Layouts.** The tensor cores of Hopper and Ada multiply 8-bit floats in one layout only: both operands contiguous along
the summed axis, that is row-major times column-major. Forward has that for free. Backward lays w, dy and x out anew
(8-bit copies, cheap beside the product). The summed axis must be a multiple of 16, so tokens are filled up with zeros.

What is kept for the backward pass is the 8-bit x and w: half of bfloat16's activations. The weights themselves, their
gradients and the optimizer stay in float32; embeddings, norms, attention and the head are untouched.

Axes: N tokens, D inputs, F outputs; M, K, J any.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16              # the matrix units take the axes of a product in sixteens
SMALLEST_AMAX = 1e-12      # a tensor of zeros has no scale of its own


class Quantised(NamedTuple):
    """A tensor in 8 bits and what undoes its scale: x is about data.float() * unit; unit float32 []."""

    data: Tensor
    unit: Tensor


def quantise(x: Tensor, dtype: torch.dtype) -> Quantised:
    """Scale by amax and round to ``dtype`` (float8_e4m3fn or float8_e5m2), row-major, whatever x is."""
    top = torch.finfo(dtype).max
    amax = x.abs().amax().float().clamp(min=SMALLEST_AMAX)
    return Quantised((x.float() * (top / amax)).to(dtype, memory_format=torch.contiguous_format), amax / top)


def product(a_MK: Quantised, b_KJ: Quantised, dtype: torch.dtype, *, fast: bool = False) -> Tensor:
    """a b in ``dtype`` [M, J]; a row-major, b column-major, K and J multiples of 16.

    fast: let the card add up with fewer bits than float32 has; good enough forward, not for gradients.
    """
    return torch._scaled_mm(a_MK.data, b_KJ.data, scale_a=a_MK.unit, scale_b=b_KJ.unit, out_dtype=dtype, use_fast_accum=fast)


def along_rows(x: Quantised) -> Quantised:
    """The same matrix, laid out column-major."""
    return Quantised(x.data.t().contiguous().t(), x.unit)


def fill(x_NJ: Quantised) -> Quantised:
    """Rows of zeros at the end, up to a multiple of 16; as bytes, since zero is zero in every format."""
    missing = -len(x_NJ.data) % MULTIPLE
    if not missing:
        return x_NJ
    return Quantised(F.pad(x_NJ.data.view(torch.uint8), (0, 0, 0, missing)).view(x_NJ.data.dtype), x_NJ.unit)


class Product(torch.autograd.Function):
    """x_ND w_FD^T as [N, F] in ``dtype``, all three products in 8 bits. Gradients have the dtypes of x and w."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, w_FD: Tensor, dtype: torch.dtype) -> Tensor:
        x, w = quantise(x_ND, FORWARD), quantise(w_FD, FORWARD)
        ctx.save_for_backward(*x, *w)
        ctx.dtypes = x_ND.dtype, w_FD.dtype
        return product(x, Quantised(w.data.t(), w.unit), dtype, fast=True)

    @staticmethod
    def backward(ctx, dy_NF: Tensor):
        x_8, x_unit, w_8, w_unit = ctx.saved_tensors
        dy = quantise(dy_NF, BACKWARD)
        dx_ND = product(dy, along_rows(Quantised(w_8, w_unit)), ctx.dtypes[0])
        dy, x = fill(dy), fill(Quantised(x_8, x_unit))
        dw_FD = product(Quantised(dy.data.t().contiguous(), dy.unit), along_rows(x), ctx.dtypes[1])
        return dx_ND, dw_FD, None


class Float8Linear(nn.Linear):
    """nn.Linear in 8-bit floats: x [N, D] to [N, F], in the dtype of autocast where that is on, else of x."""

    def forward(self, x_ND: Tensor) -> Tensor:
        kind = x_ND.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_ND.dtype
        with torch.autocast(kind, enabled=False):  # on the CPU _scaled_mm is made of products that autocast would lower
            y_NF = Product.apply(x_ND, self.weight, dtype)
        return y_NF if self.bias is None else y_NF + self.bias.to(dtype)


def convert(model: nn.Module) -> list[str]:
    """Make every linear layer of the model's blocks a Float8Linear, in place; returns the names of those that stay.

    Only the class of the layer changes: parameters and names are the same objects, so checkpoints, optimizers and counts
    do not notice, and a model trained so can be loaded anywhere. Layers with a side that is no multiple of 16 stay as they
    are, which is said once. Convert before torch.compile.
    """
    left = []
    for name, module in model.blocks.named_modules(prefix="blocks"):
        if type(module) is nn.Linear:
            if module.in_features % MULTIPLE or module.out_features % MULTIPLE:
                left.append(name)
            else:
                module.__class__ = Float8Linear
    if left:
        warnings.warn(f"train.fp8: {len(left)} linear layers stay as they are, a side being no multiple of {MULTIPLE}: "
                      f"{', '.join(left)}", stacklevel=2)
    return left


def why_not(device: torch.device | str) -> Optional[str]:
    """Why 8-bit products cannot train on this device; None when they can."""
    device = torch.device(device)
    if device.type != "cuda":
        return "needs a CUDA card of compute capability 8.9 (Ada, Hopper) or newer"
    has = torch.cuda.get_device_capability(device)
    return None if has >= (8, 9) else f"needs compute capability 8.9 (Ada, Hopper) or newer; this card has {has[0]}.{has[1]}"
