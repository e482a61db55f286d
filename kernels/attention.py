"""Attention over packed documents: one description of the mask, one function.

Many documents of different lengths lie end to end in rows of ``row`` tokens, and no
token may look into another document. The whole mask follows from three facts: where
each token's document starts and ends, whether attention is causal, and how far it may
look (``window``). They live in tensors of fixed shape, so changing documents changes
values, never shapes: nothing recompiles and nothing synchronises.

Axes: N packed tokens = R rows x T tokens, H query heads, G key/value heads (H is a
multiple of G), K head dimension.

The path here is PyTorch's scaled_dot_product_attention with an explicit mask
(Vaswani et al. 2017, equation 1). It runs on every device and is the reference that a
fused kernel has to match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """How documents are packed into N tokens.

    start_N, end_N: int32 [N], index of the first token of each token's document and
        one past its last. Both None: every row is one document.
    row: tokens per row T; N is a multiple of it and no document crosses a row border.
    """

    start_N: Optional[Tensor]
    end_N: Optional[Tensor]
    row: int

    def positions(self, n: int, device: torch.device) -> Tensor:
        """Position of each token in its own document, int64 [N], counting from 0."""
        index_N = torch.arange(n, device=device)
        return index_N % self.row if self.start_N is None else index_N - self.start_N


def attention_mask(documents: Documents, n: int, *, causal: bool, window: Optional[int],
                   device: torch.device) -> Optional[Tensor]:
    """Which keys each query sees: bool [R, 1, T, T], or None when that is the whole row."""
    if documents.start_N is None and not causal and window is None:
        return None
    index_RT = torch.arange(n, device=device).view(-1, documents.row)
    query_RT1, key_R1T = index_RT[:, :, None], index_RT[:, None, :]
    if documents.start_N is None:
        seen_RTT = torch.ones_like(key_R1T, dtype=torch.bool).expand(-1, documents.row, -1)
    else:
        start_RT1 = documents.start_N.view(-1, documents.row, 1)
        end_RT1 = documents.end_N.view(-1, documents.row, 1)
        seen_RTT = (key_R1T >= start_RT1) & (key_R1T < end_RT1)
    if causal:
        seen_RTT = seen_RTT & (key_R1T <= query_RT1)
    if window is not None:
        seen_RTT = seen_RTT & ((query_RT1 - key_R1T).abs() <= window)
    return seen_RTT[:, None]


def attention(q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, *, documents: Documents, causal: bool,
              window: Optional[int] = None, scale: Optional[float] = None,
              mask: Optional[Tensor] = None) -> Tensor:
    """softmax(scale q kT) v inside each document; returns [N, H, K] in the dtype of q.

    scale: 1 / sqrt(K) unless given. window: tokens visible to each side (causal: to the
    left only). mask: what ``attention_mask`` returned for the same arguments, to share it
    between layers; built here when absent.

    Raises ValueError when N is no multiple of the row or H none of G.
    """
    n, heads, _ = q_NHK.shape
    groups = k_NGK.shape[1]
    if n % documents.row or heads % groups:
        raise ValueError(f"{n} tokens in rows of {documents.row}, {heads} heads in {groups} groups: no whole number")
    if mask is None:
        mask = attention_mask(documents, n, causal=causal, window=window, device=q_NHK.device)

    q_RHTK, k_RGTK, v_RGTK = (rearrange(x, "(r t) h k -> r h t k", t=documents.row) for x in (q_NHK, k_NGK, v_NGK))
    o_RHTK = F.scaled_dot_product_attention(q_RHTK, k_RGTK, v_RGTK, attn_mask=mask, scale=scale,
                                            enable_gqa=heads != groups)
    return rearrange(o_RHTK, "r h t k -> (r t) h k")
