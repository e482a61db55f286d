"""The Transformer: published sizes, agreement with transformers, and what must not depend on packing."""

import pytest
import torch

from cram.config import load
from cram.model import build, mlp_width
from cram.ops import Documents
from cram.schema import Model


def documents(*lengths, row=None):
    ends = torch.tensor(lengths).cumsum(0)
    end = torch.repeat_interleave(ends, torch.tensor(lengths)).int()
    start = torch.repeat_interleave(ends - torch.tensor(lengths), torch.tensor(lengths)).int()
    return Documents(start, end, row or sum(lengths))


def test_crammed_bert_has_the_published_number_of_parameters():
    config = load("cramming2022")
    assert build(config.model, config.tokenizer.vocab_size, causal=False).parameter_count() == 119_589_889


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changes", [
    {}, {"mlp": "relu2"}, {"mlp": "swiglu", "kv_heads": 1}, {"mlp": "gelu", "norm": "layernorm", "bias": True},
    {"tied": False, "logit_softcap": 5.0}, {"window": 2}, {"qk_norm": False, "position": "none"}])
def test_a_document_scores_the_same_alone_and_packed(causal, changes):
    model = build(Model(layers=2, width=32, heads=2, zero_init=False, init_std=0.3, **changes), 50, causal, seed=0).eval()
    ids = torch.randint(0, 50, (16,), generator=torch.Generator().manual_seed(0))
    packed = model.logits(model(ids, documents(5, 4, 7)))
    for a, b in ((0, 5), (5, 9), (9, 16)):
        alone = model.logits(model(ids[a:b], documents(b - a)))
        torch.testing.assert_close(packed[a:b], alone, rtol=1e-4, atol=1e-4)


def test_causal_sees_no_future_and_masked_does():
    ids = torch.arange(8)
    for causal in (True, False):
        model = build(Model(layers=2, width=32, heads=2, zero_init=False, init_std=0.3), 50, causal, seed=0)
        before, after = model(ids, documents(8)), model(torch.cat([ids[:7], torch.tensor([49])]), documents(8))
        assert torch.equal(before[:7], after[:7]) == causal


def test_without_document_mask_attention_crosses_but_rows_still_hold():
    model = build(Model(layers=1, width=32, heads=2, zero_init=False, init_std=0.3, document_mask=False), 50, False, seed=0)
    ids = torch.arange(8)
    before = model(ids, documents(2, 2, 2, 2, row=4))
    ids[3] = 40
    after = model(ids, documents(2, 2, 2, 2, row=4))
    assert not torch.allclose(before[0], after[0]) and torch.equal(before[4:], after[4:])


def test_equals_hugging_face_llama():
    """An independent implementation of pre-norm, RoPE, SwiGLU and grouped-query attention."""
    transformers = pytest.importorskip("transformers")
    ours = build(Model(layers=2, width=32, heads=4, kv_heads=2, mlp="swiglu", mlp_width=48, qk_norm=False,
                       embedding_norm=False, tied=False, zero_init=False, init_std=0.2), 50, True, seed=0).eval()
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-6, tie_word_embeddings=False)).eval()
    names = {"embed_tokens": "embedding", "self_attn.q_proj": "attention.q", "self_attn.k_proj": "attention.k",
             "self_attn.v_proj": "attention.v", "self_attn.o_proj": "attention.out", "mlp.gate_proj": "mlp.gate",
             "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "mlp_norm", "model.norm": "final_norm", "lm_head": "head", "model.layers": "blocks",
             "model.embedding": "embedding"}
    state = {}
    for name in theirs.state_dict():
        key = name
        for old, new in names.items():
            key = key.replace(old, new)
        state[name] = ours.state_dict()[key]
    theirs.load_state_dict(state)
    ids = torch.randint(0, 50, (20,), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.logits(ours(ids, documents(20))), theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-4)


def test_parameters_and_flops_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode
    config = Model(layers=2, width=64, heads=2, mlp="relu2")
    model = build(config, 128, causal=False, seed=0)
    ids, row = torch.arange(128) % 128, 32
    with FlopCounterMode(display=False) as counter:
        hidden = model(ids, documents(*[row] * 4, row=row))
        model.logits(hidden[:32]).sum().backward()
    # torch counts one backward product less for the first layer's input, which is no leaf here: the difference is none
    assert counter.get_total_flops() == pytest.approx(model.flops_per_token(row, 0.25) * 128, rel=0.12)


def test_building_leaves_the_global_generator_alone_and_repeats():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(Model(layers=1, width=32, heads=2), 50, True, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    second = build(Model(layers=1, width=32, heads=2), 50, True, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))


def test_mlp_width_follows_the_rule():
    assert mlp_width(Model(width=768, mlp="geglu")) == 2048 and mlp_width(Model(width=768, mlp="gelu")) == 3072
    assert mlp_width(Model(width=128, mlp="swiglu")) == 384  # 341 rounded up


def by_the_formulas(model, ids, lengths):
    """Logits from the weights alone, one document, head and query at a time, in float64."""
    config, w = model.config, {name: value.detach().double() for name, value in model.state_dict().items()}
    width = config.width // config.heads

    def norm(x, name):
        if f"{name}.bias" in w:  # LayerNorm
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def head(x, name, number, position):
        x = linear(x, name)[:, number * width:(number + 1) * width]
        if config.qk_norm:
            x = norm(x, f"{name}_norm")
        if config.position == "rope":  # pairs are complex numbers, turned by their angle
            angle = position[:, None] / config.rope_base ** (torch.arange(width // 2) / (width / 2))
            turned = torch.complex(*x.chunk(2, dim=-1)) * torch.exp(1j * angle)
            x = torch.cat((turned.real, turned.imag), dim=-1)
        return x

    def attend(x, name, position, document):
        heads = []
        for h in range(config.heads):
            g = h * (config.kv_heads or config.heads) // config.heads
            q, k = head(x, f"{name}.q", h, position), head(x, f"{name}.k", g, position)
            v = linear(x, f"{name}.v")[:, g * width:(g + 1) * width]
            if f"{name}.value_embedding.table.weight" in w:
                gate = 2 / (1 + torch.exp(-x[:, :32] @ w[f"{name}.value_embedding.gate.weight"][g]))
                v = v + gate[:, None] * w[f"{name}.value_embedding.table.weight"][document][:, g * width:(g + 1) * width]
            far = position[None] - position[:, None]
            hidden = (far > 0) & model.causal | (far.abs() > (len(x) if config.window is None else config.window))
            heads.append(torch.softmax((q @ k.T / width ** 0.5).masked_fill(hidden, float("-inf")), -1) @ v)
        return linear(torch.cat(heads, -1), f"{name}.out")

    def mlp(x, name):
        up = linear(x, f"{name}.up")
        bell = lambda z: z * 0.5 * (1 + torch.erf(z / 2 ** 0.5))
        inner = {"gelu": lambda: bell(up), "relu2": lambda: up.clamp(min=0) ** 2,
                 "geglu": lambda: bell(linear(x, f"{name}.gate")) * up,
                 "swiglu": lambda: linear(x, f"{name}.gate") * torch.sigmoid(linear(x, f"{name}.gate")) * up}[config.mlp]()
        return linear(inner, f"{name}.down")

    logits = []
    for document in ids.split(lengths):
        x, position = w["embedding.weight"][document], torch.arange(len(document), dtype=torch.float64)
        if config.position == "scaled_sinusoidal":
            for i in range(0, config.width, 2):
                angle = position / 10000 ** (i / config.width)
                x[:, i] += w["position.scale"] * angle.sin()
                x[:, i + 1] += w["position.scale"] * angle.cos()
        if config.embedding_norm:
            x = norm(x, "embedding_norm")
        if config.bigram_rows:
            neighbours = {"bigrams": [0, *(document[:-1] + 1).tolist()]}  # 0: none
            if not model.causal:
                neighbours["bigrams_after"] = [*(document[1:] + 1).tolist(), 0]
            for name, beside in neighbours.items():
                rows = [(other * 27191 ^ token * 36313) % config.bigram_rows for other, token in zip(beside, document.tolist())]
                x = x + w[f"{name}.scale"] * w[f"{name}.table.weight"][rows]
        x0 = x
        for layer in range(config.layers):
            name = f"blocks.{layer}"
            if config.residual_scalars:
                x = w["residual_scalars.a_L"][layer] * x + w["residual_scalars.b_L"][layer] * x0
            x = x + attend(norm(x, f"{name}.attention_norm"), f"{name}.attention", position, document)
            x = x + mlp(norm(x, f"{name}.mlp_norm"), f"{name}.mlp")
        out = norm(x, "final_norm") @ w["head.weight"].T
        logits.append(out if config.logit_softcap is None else config.logit_softcap * torch.tanh(out / config.logit_softcap))
    return torch.cat(logits)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changes", [
    {}, {"mlp": "relu2", "tied": False, "logit_softcap": 2.0}, {"mlp": "swiglu", "kv_heads": 2, "window": 2},
    {"mlp": "geglu", "qk_norm": False, "embedding_norm": False, "rope_base": 50.0},
    {"value_embeddings": True, "residual_scalars": True, "kv_heads": 2, "width": 48}, {"bigram_rows": 31},
    {"bigram_rows": 7, "position": "scaled_sinusoidal", "residual_scalars": True},
    {"mlp": "gelu", "norm": "layernorm", "bias": True, "position": "scaled_sinusoidal", "embedding_norm": True}])
def test_equals_the_formulas(causal, changes):
    config = Model(**{"layers": 2, "width": 32, "heads": 4, "zero_init": False, "init_std": 0.3} | changes)
    model, generator = build(config, 50, causal, seed=0).eval(), torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # gains of 1 and biases of 0 would hide a norm or a bias left out
        if parameter.ndim == 1 or not parameter.any():  # so would the zero weight of a value embedding's gate
            parameter.data += 0.5 * torch.rand(parameter.shape, generator=generator)
    ids = torch.randint(0, 50, (16,), generator=generator)
    ours = model.logits(model(ids, documents(5, 4, 7)))
    torch.testing.assert_close(ours.double(), by_the_formulas(model, ids, [5, 4, 7]), rtol=1e-4, atol=1e-4)


def test_initialisation_is_as_configured():
    model = build(Model(layers=2, width=64, heads=2, init_std=0.05, zero_init=True, mlp="geglu", tied=False), 500, True, seed=0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            zero = name.endswith(("attention.out.weight", "mlp.down.weight"))
            assert parameter.std().item() == pytest.approx(0.0 if zero else 0.05, rel=0.05), name
    tied = build(Model(layers=1, width=32, heads=2, tied=True), 50, True, seed=0)
    assert tied.head.weight is tied.embedding.weight


def test_flops_are_counted_as_published():
    """By hand: 6 a weight, 12 L D T for the scores, half when causal, fewer in a window; the head where it predicts."""
    weights, head = 2 * (4 * 64 * 64 + 2 * 64 * 256), 64 * 128
    config = Model(layers=2, width=64, heads=2, mlp="relu2")
    masked, causal = (build(config, 128, causal=causal) for causal in (False, True))
    assert masked.flops_per_token(32, 0.25) == 6 * weights + 12 * 2 * 64 * 32 + 6 * head * 0.25
    assert causal.flops_per_token(32) == 6 * weights + 12 * 2 * 64 * 32 / 2 + 6 * head
    windowed = build(Model(layers=2, width=64, heads=2, mlp="relu2", window=4), 128, causal=False)
    assert windowed.flops_per_token(32) == 6 * weights + 12 * 2 * 64 * 9 + 6 * head
    assert windowed.flops_per_token(8) == 6 * weights + 12 * 2 * 64 * 8 + 6 * head  # never more than the row


def test_the_attention_back_end_follows_the_device(monkeypatch):
    from cram.errors import CramError
    from cram.model import attention_backend, refuse_attention
    import cram.model

    for name in ("auto", "sdpa"):
        assert attention_backend(Model(attention=name), "cpu") == "sdpa"
    for name in ("triton", "flex", "varlen"):
        with pytest.warns(UserWarning, match=f"attention by sdpa, which may be slower: {name} needs a CUDA card"):
            assert attention_backend(Model(attention=name), "cpu") == "sdpa"
    for name in ("triton", "flex", "varlen"):
        with pytest.raises(CramError, match=f"model.attention={name} needs a CUDA card; use model.attention=auto or sdpa"):
            refuse_attention(Model(attention=name), "cpu")
    refuse_attention(Model(attention="auto"), "cpu")
    monkeypatch.setattr(cram.model, "why_not", lambda backend, device, head_dim: None)  # a card that runs them all
    assert attention_backend(Model(attention="auto"), "cuda") == "triton"
    assert attention_backend(Model(attention="flex"), "cuda") == "flex"
    model = build(Model(layers=1, width=32, heads=2), 50, False)
    assert model.backend == "triton" and model.half().backend == "triton"
    monkeypatch.undo()
    assert model.float().backend == "sdpa"


@pytest.mark.parametrize("causal", [False, True])
def test_the_kernels_twin_trains_the_same_model(causal, monkeypatch):
    """Norm and rotation inside the kernel or in front of sdpa: the same loss and the same gradients."""
    import cram.model

    config = Model(layers=2, width=32, heads=4, kv_heads=2, zero_init=False, init_std=0.3, window=6)
    ids, results = torch.randint(0, 50, (16,), generator=torch.Generator().manual_seed(0)), []
    for backend in ("sdpa", "triton"):
        monkeypatch.setattr(cram.model, "attention_backend", lambda model, device: backend)
        model = build(config, 50, causal, seed=0)
        loss = model.logits(model(ids, documents(5, 4, 7))).logsumexp(-1).sum()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_back_end_that_cannot_train_here_is_refused_before_the_run(cram, tmp_path):
    result = cram("run", "demo", f"out={tmp_path}", "model.attention=flex", "budget=3 steps", "data.max_bytes=3000000",
                  "tokenizer.vocab_size=512")
    assert result.code == 2 and "model.attention=flex needs a CUDA card; use model.attention=auto or sdpa" in result.err
    assert not result.out and not list(tmp_path.iterdir())  # before any other stage


def test_what_a_card_must_have(monkeypatch):
    from cram.ops import why_not

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "Ampere" in why_not("triton", "cuda", 64) and "Ampere" in why_not("varlen", "cuda", 64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert why_not("varlen", "cuda", 64) is None and "multiple of 8" in why_not("varlen", "cuda", 36)
    assert "up to 128, not 160" in why_not("triton", "cuda", 160) and "even" in why_not("triton", "cuda", 63)
    assert why_not("sdpa", "cuda", 160) is None
