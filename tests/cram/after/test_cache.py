"""The cache against the full forward pass: every switch, ragged prompts, blocks; and its 4-bit form."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cram.after.cache import Cache, RoundedCache, cached_nats
from cram.model import build
from cram.ops import Documents
from cram.schema import Model

VOCAB = 50
SWITCHES = {
    "plain": {}, "no first norm": {"first_attention_norm": False}, "grouped": {"kv_heads": 2}, "one group": {"kv_heads": 1},
    "no norms": {"qk_norm": False, "embedding_norm": False},
    "window": {"window": 3}, "window 0": {"window": 0}, "softcap": {"logit_softcap": 2.0},
    "sinusoidal": {"position": "scaled_sinusoidal"}, "no positions": {"position": "none"},
    "layernorm and bias": {"norm": "layernorm", "bias": True},
    "swiglu": {"mlp": "swiglu"}, "relu2": {"mlp": "relu2"}, "gelu untied": {"mlp": "gelu", "tied": False},
    "values and scalars": {"value_embeddings": True, "residual_scalars": True}, "whole rows": {"document_mask": False}, "bigrams": {"bigram_rows": 31},
    "base": {"rope_base": 100.0, "rope_base_end": 700.0},
    "all": {"kv_heads": 2, "window": 4, "value_embeddings": True, "residual_scalars": True, "bias": True, "logit_softcap": 3.0,
            "bigram_rows": 31},
}


def make(dtype=torch.float32, **changes):
    """A model whose every parameter matters: none is at its neutral start."""
    shape = {"layers": 3, "width": 32, "heads": 4, "zero_init": False, "init_std": 0.3}
    model = build(Model(**shape | changes), VOCAB, True, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.to(dtype).eval()


def ids(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def whole(model, sequence):
    """Logits [N, V] of one sequence, read at once as a row of its own."""
    return model.logits(model(torch.tensor(sequence), Documents.from_lengths([len(sequence)])))


@torch.no_grad()
def by_cache(model, prompts, rest, step=1, bits=None):
    """Logits of every token of every sequence: the prompts at once, then ``step`` tokens a sequence at a time."""
    cache = Cache(model, len(prompts), max(map(len, prompts)) + len(rest[0]), bits)
    found = [[part] for part in model.logits(cache.extend(prompts)).split([len(prompt) for prompt in prompts])]
    for begin in range(0, len(rest[0]), step):
        pieces = [tail[begin:begin + step] for tail in rest]
        for parts, part in zip(found, model.logits(cache.extend(pieces)).split([len(piece) for piece in pieces])):
            parts.append(part)
    return [torch.cat(parts) for parts in found], cache


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_cache_gives_what_the_whole_text_gives(switch):
    model = make(**SWITCHES[switch])
    model.depth = 2 if switch == "all" else 3
    prompts, rest = ids(5, 1, 9), ids(6, 6, 6, seed=1)
    for found, prompt, tail in zip(by_cache(model, prompts, rest)[0], prompts, rest):
        wanted = whole(model, prompt + tail)
        assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("switch", SWITCHES)
def test_hidden_states_in_float64_are_the_same_to_ten_digits(switch):
    model = make(torch.float64, **SWITCHES[switch])
    [prompt], [tail] = ids(4), ids(7, seed=1)
    cache = Cache(model, 1, 11)
    with torch.no_grad():
        found = torch.cat([cache.extend([prompt]), *(cache.extend([[token]]) for token in tail)])
        wanted = model(torch.tensor(prompt + tail), Documents.from_lengths([11]))
    assert found.dtype == torch.float64 and torch.allclose(found, wanted, rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), more=st.integers(1, 9), step=st.integers(1, 5),
       window=st.sampled_from([None, 1, 4]), kept=st.randoms(use_true_random=False))
def test_ragged_prompts_equal_one_by_one(lengths, more, step, window, kept):
    """Also in blocks, and when some sequences leave in the middle."""
    model = make(window=window, kv_heads=2)
    prompts, rest = ids(*lengths), ids(*[more] * len(lengths), seed=1)
    wanted = [whole(model, prompt + tail) for prompt, tail in zip(prompts, rest)]
    for found, right in zip(by_cache(model, prompts, rest, step)[0], wanted):
        assert torch.allclose(found, right, atol=1e-4)
    rows = kept.sample(range(len(lengths)), kept.randint(1, len(lengths)))
    cache = Cache(model, len(lengths), max(lengths) + more)
    with torch.no_grad():
        cache.extend(prompts)
        cache.keep(rows)
        last = model.logits(cache.extend([rest[row] for row in rows])).view(len(rows), more, -1)[:, -1]
    assert torch.allclose(last, torch.stack([wanted[row][-1] for row in rows]), atol=1e-4)


@pytest.mark.parametrize("switch", ["plain", "grouped", "window", "sinusoidal", "values and scalars", "no norms"])
def test_four_bits_do_not_hang_on_the_pieces_that_a_text_is_read_in(switch):
    """Token by token, in blocks, ragged, and on packed text as scoring reads it: the same 4 bits."""
    model = make(**SWITCHES[switch])
    prompts, rest = ids(5, 1, 9), ids(6, 6, 6, seed=1)
    single, blocks = by_cache(model, prompts, rest, 1, 4)[0], by_cache(model, prompts, rest, 3, 4)[0]
    packed, exact = RoundedCache(model), by_cache(model, prompts, rest)[0]
    texts = [prompt + tail for prompt, tail in zip(prompts, rest)]
    with torch.no_grad():
        at_once = packed.logits(packed(torch.tensor(sum(texts, [])), Documents.from_lengths(list(map(len, texts)))))
    for a, b, c, d in zip(single, blocks, at_once.split(list(map(len, texts))), exact):
        assert (a - b).abs().max() < 0.02 * (a - d).abs().max() and (a - c).abs().max() < 0.02 * (a - d).abs().max()
        assert 1e-3 < (a - d).abs().max() < 3  # rounded, but not something else


def test_what_a_cache_takes():
    model = make(width=128, heads=2, layers=2)
    exact, rounded = Cache(model, 3, 10), Cache(model, 3, 10, 4)
    numbers = 2 * 2 * 3 * 10 * 128  # keys and values, layers, sequences, positions, width
    assert exact.bytes == 4 * numbers
    assert rounded.bytes == numbers * (4 + 32 / 64) / 8


@pytest.mark.parametrize("bits", [None, 4])
def test_nats_of_a_text_read_through_the_cache(bits):
    model, [text] = make(kv_heads=2), ids(12)
    subject = SimpleNamespace(model=model, device="cpu")
    wanted = torch.nn.functional.cross_entropy(whole(model, text)[:-1], torch.tensor(text[1:]), reduction="none").double()
    found = cached_nats(subject, text, bits)
    assert found.shape == (11,) and torch.allclose(found, cached_nats(subject, text, bits, block=5), atol=1e-4)
    assert torch.allclose(found, wanted, atol=1e-5) == (bits is None)


def test_refusals():
    model = make()
    with pytest.raises(ValueError, match="3 bits"):
        Cache(model, 1, 4, 3)
    with pytest.raises(ValueError, match="holds 4 each"):
        Cache(model, 1, 4).extend(ids(5))
    with pytest.raises(ValueError, match="at least one"):
        Cache(model, 2, 4).extend([[7], []])
    cache = Cache(model, 2, 9)
    cache.extend(ids(2, 3))
    with pytest.raises(ValueError, match="same number of tokens"):
        cache.extend(ids(1, 2))
    with pytest.raises(ValueError, match="causal"):
        RoundedCache(model)(torch.tensor([5]), Documents.from_lengths([1]), causal=False)


def test_a_switch_that_is_new_is_thought_of_here():
    """Keys of the model's configuration that the cases above, or the defaults, do not speak of."""
    spoken = {key for case in SWITCHES.values() for key in case}
    others = {"layers", "width", "heads", "mlp_width", "norm_eps", "attention", "zero_init", "init_std"}
    assert {field.name for field in dataclasses.fields(Model)} - spoken - others == set()
