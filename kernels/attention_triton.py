"""Fused attention for packed text: three Triton kernels, forward, dQ, dK and dV.

**Online softmax.** Attention is o_i = sum_j softmax_j(s_ij) v_j with s_ij = scale q_i . k_j.
The scores of a query need not be held at once (Milakov & Gimelshein 2018; Rabe & Staats
2021; Dao et al. 2022). Read the keys block by block and keep for each query the greatest
score so far m, the sum l of exp(s - m), and the unnormalised output acc. When a block
raises the maximum from m to m', everything so far was counted too high by exp(m' - m):

    alpha = exp(m - m');  l = alpha l + sum_j exp(s_j - m');  acc = alpha acc + sum_j exp(s_j - m') v_j

and in the end o = acc / l. Only one number a query is saved for the way back, the
log-sum-exp L = m + log l, because it gives every probability again: p_ij = exp(s_ij - L_i).

**Backward.** With dp_ij = do_i . v_j, and the softmax's Jacobian,

    ds_ij = p_ij (dp_ij - delta_i),   delta_i = sum_j p_ij dp_ij = do_i . o_i
    dv_j = sum_i p_ij do_i,   dk_j = scale sum_i ds_ij q_i,   dq_i = scale sum_j ds_ij k_j

dv and dk are sums over queries, dq over keys. One pass could make all three only by adding
into memory from many programs at once (atomics), in an order that differs from run to run.
Two passes compute the scores twice, seven matrix products for five, and every sum has one
owner and one order: the same bits each time. (With a softcap c, s = c tanh(u / c), and ds
is also multiplied by 1 - tanh^2.)

**Who sees whom** is an interval of keys for each query, and of queries for each key
(``documents.py``). A tile of queries walks from the least first key to the greatest last
one. Blocks that every query of the tile sees whole, in the middle, need no mask.

**QK-norm and rotary positions** are applied to q and k as they are loaded, in float32:
x -> R(position) (gain * x / rms(x)). The rotation turns the pairs (x_e, x_{e+K/2}), so a
tile is loaded as two halves and q . k is the sum of two products. On the way back the
gradient is rotated by -position and goes through the norm (``store_gradient``). The pass
for dQ runs first and has every query normalised and rotated; it writes them to q_hat, so
that the pass for dK and dV, which reads each query many times, need not repeat it. Keys
are normalised and rotated anew for every tile of queries.

**Powers of two.** exp2 is what the hardware has. ``unit`` turns a raw product into a score
in base 2 (scale * log2 e); with a softcap c it is c log2 e, applied to tanh(product * scale / c).
The log-sum-exp is kept in base 2, too.

Axes. In memory: N tokens, H query heads, G key/value heads, K = 2 E numbers a head. In a tile:
M queries, N keys, HALF >= E (E padded to a power of two), K = 2 HALF. Rows are (pointer,
stride), addressed from 64-bit bases.
"""

import triton
import triton.language as tl

from .attention_tiles import (edge, load_gain, load_halves, load_interval, load_query_or_key, load_whole, products, row_at,
                              store_gradient, store_halves, store_whole, walk)

UNSEEN = tl.constexpr(-1.0e30)  # a greatest score before any key was seen; finite: (-inf) - (-inf) would be nan


@triton.jit
def _attend(acc_MK, l_M, m_M, q_low, q_high, first_M, last_M, start, high, keys, values, gain, angles, eps, unit, inner,
            E: tl.constexpr, HALF: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, NORM: tl.constexpr,
            ROPE: tl.constexpr, SOFTCAP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """One block of keys for a tile of queries: the online softmax step."""
    key_N = start + tl.arange(0, BLOCK_N)
    inside_N = key_N < high
    k_low, k_high = load_query_or_key(keys, start, inside_N, gain, angles, eps, E, HALF, BLOCK_N, MASKED, NORM, ROPE,
                                      DOT)                                                 # [N, HALF]
    v_NK = load_whole(values, start, inside_N, E, HALF, BLOCK_N, MASKED).to(DOT)           # [N, K]
    s_MN = products(q_low, q_high, k_low, k_high, inner, SOFTCAP, PRECISION)
    if MASKED:
        seen_MN = (key_N[None, :] >= first_M[:, None]) & (key_N[None, :] < last_M[:, None])
        s_MN = tl.where(seen_MN, s_MN, float("-inf"))
    new_m_M = tl.maximum(m_M, tl.max(s_MN, 1) * unit)
    p_MN = tl.exp2(s_MN * unit - new_m_M[:, None])
    alpha_M = tl.exp2(m_M - new_m_M)
    l_M = l_M * alpha_M + tl.sum(p_MN, 1)
    acc_MK = tl.dot(p_MN.to(DOT), v_NK, acc_MK * alpha_M[:, None], input_precision=PRECISION)
    return acc_MK, l_M, new_m_M


@triton.jit
def forward_kernel(q, k, v, o, lse, sees, position, cos, sin, q_gain, k_gain,
                   q_row, q_head, k_row, k_head, v_row, v_head, n, unit, inner, eps,
                   GROUP: tl.constexpr, E: tl.constexpr, HALF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                   NORM: tl.constexpr, ROPE: tl.constexpr, SOFTCAP: tl.constexpr, DOT: tl.constexpr,
                   PRECISION: tl.constexpr):
    """o [N, H, K] and lse float32 [H, N] (base 2) from q [N, H, K], k and v [N, G, K]. Grid: (tiles of queries, H)."""
    tile, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    top = tile * BLOCK_M
    row_M = top + tl.arange(0, BLOCK_M)
    inside_M = row_M < n
    first_M, last_M = load_interval(sees, top, n, BLOCK_M)
    queries = (row_at((q, q_head), head), q_row)
    keys = (row_at((k, k_head), head // GROUP), k_row)
    values = (row_at((v, v_head), head // GROUP), v_row)
    angles = (position, cos, sin)

    q_low, q_high = load_query_or_key(queries, top, inside_M, load_gain(q_gain, E, HALF, NORM), angles, eps, E, HALF, BLOCK_M,
                                      True, NORM, ROPE, DOT)                               # [M, HALF]
    gain = load_gain(k_gain, E, HALF, NORM)
    acc_MK = tl.zeros([BLOCK_M, 2 * HALF], tl.float32)
    l_M = tl.zeros([BLOCK_M], tl.float32)
    m_M = tl.full([BLOCK_M], UNSEEN, tl.float32)
    low, whole_low, whole_high, high, edges = walk(first_M, last_M, BLOCK_N)
    for start in range(whole_low, whole_high, BLOCK_N):
        acc_MK, l_M, m_M = _attend(acc_MK, l_M, m_M, q_low, q_high, first_M, last_M, start, high, keys, values, gain, angles,
                                   eps, unit, inner, E, HALF, BLOCK_N, False, NORM, ROPE, SOFTCAP, DOT, PRECISION)
    for i in range(0, edges):
        start = edge(i, low, whole_low, whole_high, BLOCK_N)
        acc_MK, l_M, m_M = _attend(acc_MK, l_M, m_M, q_low, q_high, first_M, last_M, start, high, keys, values, gain, angles,
                                   eps, unit, inner, E, HALF, BLOCK_N, True, NORM, ROPE, SOFTCAP, DOT, PRECISION)

    m_M, l_M = tl.where(l_M == 0.0, 0.0, m_M), tl.where(l_M == 0.0, 1.0, l_M)  # a query that sees nothing gets zeros
    store_whole((o + head * 2 * E, heads * 2 * E), top, inside_M, acc_MK / l_M[:, None], E, HALF, BLOCK_M)
    tl.store(row_at((lse, n), head) + row_M, m_M + tl.log2(l_M), mask=inside_M)


@triton.jit
def _dq_block(dq_low, dq_high, q_low, q_high, do_MK, lse_M, delta_M, first_M, last_M, start, high, keys, values, gain, angles,
              eps, unit, inner, E: tl.constexpr, HALF: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
              NORM: tl.constexpr, ROPE: tl.constexpr, SOFTCAP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """One block of keys for a tile of queries: dq += ds k."""
    key_N = start + tl.arange(0, BLOCK_N)
    inside_N = key_N < high
    k_low, k_high = load_query_or_key(keys, start, inside_N, gain, angles, eps, E, HALF, BLOCK_N, MASKED, NORM, ROPE,
                                      DOT)                                                 # [N, HALF]
    v_NK = load_whole(values, start, inside_N, E, HALF, BLOCK_N, MASKED).to(DOT)           # [N, K]
    s_MN = products(q_low, q_high, k_low, k_high, inner, SOFTCAP, PRECISION)
    p_MN = tl.exp2(s_MN * unit - lse_M[:, None])
    if MASKED:
        p_MN = tl.where((key_N[None, :] >= first_M[:, None]) & (key_N[None, :] < last_M[:, None]), p_MN, 0.0)
    dp_MN = tl.dot(do_MK, tl.trans(v_NK), input_precision=PRECISION)
    ds_MN = p_MN * (dp_MN - delta_M[:, None])
    if SOFTCAP:
        ds_MN *= 1.0 - s_MN * s_MN
    ds_MN = ds_MN.to(DOT)
    dq_low = tl.dot(ds_MN, k_low, dq_low, input_precision=PRECISION)
    dq_high = tl.dot(ds_MN, k_high, dq_high, input_precision=PRECISION)
    return dq_low, dq_high


@triton.jit
def dq_kernel(q, k, v, o, do, lse, delta, q_hat, dq, dq_gain, sees, position, cos, sin, q_gain, k_gain,
              q_row, q_head, k_row, k_head, v_row, v_head, n, scale, unit, inner, eps,
              GROUP: tl.constexpr, E: tl.constexpr, HALF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
              NORM: tl.constexpr, ROPE: tl.constexpr, SOFTCAP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """dq [N, H, K], delta float32 [H, N], dq_gain float32 [tiles, H, K] by tile; leaves q normalised and rotated in q_hat
    [N, H, K] for the other pass (untouched where there is neither). o, do, q_hat and dq are contiguous.
    Grid: (tiles of queries, H)."""
    tile, head = tl.program_id(0), tl.program_id(1)
    heads = tl.num_programs(1)
    top = tile * BLOCK_M
    row_M = top + tl.arange(0, BLOCK_M)
    inside_M = row_M < n
    first_M, last_M = load_interval(sees, top, n, BLOCK_M)
    queries = (row_at((q, q_head), head), q_row)
    keys = (row_at((k, k_head), head // GROUP), k_row)
    values = (row_at((v, v_head), head // GROUP), v_row)
    angles = (position, cos, sin)
    column, row = head * 2 * E, heads * 2 * E  # of the contiguous tensors

    q_low, q_high = load_query_or_key(queries, top, inside_M, load_gain(q_gain, E, HALF, NORM), angles, eps, E, HALF, BLOCK_M,
                                      True, NORM, ROPE, DOT)                               # [M, HALF]
    if NORM or ROPE:
        store_halves((q_hat + column, row), top, inside_M, q_low, q_high, E, HALF, BLOCK_M)
    do_MK = load_whole((do + column, row), top, inside_M, E, HALF, BLOCK_M, True)          # [M, K]
    o_MK = load_whole((o + column, row), top, inside_M, E, HALF, BLOCK_M, True)            # [M, K]
    delta_M = tl.sum(do_MK.to(tl.float32) * o_MK.to(tl.float32), 1)
    tl.store(row_at((delta, n), head) + row_M, delta_M, mask=inside_M)
    lse_M = tl.load(row_at((lse, n), head) + row_M, mask=inside_M, other=0.0)
    do_MK = do_MK.to(DOT)

    gain = load_gain(k_gain, E, HALF, NORM)
    dq_low = tl.zeros([BLOCK_M, HALF], tl.float32)
    dq_high = tl.zeros([BLOCK_M, HALF], tl.float32)
    low, whole_low, whole_high, high, edges = walk(first_M, last_M, BLOCK_N)
    for start in range(whole_low, whole_high, BLOCK_N):
        dq_low, dq_high = _dq_block(dq_low, dq_high, q_low, q_high, do_MK, lse_M, delta_M, first_M, last_M, start, high, keys,
                                    values, gain, angles, eps, unit, inner, E, HALF, BLOCK_N, False, NORM, ROPE, SOFTCAP, DOT,
                                    PRECISION)
    for i in range(0, edges):
        start = edge(i, low, whole_low, whole_high, BLOCK_N)
        dq_low, dq_high = _dq_block(dq_low, dq_high, q_low, q_high, do_MK, lse_M, delta_M, first_M, last_M, start, high, keys,
                                    values, gain, angles, eps, unit, inner, E, HALF, BLOCK_N, True, NORM, ROPE, SOFTCAP, DOT,
                                    PRECISION)
    store_gradient(dq_low * scale, dq_high * scale, (dq + column, row), queries, top, inside_M,
                   load_gain(q_gain, E, HALF, NORM), dq_gain, tile * heads + head, angles, eps, E, HALF, BLOCK_M, NORM, ROPE)


@triton.jit
def _dkv_block(dk_low, dk_high, dv_NK, k_low, k_high, v_NK, first_N, last_N, start, high, queries, outputs, lse, delta,
               unit, inner, E: tl.constexpr, HALF: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
               SOFTCAP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """One block of queries for a tile of keys, all transposed: dv += p^T do, dk += ds^T q."""
    row_M = start + tl.arange(0, BLOCK_M)
    inside_M = row_M < high
    q_low, q_high = load_halves(queries, start, inside_M, E, HALF, BLOCK_M, MASKED)        # [M, HALF]
    q_low, q_high = q_low.to(DOT), q_high.to(DOT)
    do_MK = load_whole(outputs, start, inside_M, E, HALF, BLOCK_M, MASKED).to(DOT)         # [M, K]
    lse_M = tl.load(lse + row_M, mask=inside_M, other=0.0)
    delta_M = tl.load(delta + row_M, mask=inside_M, other=0.0)
    s_NM = products(k_low, k_high, q_low, q_high, inner, SOFTCAP, PRECISION)
    p_NM = tl.exp2(s_NM * unit - lse_M[None, :])
    if MASKED:
        p_NM = tl.where((row_M[None, :] >= first_N[:, None]) & (row_M[None, :] < last_N[:, None]), p_NM, 0.0)
    dv_NK = tl.dot(p_NM.to(DOT), do_MK, dv_NK, input_precision=PRECISION)
    dp_NM = tl.dot(v_NK, tl.trans(do_MK), input_precision=PRECISION)
    ds_NM = p_NM * (dp_NM - delta_M[None, :])
    if SOFTCAP:
        ds_NM *= 1.0 - s_NM * s_NM
    ds_NM = ds_NM.to(DOT)
    dk_low = tl.dot(ds_NM, q_low, dk_low, input_precision=PRECISION)
    dk_high = tl.dot(ds_NM, q_high, dk_high, input_precision=PRECISION)
    return dk_low, dk_high, dv_NK


@triton.jit
def dkv_kernel(q_hat, k, v, do, lse, delta, dk, dv, dk_gain, seen_by, position, cos, sin, k_gain,
               q_row, q_head, k_row, k_head, v_row, v_head, n, scale, unit, inner, eps,
               GROUP: tl.constexpr, E: tl.constexpr, HALF: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
               NORM: tl.constexpr, ROPE: tl.constexpr, SOFTCAP: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """dk and dv [N, G, K], dk_gain float32 [tiles, G, K] by tile; all query heads of a group are summed here, in order.
    q_hat: q as the matrix products see it, from ``dq_kernel``. Grid: (tiles of keys, G)."""
    tile, group = tl.program_id(0), tl.program_id(1)
    groups = tl.num_programs(1)
    top = tile * BLOCK_N
    inside_N = top + tl.arange(0, BLOCK_N) < n
    first_N, last_N = load_interval(seen_by, top, n, BLOCK_N)
    keys = (row_at((k, k_head), group), k_row)
    values = (row_at((v, v_head), group), v_row)
    angles = (position, cos, sin)
    column, row = group * 2 * E, groups * 2 * E  # of dk and dv

    k_low, k_high = load_query_or_key(keys, top, inside_N, load_gain(k_gain, E, HALF, NORM), angles, eps, E, HALF, BLOCK_N,
                                      True, NORM, ROPE, DOT)                               # [N, HALF]
    v_NK = load_whole(values, top, inside_N, E, HALF, BLOCK_N, True).to(DOT)               # [N, K]
    dk_low = tl.zeros([BLOCK_N, HALF], tl.float32)
    dk_high = tl.zeros([BLOCK_N, HALF], tl.float32)
    dv_NK = tl.zeros([BLOCK_N, 2 * HALF], tl.float32)
    low, whole_low, whole_high, high, edges = walk(first_N, last_N, BLOCK_M)
    for head in range(group * GROUP, group * GROUP + GROUP):
        queries = (row_at((q_hat, q_head), head), q_row)
        outputs = (do + head * 2 * E, row * GROUP)
        lse_h, delta_h = row_at((lse, n), head), row_at((delta, n), head)
        for start in range(whole_low, whole_high, BLOCK_M):
            dk_low, dk_high, dv_NK = _dkv_block(
                dk_low, dk_high, dv_NK, k_low, k_high, v_NK, first_N, last_N, start, high, queries, outputs, lse_h, delta_h,
                unit, inner, E, HALF, BLOCK_M, False, SOFTCAP, DOT, PRECISION)
        for i in range(0, edges):
            start = edge(i, low, whole_low, whole_high, BLOCK_M)
            dk_low, dk_high, dv_NK = _dkv_block(
                dk_low, dk_high, dv_NK, k_low, k_high, v_NK, first_N, last_N, start, high, queries, outputs, lse_h, delta_h,
                unit, inner, E, HALF, BLOCK_M, True, SOFTCAP, DOT, PRECISION)

    store_whole((dv + column, row), top, inside_N, dv_NK, E, HALF, BLOCK_N)
    store_gradient(dk_low * scale, dk_high * scale, (dk + column, row), keys, top, inside_N,
                   load_gain(k_gain, E, HALF, NORM), dk_gain, tile * groups + group, angles, eps, E, HALF, BLOCK_N, NORM, ROPE)
