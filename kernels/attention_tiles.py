"""Tiles of q, k, v in and out of a Triton kernel: loads, norm and rotation on the way, and the way back.

A tile is BLOCK rows; rows in memory are (pointer, stride). q and k come as two halves [BLOCK, HALF], because
the rotation pairs dimension e with e + K/2; E is half the head dimension, HALF the same padded to a power of two,
K = 2 HALF. See ``attention_triton.py`` for the derivation and the kernels.
"""

import triton
import triton.language as tl


@triton.jit
def row_at(rows, start):
    """Pointer to row ``start`` of rows = (pointer, stride): 64 bits, since N * H * K may pass 2^31."""
    return rows[0] + tl.cast(start, tl.int64) * rows[1]


@triton.jit
def load_halves(rows, start, inside_B, E: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Rows start .. start + BLOCK as two halves [BLOCK, HALF] each; zero where not inside and beyond E."""
    row_B, dim_E = tl.arange(0, BLOCK), tl.arange(0, HALF)
    at = row_at(rows, start) + row_B[:, None] * rows[1] + dim_E[None, :]
    if MASKED or E != HALF:
        there = inside_B[:, None] & (dim_E < E)[None, :]
        return tl.load(at, mask=there, other=0.0), tl.load(at + E, mask=there, other=0.0)
    return tl.load(at), tl.load(at + E)


@triton.jit
def store_halves(rows, start, inside_B, low, high, E: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """The reverse of ``load_halves``, rounding to the dtype of the rows."""
    row_B, dim_E = tl.arange(0, BLOCK), tl.arange(0, HALF)
    at = row_at(rows, start) + row_B[:, None] * rows[1] + dim_E[None, :]
    there = inside_B[:, None] & (dim_E < E)[None, :]
    tl.store(at, low.to(rows[0].dtype.element_ty), mask=there)
    tl.store(at + E, high.to(rows[0].dtype.element_ty), mask=there)


@triton.jit
def load_whole(rows, start, inside_B, E: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    """Rows start .. start + BLOCK whole, [BLOCK, K]; zero where not inside and beyond 2 E."""
    row_B, dim_K = tl.arange(0, BLOCK), tl.arange(0, 2 * HALF)
    at = row_at(rows, start) + row_B[:, None] * rows[1] + dim_K[None, :]
    if MASKED or E != HALF:
        return tl.load(at, mask=inside_B[:, None] & (dim_K < 2 * E)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def store_whole(rows, start, inside_B, x_BK, E: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """The reverse of ``load_whole``, rounding to the dtype of the rows."""
    row_B, dim_K = tl.arange(0, BLOCK), tl.arange(0, 2 * HALF)
    at = row_at(rows, start) + row_B[:, None] * rows[1] + dim_K[None, :]
    tl.store(at, x_BK.to(rows[0].dtype.element_ty), mask=inside_B[:, None] & (dim_K < 2 * E)[None, :])


@triton.jit
def load_angles(angles, start, inside_B, E: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Cosines and sines at the rows' positions, float32 [BLOCK, HALF]."""
    dim_E = tl.arange(0, HALF)
    position, cos, sin = angles
    position_B = tl.load(position + start + tl.arange(0, BLOCK), mask=inside_B, other=0)
    at = position_B[:, None] * E + dim_E[None, :]
    there = (dim_E < E)[None, :]
    return tl.load(cos + at, mask=there, other=0.0).to(tl.float32), tl.load(sin + at, mask=there, other=0.0).to(tl.float32)


@triton.jit
def inverse_rms(low, high, eps, E: tl.constexpr):
    """1 / rms over the whole head dimension, [BLOCK]."""
    return tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / (2 * E) + eps)


@triton.jit
def load_gain(gain, E: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr):
    """Both halves of a gain, float32 [HALF]; ones where there is none."""
    low_E = tl.full([HALF], 1.0, tl.float32)
    high_E = low_E
    if NORM:
        dim_E = tl.arange(0, HALF)
        low_E = tl.load(gain + dim_E, mask=dim_E < E, other=0.0).to(tl.float32)
        high_E = tl.load(gain + E + dim_E, mask=dim_E < E, other=0.0).to(tl.float32)
    return low_E, high_E


@triton.jit
def load_query_or_key(rows, start, inside_B, gain, angles, eps, E: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
                      MASKED: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, DOT: tl.constexpr):
    """Rows of q or k, normalised and rotated: two halves [BLOCK, HALF] in the dtype of the matrix products.

    rows: (pointer, stride); gain: its halves; angles: (position, cos, sin).
    """
    low, high = load_halves(rows, start, inside_B, E, HALF, BLOCK, MASKED)
    if NORM or ROPE:
        low, high = low.to(tl.float32), high.to(tl.float32)
    if NORM:
        r = inverse_rms(low, high, eps, E)[:, None]
        low, high = low * r * gain[0][None, :], high * r * gain[1][None, :]
    if ROPE:
        c, s = load_angles(angles, start, inside_B, E, HALF, BLOCK)
        low, high = low * c - high * s, high * c + low * s
    return low.to(DOT), high.to(DOT)


@triton.jit
def store_gradient(dlow, dhigh, dx, rows, start, inside_B, gain, dgain, part, angles, eps, E: tl.constexpr, HALF: tl.constexpr,
                   BLOCK: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr):
    """Take the gradient [BLOCK, HALF] of normalised, rotated rows back to the rows themselves; store it in dx, and the
    tile's share of the gain's gradient in dgain[part]."""
    dim_E = tl.arange(0, HALF)
    if ROPE:  # the inverse of a rotation is its transpose
        c, s = load_angles(angles, start, inside_B, E, HALF, BLOCK)
        dlow, dhigh = dlow * c + dhigh * s, dhigh * c - dlow * s
    if NORM:  # y = gain * u with u = x r, r = 1 / rms(x):  dx = r (e - u mean(e u)) where e = gain * dy
        low, high = load_halves(rows, start, inside_B, E, HALF, BLOCK, True)
        low, high = low.to(tl.float32), high.to(tl.float32)
        r = inverse_rms(low, high, eps, E)[:, None]
        low, high = low * r, high * r
        dgain += part * 2 * E
        tl.store(dgain + dim_E, tl.sum(dlow * low, 0), mask=dim_E < E)
        tl.store(dgain + E + dim_E, tl.sum(dhigh * high, 0), mask=dim_E < E)
        dlow, dhigh = dlow * gain[0][None, :], dhigh * gain[1][None, :]
        mean = ((tl.sum(dlow * low, 1) + tl.sum(dhigh * high, 1)) / (2 * E))[:, None]
        dlow, dhigh = r * (dlow - low * mean), r * (dhigh - high * mean)
    store_halves(dx, start, inside_B, dlow, dhigh, E, HALF, BLOCK)


@triton.jit
def load_interval(interval, start, n, BLOCK: tl.constexpr):
    """First and one past the last of rows start .. start + BLOCK, int32 [BLOCK]; rows beyond n: empty."""
    row_B = start + tl.arange(0, BLOCK)
    first_B = tl.load(interval + row_B, mask=row_B < n, other=n)
    return first_B, tl.load(interval + n + row_B, mask=row_B < n, other=0)


@triton.jit
def walk(first_B, last_B, BLOCK: tl.constexpr):
    """Where a tile walks, in blocks from ``low``: ``whole_low`` to ``whole_high`` are seen by all its rows.

    Returns (low, whole_low, whole_high, high, edges): edges is the number of blocks outside the whole ones.
    """
    low, high = tl.min(first_B, 0), tl.max(last_B, 0)
    whole_low = low + tl.cdiv(tl.max(first_B, 0) - low, BLOCK) * BLOCK
    whole_high = low + tl.maximum(tl.min(last_B, 0) - low, 0) // BLOCK * BLOCK
    if whole_high <= whole_low:
        whole_low, whole_high = low, low
    edges = (whole_low - low) // BLOCK + tl.cdiv(tl.maximum(high - whole_high, 0), BLOCK)
    return low, whole_low, whole_high, high, edges


@triton.jit
def edge(i, low, whole_low, whole_high, BLOCK: tl.constexpr):
    """Start of the i-th block that needs a mask: those before the whole blocks, then those after."""
    at = low + i * BLOCK
    return tl.where(at < whole_low, at, at + (whole_high - whole_low))


@triton.jit
def products(a_low, a_high, b_low, b_high, inner, SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):
    """a b^T [A, B] in float32; with a softcap tanh(inner a b^T), so that ``unit`` times it is the score in base 2 (tanh
    errs by about 1e-7)."""
    s_AB = tl.dot(a_low, tl.trans(b_low), input_precision=PRECISION)
    s_AB = tl.dot(a_high, tl.trans(b_high), s_AB, input_precision=PRECISION)
    if SOFTCAP:  # tanh, by the exponential of a number that is never positive
        x_AB = tl.exp2(-2.8853900817779268 * inner * tl.abs(s_AB))  # exp(-2 |inner s|)
        t_AB = (1.0 - x_AB) / (1.0 + x_AB)
        s_AB = tl.where(s_AB < 0, -t_AB, t_AB)
    return s_AB
