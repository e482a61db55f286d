"""One Transformer (Vaswani et al. 2017) for masked and causal language modelling.

Tokens flow as one packed stream; what may look at what is told by ``Documents``. The
defaults are the modern ones: pre-normalisation with RMSNorm, rotary positions that
restart at each document, normalised queries and keys, no biases, a gated or squared
activation. The crammed BERT of Geiping & Goldstein (2023) is the same class with other
settings (``configs/cramming2022.yaml``).

What the training loop may set between steps are plain attributes: ``depth`` (blocks that run), ``window`` (tokens seen to
each side, None: all), ``rope_base`` and ``recompute``. torch.compile takes each for a constant, one graph a combination.

Axes: N tokens, D model width, V vocabulary, P predicted positions.
"""

from __future__ import annotations

import warnings
from typing import Optional

import torch
from torch import Tensor, nn

from cram import recompute
from cram.errors import CramError
from cram.layers import BigramEmbedding, Block, ResidualScalars, ScaledSinusoidal, ValueEmbedding, View, make_norm, mlp_width
from cram.ops import Documents, why_not

__all__ = ["Transformer", "attention_backend", "build", "mlp_width", "refuse_attention"]


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


class Transformer(nn.Module):
    """Embedding, blocks, final norm; ``logits`` is the head, applied to chosen positions only.

    model: ``cram.schema.Model``. Initialisation: normal with ``init_std``; residual output
    projections zero when ``zero_init``. Use ``torch.manual_seed`` before building. What the switches
    ``value_embeddings``, ``residual_scalars`` and ``bigram_rows`` add is drawn last: all else starts as without them.
    """

    def __init__(self, model, vocab_size: int, causal: bool):
        super().__init__()
        self.config, self.vocab_size, self.causal = model, vocab_size, causal
        self.embedding = nn.Embedding(vocab_size, model.width)
        self.position = ScaledSinusoidal(model.width) if model.position == "scaled_sinusoidal" else None
        self.embedding_norm = make_norm(model, model.width) if model.embedding_norm else nn.Identity()
        self.bigrams = self.bigrams_after = None
        self.blocks = nn.ModuleList(Block(model, first=layer == 0) for layer in range(model.layers))
        self.final_norm = make_norm(model, model.width)
        self.head = nn.Linear(model.width, vocab_size, bias=False)
        self._initialise()
        if model.tied:
            self.head.weight = self.embedding.weight
        if model.value_embeddings:  # every other layer, the last one among them
            for block in self.blocks[(model.layers - 1) % 2::2]:
                block.attention.value_embedding = ValueEmbedding(model, vocab_size)
        self.residual_scalars = ResidualScalars(model.layers) if model.residual_scalars else None
        if model.bigram_rows is not None:
            self.bigrams = BigramEmbedding(model.bigram_rows, model.width)
            self.bigrams_after = None if causal else BigramEmbedding(model.bigram_rows, model.width)
        self.backend = attention_backend(model, self.embedding.weight.device)
        self.depth, self.window, self.recompute = model.layers, model.window, "none"
        self.rope_base = model.rope_base if model.rope_base_end is None else model.rope_base_end

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
        """Token ids int64 [N] to hidden states [N, D], normalised, ready for ``logits``. causal: None for the model's own."""
        view = View(self.config, ids_N, documents, causal=self.causal if causal is None else causal, window=self.window,
                    rope_base=self.rope_base, backend=self.backend)
        return self.hidden(view)

    def hidden(self, view: View) -> Tensor:
        """The hidden states [N, D] of the tokens of a view; ``view.attend`` says what attention is."""
        x0_ND = x_ND = self.embedded(view)
        for layer in range(self.depth):
            x_ND = recompute.run(self.recompute, self.layer, layer, x_ND, x0_ND, view)
        return self.final_norm(x_ND)

    def embedded(self, view: View) -> Tensor:
        """What the first block reads, [N, D]."""
        x_ND = self.embedding(view.ids_N)
        if self.position is not None:
            x_ND = x_ND + self.position(view.positions_N)
        x_ND = self.embedding_norm(x_ND)
        if self.bigrams is not None:
            x_ND = x_ND + self.bigrams(view.previous(), view.ids_N)
        if self.bigrams_after is not None:
            x_ND = x_ND + self.bigrams_after(view.following(), view.ids_N)
        return x_ND

    def layer(self, layer: int, x_ND: Tensor, x0_ND: Tensor, view: View) -> Tensor:
        """The stream [N, D] after a block, from that before it and the embedded tokens x0."""
        if self.residual_scalars is not None:
            x_ND = self.residual_scalars(layer, x_ND, x0_ND)
        return self.blocks[layer](x_ND, view)

    def logits(self, x_PD: Tensor) -> Tensor:
        """Hidden states [P, D] to logits over the vocabulary, float32 [P, V]."""
        logits_PV = self.head(x_PD).float()
        cap = self.config.logit_softcap
        return logits_PV if cap is None else cap * torch.tanh(logits_PV / cap)

    def parameter_count(self) -> int:
        """Trainable numbers; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, row: int, predicted_fraction: float = 1.0, causal: Optional[bool] = None) -> float:
        """Forward and backward FLOPs per token (Kaplan et al. 2020, section 2.1): 6 per weight in a matrix
        product, plus 12 L D T for attention scores over rows of T tokens (half when causal), plus the head
        at the predicted positions only. Embedding look-ups are free. Follows ``depth`` and ``window``; what
        ``recompute`` computes twice counts once, being no part of the model."""
        linear = (module for block in self.blocks[:self.depth] for module in block.modules() if isinstance(module, nn.Linear))
        matrices = sum(module.weight.numel() for module in linear)
        seen = min(row, 2 * self.window + 1) if self.window else row
        half = 0.5 if (self.causal if causal is None else causal) else 1.0
        scores = 12 * self.depth * self.config.width * seen * half
        return 6.0 * matrices + scores + 6.0 * self.config.width * self.vocab_size * predicted_fraction

    @torch.no_grad()
    def stack(self, depth: int) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Grow to ``depth`` blocks by stacking the model on top of itself (Gong et al. 2019): with d blocks now, block i
        becomes a copy of block i % d. Returns (from, to) for every parameter copied whole, for the optimizer's state.

        Which layers have a value embedding is settled by the full model. A block that has one and copies a block that
        has none starts it at zero, so that it computes what its original does; one that has none copies all but that.
        Neither happens when d is even. Residual scalars are copied too, but are entries of two vectors, so no pairs.
        Raises CramError for a depth that is not more than now, or more than model.layers.
        """
        old = self.depth
        if not old < depth <= len(self.blocks):
            raise CramError(f"train.layer_schedule: cannot stack {old} blocks to {depth}; give more than {old} and at most "
                            f"model.layers={len(self.blocks)}")
        pairs = []
        for layer in range(old, depth):
            originals = dict(self.blocks[layer % old].named_parameters())
            for name, copy in self.blocks[layer].named_parameters():
                if name in originals:
                    pairs.append((originals[name], copy.copy_(originals[name])))
                else:
                    copy.zero_()
            if self.residual_scalars is not None:
                for vector_L in self.residual_scalars.parameters():
                    vector_L[layer] = vector_L[layer % old]
        self.depth = depth
        return pairs


def build(model, vocab_size: int, causal: bool, seed: Optional[int] = None) -> Transformer:
    """A freshly initialised model; with a seed the same one every time, without touching the global generator."""
    if seed is None:
        return Transformer(model, vocab_size, causal)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(model, vocab_size, causal)
