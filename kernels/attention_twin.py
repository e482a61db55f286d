"""The plain PyTorch twin of the Triton kernels: the same arithmetic, without tiles.

It holds the whole N x N score matrix of every head, so it is a reference for tests and for
reading, not a path for training. Half precision is computed in float32, float64 in float64.
The backward pass is written out by hand, formula by formula as in ``attention_triton.py``,
so that each line of a kernel has a line here.

Axes: N tokens (M as queries), H query heads, G key/value heads, K head dimension, E = K / 2.
"""

from __future__ import annotations

import math
from typing import Optional

import torch
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def normalise_and_rotate(x_NHK: Tensor, gain_K: Optional[Tensor], eps: float, position_N: Optional[Tensor],
                         cos_TE: Optional[Tensor], sin_TE: Optional[Tensor]) -> Tensor:
    """R(position) (gain * x / rms(x)), float32 or float64; each step only where its tensors are given."""
    x_NHK = _wide(x_NHK)
    if gain_K is not None:
        x_NHK = x_NHK * torch.rsqrt(x_NHK.square().mean(-1, keepdim=True) + eps) * _wide(gain_K)
    if position_N is not None:
        x_NHK = rotate(x_NHK, cos_TE[position_N][:, None], sin_TE[position_N][:, None])
    return x_NHK


def rotate(x_NHK: Tensor, cos_N1E: Tensor, sin_N1E: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, equation 34), pairing dimension e with e + K/2."""
    low, high = x_NHK.chunk(2, dim=-1)
    cos, sin = cos_N1E.type_as(x_NHK), sin_N1E.type_as(x_NHK)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def _undo(dy_NHK: Tensor, x_NHK: Tensor, gain_K: Optional[Tensor], eps: float, position_N: Optional[Tensor],
          cos_TE: Optional[Tensor], sin_TE: Optional[Tensor]) -> tuple[Tensor, Optional[Tensor]]:
    """Gradient with respect to x and to the gain, from the gradient of ``normalise_and_rotate``."""
    if position_N is not None:
        dy_NHK = rotate(dy_NHK, cos_TE[position_N][:, None], -sin_TE[position_N][:, None])
    if gain_K is None:
        return dy_NHK, None
    r = torch.rsqrt(_wide(x_NHK).square().mean(-1, keepdim=True) + eps)
    u_NHK, e_NHK = _wide(x_NHK) * r, dy_NHK * _wide(gain_K)
    return r * (e_NHK - u_NHK * (e_NHK * u_NHK).mean(-1, keepdim=True)), (dy_NHK * u_NHK).sum((0, 1))


def _scores(q_NHK: Tensor, k_NHK: Tensor, sees: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    """Scores [H, M, N] with -inf where a query does not see the key, and tanh of the capped ones (or zeros)."""
    s_HMN = torch.einsum("mhk,nhk->hmn", q_NHK, k_NHK) * scale
    t_HMN = torch.tanh(s_HMN / softcap) if softcap else torch.zeros_like(s_HMN)
    key_N = torch.arange(sees.shape[1], device=sees.device)
    seen_MN = (key_N >= sees[0, :, None]) & (key_N < sees[1, :, None])
    return (softcap * t_HMN if softcap else s_HMN).masked_fill(~seen_MN, float("-inf")), t_HMN


def forward(q: Tensor, k: Tensor, v: Tensor, sees: Tensor, position: Optional[Tensor], cos: Optional[Tensor],
            sin: Optional[Tensor], q_gain: Optional[Tensor], k_gain: Optional[Tensor], *, scale: float, softcap: float,
            eps: float) -> tuple[Tensor, Tensor]:
    """o [N, H, K] in the dtype of q and the log-sum-exp in base 2, [H, N]."""
    group = q.shape[1] // k.shape[1]
    q_NHK = normalise_and_rotate(q, q_gain, eps, position, cos, sin)
    k_NHK = normalise_and_rotate(k, k_gain, eps, position, cos, sin).repeat_interleave(group, 1)
    s_HMN, _ = _scores(q_NHK, k_NHK, sees, scale, softcap)
    lse_HM = torch.logsumexp(s_HMN, -1)
    lse_HM = lse_HM.masked_fill(lse_HM == float("-inf"), 0.0)  # a query that sees nothing
    p_HMN = torch.exp(s_HMN - lse_HM[..., None])
    o_NHK = torch.einsum("hmn,nhk->mhk", p_HMN, _wide(v).repeat_interleave(group, 1))
    return o_NHK.to(q.dtype), lse_HM / math.log(2)


def backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, sees: Tensor, position: Optional[Tensor],
             cos: Optional[Tensor], sin: Optional[Tensor], q_gain: Optional[Tensor], k_gain: Optional[Tensor], *,
             scale: float, softcap: float, eps: float) -> tuple[Tensor, Tensor, Tensor, Optional[Tensor], Optional[Tensor]]:
    """Gradients of q, k, v (in their dtypes) and of the two gains (or None)."""
    group = q.shape[1] // k.shape[1]
    q_NHK = normalise_and_rotate(q, q_gain, eps, position, cos, sin)
    k_NHK = normalise_and_rotate(k, k_gain, eps, position, cos, sin).repeat_interleave(group, 1)
    v_NHK, do_NHK = _wide(v).repeat_interleave(group, 1), _wide(do)
    s_HMN, t_HMN = _scores(q_NHK, k_NHK, sees, scale, softcap)
    p_HMN = torch.exp(s_HMN - lse[..., None].to(s_HMN.dtype) * math.log(2))
    delta_HM = (do_NHK * _wide(o)).sum(-1).T

    dv_NHK = torch.einsum("hmn,mhk->nhk", p_HMN, do_NHK)
    dp_HMN = torch.einsum("mhk,nhk->hmn", do_NHK, v_NHK)
    ds_HMN = p_HMN * (dp_HMN - delta_HM[..., None]) * (1 - t_HMN.square())
    dq_NHK = torch.einsum("hmn,nhk->mhk", ds_HMN, k_NHK) * scale
    dk_NHK = torch.einsum("hmn,mhk->nhk", ds_HMN, q_NHK) * scale

    dq, dq_gain = _undo(dq_NHK, q, q_gain, eps, position, cos, sin)
    dk, dk_gain = _undo(dk_NHK.unflatten(1, (-1, group)).sum(2), k, k_gain, eps, position, cos, sin)
    dv = dv_NHK.unflatten(1, (-1, group)).sum(2)
    gains = (None if gain is None else d.to(gain.dtype) for d, gain in ((dq_gain, q_gain), (dk_gain, k_gain)))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *gains
