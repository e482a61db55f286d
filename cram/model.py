"""One Transformer (Vaswani et al. 2017) for masked and causal language modelling.

Tokens flow as one packed stream; what may look at what is told by ``Documents``. The
defaults are the modern ones: pre-normalisation with RMSNorm, rotary positions that
restart at each document, normalised queries and keys, no biases, a gated or squared
activation. The crammed BERT of Geiping & Goldstein (2023) is the same class with other
settings (``configs/cramming2022.yaml``).

Axes: N tokens, D model width, H query heads, G key/value heads, K head dimension,
F feed-forward width, V vocabulary, P predicted positions.
"""

from __future__ import annotations

import math
import warnings
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cram.errors import CramError
from cram.ops import Documents, QKNorm, Rope, attention, sight, why_not


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


def attention_backend(model, device: torch.device | str) -> str:
    """The attention back end of this model on this device: as configured (auto: triton) where that runs, else sdpa.

    So a model trained on a card can be looked at anywhere; training itself refuses a back end that cannot run here
    (``refuse_attention``).
    """
    wanted = "triton" if model.attention == "auto" else model.attention
    reason = why_not(wanted, device, model.width // model.heads)
    if reason and (model.attention != "auto" or torch.device(device).type == "cuda"):
        warnings.warn(f"attention by sdpa, which may be slower: {wanted} {reason}", stacklevel=2)
    return "sdpa" if reason else wanted


def refuse_attention(model, device: torch.device | str) -> None:
    """Raise CramError when the configured back end cannot train on this device."""
    if model.attention != "auto" and (reason := why_not(model.attention, device, model.width // model.heads)):
        raise CramError(f"model.attention={model.attention} {reason}; use model.attention=auto or sdpa")


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads, optional QK-norm and rotary positions."""

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

    def forward(self, x_ND: Tensor, view: "View") -> Tensor:
        q_NHK, k_NGK, v_NGK = (project(x_ND).unflatten(-1, (-1, self.head_dim)) for project in (self.q, self.k, self.v))
        qk_norm = QKNorm(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps) if self.q_norm is not None else None
        o_NHK = attention(q_NHK, k_NGK, v_NGK, qk_norm=qk_norm, **view.attention)
        return self.out(o_NHK.flatten(-2))


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
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, model):
        super().__init__()
        self.attention_norm = make_norm(model, model.width)
        self.attention = Attention(model)
        self.mlp_norm = make_norm(model, model.width)
        self.mlp = MLP(model)

    def forward(self, x_ND: Tensor, view: "View") -> Tensor:
        x_ND = x_ND + self.attention(self.attention_norm(x_ND), view)
        return x_ND + self.mlp(self.mlp_norm(x_ND))


class View:
    """What every layer of one forward pass shares: who sees whom, and the rotary angles."""

    def __init__(self, model, documents: Documents, n: int, causal: bool, device: torch.device, backend: str):
        if not model.document_mask:
            documents = Documents(None, None, documents.row)
        rope = None
        if model.position == "rope":
            rope = Rope.table(documents.row, model.width // model.heads, model.rope_base, device)
        self.positions_N = documents.positions(n, device)
        self.attention = {"documents": documents, "causal": causal, "window": model.window, "rope": rope, "backend": backend,
                          "seen": sight(documents, n, causal=causal, window=model.window, rope=rope, backend=backend,
                                        device=device)}


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


class Transformer(nn.Module):
    """Embedding, blocks, final norm; ``logits`` is the head, applied to chosen positions only.

    model: ``cram.schema.Model``. Initialisation: normal with ``init_std``; residual output
    projections zero when ``zero_init``. Use ``torch.manual_seed`` before building.
    """

    def __init__(self, model, vocab_size: int, causal: bool):
        super().__init__()
        self.config, self.vocab_size, self.causal = model, vocab_size, causal
        self.embedding = nn.Embedding(vocab_size, model.width)
        self.position = ScaledSinusoidal(model.width) if model.position == "scaled_sinusoidal" else None
        self.embedding_norm = make_norm(model, model.width) if model.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(model) for _ in range(model.layers))
        self.final_norm = make_norm(model, model.width)
        self.head = nn.Linear(model.width, vocab_size, bias=False)
        self._initialise()
        if model.tied:
            self.head.weight = self.embedding.weight
        self.backend = attention_backend(model, self.embedding.weight.device)

    def _apply(self, *arguments, **options) -> "Transformer":
        """Move or convert the parameters (``to``, ``cuda``, ``half``); the attention back end follows the device."""
        super()._apply(*arguments, **options)
        self.backend = attention_backend(self.config, self.embedding.weight.device)
        return self

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
        if self.config.zero_init:
            for block in self.blocks:
                nn.init.zeros_(block.attention.out.weight)
                nn.init.zeros_(block.mlp.down.weight)

    def forward(self, ids_N: Tensor, documents: Documents, causal: Optional[bool] = None) -> Tensor:
        """Token ids int64 [N] to hidden states [N, D], normalised, ready for ``logits``. causal: None: as built."""
        x_ND = self.embedding(ids_N)
        causal = self.causal if causal is None else causal
        view = View(self.config, documents, len(ids_N), causal, ids_N.device, self.backend)
        if self.position is not None:
            x_ND = x_ND + self.position(view.positions_N)
        x_ND = self.embedding_norm(x_ND)
        for block in self.blocks:
            x_ND = block(x_ND, view)
        return self.final_norm(x_ND)

    def logits(self, x_PD: Tensor) -> Tensor:
        """Hidden states [P, D] to logits over the vocabulary, float32 [P, V]."""
        logits_PV = self.head(x_PD).float()
        cap = self.config.logit_softcap
        return logits_PV if cap is None else cap * torch.tanh(logits_PV / cap)

    def parameter_count(self) -> int:
        """Trainable numbers; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, row: int, predicted_fraction: float = 1.0) -> float:
        """Forward and backward FLOPs per token (Kaplan et al. 2020, section 2.1): 6 per weight in a matrix
        product, plus 12 L D T for attention scores over rows of T tokens (half when causal), plus the head
        at the predicted positions only. Embedding look-ups are free."""
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        seen = min(row, 2 * self.config.window + 1) if self.config.window else row
        scores = 12 * self.config.layers * self.config.width * seen * (0.5 if self.causal else 1.0)
        return 6.0 * matrices + scores + 6.0 * self.config.width * self.vocab_size * predicted_fraction


def build(model, vocab_size: int, causal: bool, seed: Optional[int] = None) -> Transformer:
    """A freshly initialised model; with a seed the same one every time, without touching the global generator."""
    if seed is None:
        return Transformer(model, vocab_size, causal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(model, vocab_size, causal)
