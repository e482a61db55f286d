"""The layers of the Transformer: norms, attention, feed-forward, blocks, and what a switch may add to them.

Axes: N tokens, D model width, H query heads, G key/value heads, K head dimension, F feed-forward width, V vocabulary,
L layers.
"""

from __future__ import annotations

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cram.ops import Documents, QKNorm, Rope, attention, sight

GATE_CHANNELS = 32  # of its input, that the gate of a value embedding reads
NO_TOKEN = -1       # before the first of a document, after the last


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * gain (Zhang & Sennrich 2019, equation 4), in the dtype of x also under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.type_as(x), self.eps)


def make_norm(model, width: int) -> nn.Module:
    return (RMSNorm if model.norm == "rmsnorm" else nn.LayerNorm)(width, eps=model.norm_eps)


def mlp_width(model) -> int:
    """The feed-forward width F: as configured, or 4 D, or 8/3 D rounded up to 64 when gated (Shazeer 2020)."""
    if model.mlp_width is not None:
        return model.mlp_width
    return 64 * math.ceil(8 * model.width / 3 / 64) if model.mlp in ("geglu", "swiglu") else 4 * model.width


class ValueEmbedding(nn.Module):
    """What a token adds to its values, whatever its context: 2 sigmoid(gate x) * table[token], the gate a number a head.

    After value residual learning (Zhou et al. 2024), in which the first layer's values reach all others; modded-nanogpt
    made tables of their own of them, nanochat added the gate, which reads the first 32 channels of the layer's input. The
    gate's weight starts at 0, so its factor at 1. The table starts like the value projection beside it, with ``init_std``:
    a sum over D normalised channels makes that projection's output sqrt(D) times as large, so the table begins as a
    whisper, at 4% of the values for D = 768, and yet not at zero, where the gate would have no gradient. Look-ups are free
    of FLOPs, not of memory: V x G K numbers a layer.
    """

    def __init__(self, model, vocab_size: int):
        super().__init__()
        groups = model.kv_heads or model.heads
        self.table = nn.Embedding(vocab_size, groups * (model.width // model.heads))
        self.gate = nn.Linear(min(GATE_CHANNELS, model.width), groups, bias=False)
        nn.init.normal_(self.table.weight, std=model.init_std)
        nn.init.zeros_(self.gate.weight)

    def forward(self, ids_N: Tensor, x_ND: Tensor) -> Tensor:
        """Token ids int64 [N] and the layer's normalised input [N, D] to values [N, G, K]."""
        gate_NG = 2 * torch.sigmoid(self.gate(x_ND[:, :self.gate.in_features]))
        return gate_NG[..., None] * self.table(ids_N).unflatten(-1, (gate_NG.shape[-1], -1))


class BigramEmbedding(nn.Module):
    """What a token with its neighbour adds to the stream, whatever their context: scale * table[hash(neighbour, token)].

    After modded-nanogpt, which has such a learned scale, too (without it a small model gained a third less:
    reports/recipe_log.md, causal-7-parts). There are V^2 pairs and far fewer rows, so pairs share rows, as they fall
    (Weinberger et al. 2009, "Feature Hashing"): frequent ones decide what a row holds. Look-ups are free of FLOPs, not of
    memory: rows x D numbers. A small model learns from it at once what it else needs attention for. Starts at zero, which
    changes nothing. A causal model has a table of pairs with the token before; a masked one has another for those with the
    token after, so that [MASK] knows both of its neighbours before the first block.
    """

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.table = nn.Embedding(rows, width)
        self.scale = nn.Parameter(torch.tensor([0.1]))
        nn.init.zeros_(self.table.weight)

    def forward(self, neighbour_N: Tensor, ids_N: Tensor) -> Tensor:
        """Ids int64 [N] of the neighbours (NO_TOKEN beyond a document) and of the tokens themselves to [N, D]."""
        return self.scale * self.table(((neighbour_N + 1) * 27191 ^ ids_N * 36313) % self.table.num_embeddings)


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads, optional QK-norm, rotary positions and value embeddings."""

    def __init__(self, model):
        super().__init__()
        self.head_dim = model.width // model.heads
        kv_width = (model.kv_heads or model.heads) * self.head_dim
        self.q = nn.Linear(model.width, model.width, bias=model.bias)
        self.k = nn.Linear(model.width, kv_width, bias=model.bias)
        self.v = nn.Linear(model.width, kv_width, bias=model.bias)
        self.out = nn.Linear(model.width, model.width, bias=model.bias)
        self.q_norm = RMSNorm(self.head_dim, eps=model.norm_eps) if model.qk_norm else None  # applied inside attention
        self.k_norm = RMSNorm(self.head_dim, eps=model.norm_eps) if model.qk_norm else None
        self.value_embedding = None  # the Transformer gives one to every other layer, when asked

    def forward(self, x_ND: Tensor, view: "View") -> Tensor:
        q_NHK, k_NGK, v_NGK = (project(x_ND).unflatten(-1, (-1, self.head_dim)) for project in (self.q, self.k, self.v))
        if self.value_embedding is not None:
            v_NGK = v_NGK + self.value_embedding(view.ids_N, x_ND).type_as(v_NGK)
        qk_norm = QKNorm(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps) if self.q_norm is not None else None
        return self.out(view.attend(self, q_NHK, k_NGK, v_NGK, qk_norm).flatten(-2))


class MLP(nn.Module):
    """Feed-forward layer: gated (GEGLU, SwiGLU) or plain (GELU, squared ReLU)."""

    def __init__(self, model):
        super().__init__()
        inner, self.kind = mlp_width(model), model.mlp
        self.gate = nn.Linear(model.width, inner, bias=model.bias) if self.kind in ("geglu", "swiglu") else None
        self.up = nn.Linear(model.width, inner, bias=model.bias)
        self.down = nn.Linear(inner, model.width, bias=model.bias)

    def forward(self, x_ND: Tensor) -> Tensor:
        up_NF = self.up(x_ND)
        if self.kind == "gelu":
            inner_NF = F.gelu(up_NF)
        elif self.kind == "relu2":
            inner_NF = F.relu(up_NF).square()
        else:
            inner_NF = (F.gelu if self.kind == "geglu" else F.silu)(self.gate(x_ND)) * up_NF
        return self.down(inner_NF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). first: the one after the embedding norm, which may serve its attention
    too (``first_attention_norm=false``)."""

    def __init__(self, model, first: bool = False):
        super().__init__()
        self.attention_norm = nn.Identity() if first and not model.first_attention_norm else make_norm(model, model.width)
        self.attention = Attention(model)
        self.mlp_norm = make_norm(model, model.width)
        self.mlp = MLP(model)

    def forward(self, x_ND: Tensor, view: "View") -> Tensor:
        x_ND = x_ND + self.attention(self.attention_norm(x_ND), view)
        return x_ND + self.mlp(self.mlp_norm(x_ND))


class ResidualScalars(nn.Module):
    """a_l x + b_l x0 before block l: how much of the stream goes on, and of the embedded tokens x0 comes back.

    From modded-nanogpt. a starts at 1 and b at 0, which changes nothing.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.a_L, self.b_L = nn.Parameter(torch.ones(layers)), nn.Parameter(torch.zeros(layers))

    def forward(self, layer: int, x_ND: Tensor, x0_ND: Tensor) -> Tensor:
        return self.a_L[layer] * x_ND + self.b_L[layer] * x0_ND


class View:
    """What every layer of one forward pass shares: the tokens, who sees whom, and the rotary angles."""

    def __init__(self, model, ids_N: Tensor, documents: Documents, *, causal: bool, window: Optional[int], rope_base: float,
                 backend: str):
        n, device = len(ids_N), ids_N.device
        if not model.document_mask:
            documents = Documents(None, None, documents.row)
        rope = None
        if model.position == "rope":
            rope = Rope.table(documents.row, model.width // model.heads, rope_base, device)
        self.ids_N, self.positions_N = ids_N, documents.positions(n, device)
        self.attention = {"documents": documents, "causal": causal, "window": window, "rope": rope, "backend": backend,
                          "seen": sight(documents, n, causal=causal, window=window, rope=rope, backend=backend,
                                        device=device)}

    def previous(self) -> Tensor:
        """The token before each in its document, int64 [N]; NO_TOKEN where there is none."""
        return torch.where(self.positions_N > 0, self.ids_N.roll(1), NO_TOKEN)

    def following(self) -> Tensor:
        """The token after each in its document, int64 [N]; NO_TOKEN where there is none."""
        last_N = torch.cat((self.positions_N[1:] == 0, self.positions_N.new_ones(1, dtype=torch.bool)))
        return torch.where(last_N, NO_TOKEN, self.ids_N.roll(-1))

    def attend(self, layer: Attention, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, qk_norm: Optional[QKNorm]) -> Tensor:
        """What the queries of a layer find, [N, H, K]. Other views keep keys and values here: ``cram.after.cache``."""
        return attention(q_NHK, k_NGK, v_NGK, qk_norm=qk_norm, **self.attention)


class ScaledSinusoidal(nn.Module):
    """Sinusoidal positions (Vaswani et al. 2017, section 3.5) times one learned scale (Hua et al. 2022)."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([width ** -0.5]))
        self.width = width

    def forward(self, positions_N: Tensor) -> Tensor:
        even = torch.arange(0, self.width, 2, device=positions_N.device, dtype=torch.float32)
        angle_NE = positions_N[:, None] * torch.exp(even * (-math.log(10000.0) / self.width))
        return self.scale * torch.stack((angle_NE.sin(), angle_NE.cos()), dim=-1).flatten(-2)
