"""Which stock class of transformers computes what a cram Transformer computes, and by which weights.

    rmsnorm, rope           causal: Qwen3 (QK-norm), Llama (without), Mistral (and a window), Arcee (plain MLP)
                            masked: EuroBERT (gated, without QK-norm)
    layernorm               causal: GPT-2 (positions added, GELU);   masked: ModernBERT (rope, GEGLU)

What differs in form alone is rewritten, exactly:

* a norm of the embeddings to which no position was added is a function of the token: it is folded into the table. Table and
  head are then no longer one matrix. ModernBERT has that norm itself.
* GPT-2's learned positions are our sinusoids, written out for the positions of one row; where we have no bias, theirs is 0.
* GPT-2 and ModernBERT know no grouped key/value heads: each is repeated for the query heads that share it.
* ModernBERT predicts from norm(activation(dense(final norm))). Dense becomes the identity and the activation none; our final
  norm's gain and bias move into the second norm. Normalising twice changes nothing but by epsilon: where a hidden state has
  the variance v, the second norm divides by sqrt(v / (v + eps) + eps) = sqrt(1 + d) with d = eps (1 - 1 / (v + eps)), which
  changes the result by a share of at most |d| / 2 + d^2: below 1e-5 for v > 0.05 and our eps of 1e-6. ``export`` measures it.

Rotary positions pair dimension e with e + K/2 there as here, so no weight is permuted. A window of W tokens to each side is
called W + 1 by causal classes, which count the token itself, and 2 W by ModernBERT, which counts both sides.

Axes: V vocabulary, D model width, G key/value heads, K head dimension, T tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from cram.errors import CramError
from cram.explain import show
from cram.layers import mlp_width
from cram.model import Transformer

GATED, ACTIVATION = ("geglu", "swiglu"), {"geglu": "gelu", "gelu": "gelu", "swiglu": "silu", "relu2": "relu2"}
NEVER = {"value_embeddings": (False,), "residual_scalars": (False,), "bigram_rows": (None,), "logit_softcap": (None,)}


@dataclass(frozen=True)
class Target:
    """name: a class of transformers, ``...Config`` its configuration. causal: what it is for. has: for each key of the
    model section that matters, the values that the class can express. settings(model, row): arguments of the configuration.
    weights(model, row): its state dict."""

    name: str
    causal: bool
    has: dict[str, tuple]
    settings: Callable[[Transformer, int], dict[str, Any]]
    weights: Callable[[Transformer, int], dict[str, Tensor]]

    def misfits(self, model: Any) -> list[tuple[str, tuple]]:
        """Keys of ``model`` (``cram.schema.Model``) with a value that the class cannot express, and those that it can."""
        return [(key, values) for key, values in (NEVER | self.has).items() if getattr(model, key) not in values]


def target(model: Any, causal: bool) -> Target:
    """The stock class for this model (``cram.schema.Model``).

    Raises CramError when there is none, with everything that stands between the model and the class nearest to it.
    """
    candidates = [each for each in TARGETS if each.causal == causal]
    nearest = min(candidates, key=lambda each: len(each.misfits(model)))
    if misfits := nearest.misfits(model):
        kind = "causal" if causal else "masked"
        found = "; ".join(f"model.{key}={show(getattr(model, key))}, where {nearest.name} has "
                          f"{' or '.join(show(value) for value in values)}" for key, values in misfits)
        remedy = " ".join(f"model.{key}={show(values[0])}" for key, values in misfits)
        raise CramError(f"no stock class of transformers computes what this {kind} model does. In the way: {found}. To export, "
                        f"train with {remedy}")
    return nearest


def as_run(model: Transformer, row: int) -> Any:
    """The model section as the model runs at the end of its schedules: layers, rotary base, and a window, if it is shorter
    than a row."""
    window = None if model.window is None or model.window >= row - 1 else model.window
    return replace(model.config, layers=model.depth, window=window, rope_base=model.rope_base)


def embedding_table(model: Transformer) -> Tensor:
    """What the first block reads for each token [V, D], where no position is added."""
    return model.embedding_norm(model.embedding.weight)


def _like_llama(model: Transformer, row: int) -> dict[str, Any]:
    c = as_run(model, row)
    return {"vocab_size": model.vocab_size, "hidden_size": c.width, "intermediate_size": mlp_width(c),
            "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads or c.heads,
            "head_dim": c.width // c.heads, "hidden_act": ACTIVATION[c.mlp], "rms_norm_eps": c.norm_eps,
            "max_position_embeddings": row, "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_base},
            "tie_word_embeddings": c.tied and not c.embedding_norm, "initializer_range": c.init_std}


def _with_biases(model: Transformer, row: int) -> dict[str, Any]:
    return _like_llama(model, row) | {"attention_bias": model.config.bias, "mlp_bias": model.config.bias}


def _qwen3(model: Transformer, row: int) -> dict[str, Any]:
    window = as_run(model, row).window
    sliding = {"use_sliding_window": True, "sliding_window": window + 1, "max_window_layers": 0} if window else {}
    return _like_llama(model, row) | {"attention_bias": False} | sliding


def _mistral(model: Transformer, row: int) -> dict[str, Any]:
    window = as_run(model, row).window
    return _like_llama(model, row) | {"sliding_window": window and window + 1}


def _llama_weights(model: Transformer, row: int) -> dict[str, Tensor]:
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "attention.q": "self_attn.q_proj",
             "attention.k": "self_attn.k_proj", "attention.v": "self_attn.v_proj", "attention.out": "self_attn.o_proj",
             "attention.q_norm": "self_attn.q_norm", "attention.k_norm": "self_attn.k_norm", "mlp.gate": "mlp.gate_proj",
             "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj"}
    weights = {"model.embed_tokens.weight": embedding_table(model), "model.norm.weight": model.final_norm.weight,
               "lm_head.weight": model.head.weight}
    for layer, block in enumerate(model.blocks[:model.depth]):
        for name, value in block.named_parameters():
            module, _, kind = name.rpartition(".")
            weights[f"model.layers.{layer}.{names[module]}.{kind}"] = value
    return weights


def _eurobert_weights(model: Transformer, row: int) -> dict[str, Tensor]:
    head_bias = {"lm_head.bias": torch.zeros(model.vocab_size)} if model.config.bias else {}  # comes with those of the MLP
    return _llama_weights(model, row) | head_bias


def _gpt2(model: Transformer, row: int) -> dict[str, Any]:
    c = as_run(model, row)
    return {"vocab_size": model.vocab_size, "n_positions": row, "n_embd": c.width, "n_layer": c.layers, "n_head": c.heads,
            "n_inner": mlp_width(c), "activation_function": "gelu", "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
            "layer_norm_epsilon": c.norm_eps, "tie_word_embeddings": c.tied, "initializer_range": c.init_std}


def _gpt2_weights(model: Transformer, row: int) -> dict[str, Tensor]:
    positions_TD = (torch.zeros(row, model.config.width) if model.position is None else
                    model.position(torch.arange(row, device=model.embedding.weight.device)))
    weights = {"transformer.wte.weight": model.embedding.weight, "transformer.wpe.weight": positions_TD,
               "lm_head.weight": model.head.weight}
    weights |= _norm("transformer.ln_f", model.final_norm)
    for layer, block in enumerate(model.blocks[:model.depth]):
        name = f"transformer.h.{layer}"
        weights |= _norm(f"{name}.ln_1", block.attention_norm) | _norm(f"{name}.ln_2", block.mlp_norm)
        for to, module in (("attn.c_proj", block.attention.out), ("mlp.c_fc", block.mlp.up), ("mlp.c_proj", block.mlp.down)):
            weights |= _transposed(f"{name}.{to}", module.weight, module.bias)
        weights |= _transposed(f"{name}.attn.c_attn", *_joint(block.attention))
    return weights


def _modernbert(model: Transformer, row: int) -> dict[str, Any]:
    c = as_run(model, row)
    layer_type = "sliding_attention" if c.window else "full_attention"
    rope = {"rope_type": "default", "rope_theta": c.rope_base}
    return {"vocab_size": model.vocab_size, "hidden_size": c.width, "intermediate_size": mlp_width(c),
            "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "hidden_activation": ACTIVATION[c.mlp],
            "max_position_embeddings": row, "norm_eps": c.norm_eps, "norm_bias": True, "attention_bias": c.bias,
            "mlp_bias": c.bias, "layer_types": [layer_type] * c.layers, "local_attention": 2 * (c.window or row),
            "rope_parameters": {"full_attention": dict(rope), "sliding_attention": dict(rope)},
            "attention_dropout": 0.0, "embedding_dropout": 0.0, "mlp_dropout": 0.0, "decoder_bias": False,
            "classifier_bias": False, "classifier_activation": "linear", "tie_word_embeddings": c.tied,
            "initializer_range": c.init_std}


def _modernbert_weights(model: Transformer, row: int) -> dict[str, Tensor]:
    width = model.config.width
    weights = {"model.embeddings.tok_embeddings.weight": model.embedding.weight, "decoder.weight": model.head.weight,
               "model.final_norm.weight": torch.ones(width), "model.final_norm.bias": torch.zeros(width),
               "head.dense.weight": torch.eye(width)}
    weights |= _norm("model.embeddings.norm", model.embedding_norm) | _norm("head.norm", model.final_norm)
    for layer, block in enumerate(model.blocks[:model.depth]):
        name, mlp = f"model.layers.{layer}", block.mlp
        weights |= _norm(f"{name}.attn_norm", block.attention_norm) if layer else {}
        weights |= _norm(f"{name}.mlp_norm", block.mlp_norm)
        out = block.attention.out
        for to, (weight, bias) in {
                "attn.Wqkv": _joint(block.attention), "attn.Wo": (out.weight, out.bias),
                "mlp.Wi": (torch.cat((mlp.gate.weight, mlp.up.weight)), _cat(mlp.gate.bias, mlp.up.bias)),
                "mlp.Wo": (mlp.down.weight, mlp.down.bias)}.items():
            weights |= {f"{name}.{to}.weight": weight} | ({} if bias is None else {f"{name}.{to}.bias": bias})
    return weights


def _norm(name: str, norm: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _transposed(name: str, weight: Tensor, bias: Optional[Tensor]) -> dict[str, Tensor]:
    """As GPT-2's Conv1D keeps a linear layer: inputs first, always with a bias."""
    return {f"{name}.weight": weight.T, f"{name}.bias": torch.zeros(len(weight)) if bias is None else bias}


def _joint(attention: torch.nn.Module) -> tuple[Tensor, Optional[Tensor]]:
    """The projections to queries, keys and values as one, with a key/value head for every query head."""
    k, heads = attention.head_dim, attention.q.out_features // attention.head_dim

    def repeated(parameter: Optional[Tensor]) -> Optional[Tensor]:
        if parameter is None:
            return None
        by_head = parameter.unflatten(0, (-1, k))
        return by_head.repeat_interleave(heads // len(by_head), dim=0).flatten(0, 1)

    parts = attention.q, attention.k, attention.v
    return torch.cat([repeated(part.weight) for part in parts]), _cat(*(repeated(part.bias) for part in parts))


def _cat(*biases: Optional[Tensor]) -> Optional[Tensor]:
    return None if biases[0] is None else torch.cat(biases)


ROTARY = {"norm": ("rmsnorm",), "position": ("rope",), "first_attention_norm": (True,)}
TARGETS = (  # the first that fits is taken
    Target("Qwen3ForCausalLM", True, ROTARY | {"mlp": GATED, "qk_norm": (True,), "bias": (False,)}, _qwen3, _llama_weights),
    Target("LlamaForCausalLM", True, ROTARY | {"mlp": GATED, "qk_norm": (False,), "window": (None,)}, _with_biases,
           _llama_weights),
    Target("MistralForCausalLM", True, ROTARY | {"mlp": GATED, "qk_norm": (False,), "bias": (False,)}, _mistral,
           _llama_weights),
    Target("ArceeForCausalLM", True, ROTARY | {"mlp": ("gelu", "relu2"), "qk_norm": (False,), "window": (None,)}, _with_biases,
           _llama_weights),
    Target("GPT2LMHeadModel", True, {"norm": ("layernorm",), "position": ("scaled_sinusoidal", "none"), "mlp": ("gelu",),
                                     "qk_norm": (False,), "embedding_norm": (False,), "window": (None,)}, _gpt2, _gpt2_weights),
    Target("EuroBertForMaskedLM", False, ROTARY | {"mlp": GATED, "qk_norm": (False,), "window": (None,)}, _with_biases,
           _eurobert_weights),
    Target("ModernBertForMaskedLM", False, {"norm": ("layernorm",), "position": ("rope",), "mlp": GATED, "qk_norm": (False,),
                                            "embedding_norm": (True,), "first_attention_norm": (False,)}, _modernbert,
           _modernbert_weights),
)
