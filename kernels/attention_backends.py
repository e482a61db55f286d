"""PyTorch's own ways to attend over packed documents: the CPU's path and what ours is compared with.

All take q [N, H, K], k and v [N, G, K], already normalised and rotated, and return [N, H, K].
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from typing import Optional

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .documents import Documents


def attention_mask(documents: Documents, n: int, *, causal: bool, window: Optional[int],
                   device: torch.device | str) -> Optional[Tensor]:
    """Which keys each query sees: bool [R, 1, T, T], or None when that is the whole row."""
    if documents.start_N is None and not causal and window is None:
        return None
    first_RT1, last_RT1 = documents.sees(n, causal=causal, window=window, device=device).view(2, -1, documents.row, 1)
    key_R1T = torch.arange(n, device=device, dtype=torch.int32).view(-1, 1, documents.row)
    return ((key_R1T >= first_RT1) & (key_R1T < last_RT1))[:, None]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], row: int, scale: float) -> Tensor:
    """scaled_dot_product_attention with an explicit mask: every row attends to itself, in full.

    On the CPU in float32 at least: what torch has there for bfloat16 takes up to three times as long on the short rows of
    small models (reports/speed_log.md).
    """
    q_RHTK, k_RGTK, v_RGTK = (rearrange(x, "(r t) h k -> r h t k", t=row) for x in (q, k, v))
    lowered = contextlib.nullcontext()
    if q.device.type == "cpu":
        wide = torch.promote_types(q.dtype, torch.float32)
        q_RHTK, k_RGTK, v_RGTK = q_RHTK.to(wide), k_RGTK.to(wide), v_RGTK.to(wide)
        lowered = torch.autocast("cpu", enabled=False)
    with lowered:
        o_RHTK = F.scaled_dot_product_attention(q_RHTK, k_RGTK, v_RGTK, attn_mask=mask, scale=scale,
                                                enable_gqa=q.shape[1] != k.shape[1])
    return rearrange(o_RHTK, "r h t k -> (r t) h k").type_as(q)  # autocast may have lowered it


def why_not(backend: str, head_dim: int) -> Optional[str]:
    """Why flex, varlen or triton cannot run on the card that is here; None when it can."""
    if backend == "varlen":
        try:
            from torch.nn.attention import varlen  # noqa: F401
        except ImportError:
            return "needs torch.nn.attention.varlen (torch 2.11 or newer)"
        if torch.cuda.get_device_capability() < (8, 0):
            return "needs an Ampere card or newer"
        return None if head_dim % 8 == 0 else f"needs a head dimension that is a multiple of 8, not {head_dim}"
    if importlib.util.find_spec("triton") is None:
        return "needs the triton package"
    if torch.cuda.get_device_capability() < (8, 0):
        return "needs an Ampere card (2020) or newer: triton has no tensor-core code for older ones"
    return None


@functools.cache
def _compiled(name: str):
    """A function of FlexAttention, compiled: uncompiled they hold N x N numbers."""
    from torch.nn.attention import flex_attention
    return torch.compile(getattr(flex_attention, name), dynamic=False)


def block_mask(sees_2N: Tensor):
    """FlexAttention's block mask from the interval of keys each query sees; made anew for every batch."""
    def seen(b, h, query, key):
        return (key >= sees_2N[0, query]) & (key < sees_2N[1, query])

    n = sees_2N.shape[1]
    return _compiled("create_block_mask")(seen, None, None, n, n, device=sees_2N.device)


def flex(q: Tensor, k: Tensor, v: Tensor, block_mask, scale: float, softcap: float) -> Tensor:
    """FlexAttention (Dong et al. 2024) over all tokens as one row."""
    def cap(score, b, h, query, key):
        return softcap * torch.tanh(score / softcap)

    q_1HNK, k_1GNK, v_1GNK = (x.transpose(0, 1)[None] for x in (q, k, v))
    o_1HNK = _compiled("flex_attention")(q_1HNK, k_1GNK, v_1GNK, score_mod=cap if softcap else None, block_mask=block_mask,
                                         scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return o_1HNK[0].transpose(0, 1)


def cumulative_lengths(documents: Documents, n: int, device: torch.device | str) -> tuple[Tensor, int]:
    """Where documents start, int32, ending in n, and the longest possible document. Padded with empty documents to a
    power of two, so that few shapes occur; waits for the device, since the number of documents is a value there: under
    torch.compile the caller leaves the graph for it."""
    if documents.start_N is None:
        return torch.arange(0, n + 1, documents.row, device=device, dtype=torch.int32), documents.row
    if (documents.end_N <= documents.start_N).any():
        raise ValueError("varlen: every token must belong to a document, but some have end <= start; use triton or sdpa")
    first_B = (documents.start_N == torch.arange(n, device=device, dtype=torch.int32)).nonzero()[:, 0].int()
    padded = 1 << len(first_B).bit_length()
    return F.pad(first_B, (0, padded + 1 - len(first_B)), value=n), documents.row


def varlen(q: Tensor, k: Tensor, v: Tensor, lengths_B: Tensor, longest: int, *, causal: bool, window: Optional[int],
           scale: float) -> Tensor:
    """FlashAttention-2 behind cumulative lengths, torch.nn.attention.varlen."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if window is None else window
    k, v = (x if x.shape[1] == q.shape[1] else x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    return varlen_attn(q, k, v, lengths_B, lengths_B, longest, longest, scale=scale,
                       window_size=(reach, 0 if causal else reach))
