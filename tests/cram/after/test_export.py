"""Exported models compute in transformers what they compute here, or are refused by the name of what is in the way."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, pipeline

from cram.after import export as exporting
from cram.after.architectures import as_run, target
from cram.after.export import export
from cram.config import load
from cram.errors import CramError
from cram.evaluate.samples import encode_blanks, fill_blanks, generate
from cram.evaluate.subject import open_subject
from cram.model import build
from cram.ops import Documents
from tests.cram.after.made_run import made_run

CAUSAL, PLAIN, GROUPED = "objective.type=causal", "model.qk_norm=false", ("model.heads=4", "model.kv_heads=2")
GPT2 = (CAUSAL, PLAIN, "model.norm=layernorm", "model.mlp=gelu", "model.embedding_norm=false")
MODERNBERT = (PLAIN, "model.norm=layernorm", "model.first_attention_norm=false")
FITS = {
    "qwen3": ("Qwen3ForCausalLM", (CAUSAL,)),
    "qwen3 window": ("Qwen3ForCausalLM", (CAUSAL, "model.kv_heads=1", "model.window=3", "model.rope_base=500",
                                          "model.mlp=swiglu", "model.tied=false", "model.embedding_norm=false")),
    "qwen3 tied": ("Qwen3ForCausalLM", (CAUSAL, "model.embedding_norm=false", "model.mlp_width=40", "model.norm_eps=0.01")),
    "qwen3 whole rows": ("Qwen3ForCausalLM", (CAUSAL, "model.document_mask=false", "model.window=31")),
    "hybrid": ("Qwen3ForCausalLM", ("objective.type=hybrid",)),
    "llama": ("LlamaForCausalLM", (CAUSAL, PLAIN, "model.bias=true", *GROUPED)),
    "mistral": ("MistralForCausalLM", (CAUSAL, PLAIN, "model.window=2")),
    "arcee": ("ArceeForCausalLM", (CAUSAL, PLAIN, "model.mlp=relu2", "model.bias=true")),
    "arcee gelu": ("ArceeForCausalLM", (CAUSAL, PLAIN, "model.mlp=gelu")),
    "gpt2": ("GPT2LMHeadModel", (*GPT2, "model.position=scaled_sinusoidal", "model.bias=true", *GROUPED)),
    "gpt2 plain": ("GPT2LMHeadModel", (*GPT2, "model.position=none", "model.tied=false")),
    "eurobert": ("EuroBertForMaskedLM", (PLAIN,)),
    "eurobert biases": ("EuroBertForMaskedLM", (PLAIN, "model.bias=true", "model.kv_heads=1", "model.embedding_norm=false",
                                                "model.mlp=swiglu", "model.rope_base=500")),
    "modernbert": ("ModernBertForMaskedLM", MODERNBERT),
    "modernbert window": ("ModernBertForMaskedLM", (*MODERNBERT, "model.window=3", "model.bias=true", *GROUPED,
                                                    "model.tied=false", "model.rope_base=500", "model.mlp=swiglu")),
}
CAUSAL_FITS = [name for name, (stock, _) in FITS.items() if "Masked" not in stock]
MASKED_FITS = [name for name in FITS if name not in CAUSAL_FITS]


@pytest.fixture
def config(small_config):
    """A model with QK-norm, as by default, unless asked otherwise."""
    return lambda *overrides: small_config("model.qk_norm=true", *overrides)


@pytest.fixture
def exported(tmp_path, tiny, config):
    """``exported("qwen3") -> (subject, folder)``"""
    def make(name, **options):
        run = made_run(tmp_path / "runs" / "one", config(*FITS[name][1]), tiny)
        assert export(run, tmp_path / "out", print, **options).name == FITS[name][0]
        return open_subject(run, device="cpu"), tmp_path / "out"
    return make


@torch.no_grad()
def ours(subject, ids):
    return subject.model.logits(subject.model(torch.tensor(ids), Documents(None, None, len(ids))))


@pytest.mark.parametrize("name", FITS)
@torch.no_grad()
def test_logits_are_those_of_the_run_with_and_without_padding(exported, name):
    subject, folder = exported(name)
    auto = AutoModelForMaskedLM if name in MASKED_FITS else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    assert type(model).__name__ == FITS[name][0] and model.dtype == torch.float32
    generator = torch.Generator().manual_seed(1)
    rows = [[2, *torch.randint(3, 300, (length - 1,), generator=generator).tolist()] for length in (32, 19, 8, 1)]
    expected = [ours(subject, row) for row in rows]
    assert expected[0].std() > 0.1  # or any two models would agree
    for row, logits_NV in zip(rows, expected):
        torch.testing.assert_close(model(torch.tensor([row])).logits[0], logits_NV, rtol=1e-5, atol=1e-5)
    for left in (False, True):
        padding = [[0] * (32 - len(row)) for row in rows]
        ids_BT = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, padding)])
        seen_BT = torch.tensor([[0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad)
                                for row, pad in zip(rows, padding)])
        positions_BT = (seen_BT.cumsum(1) - 1).clamp(min=0)
        batch_BTV = model(ids_BT, attention_mask=seen_BT, position_ids=positions_BT).logits
        for seen_T, found_TV, logits_NV in zip(seen_BT, batch_BTV, expected):
            torch.testing.assert_close(found_TV[seen_T.bool()], logits_NV, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CAUSAL_FITS)
def test_greedy_generation_with_their_cache_is_ours_without_one(exported, name):
    subject, folder = exported(name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = ["the", "of a query", "row head key"]
    expected = [generate(subject.model, subject.tokenizer, prompt, tokens=12, temperature=0) for prompt in prompts]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    assert batch.input_ids.shape[0] == 3 and batch.input_ids[0, 0] == 0 and batch.input_ids[2, 0] == 2  # padded on the left
    found = model.generate(**batch, max_new_tokens=12, do_sample=False)
    assert tokenizer.batch_decode(found, skip_special_tokens=True) == expected
    writer = pipeline("text-generation", str(folder), device="cpu")
    assert [writer(prompt, max_new_tokens=12, do_sample=False)[0]["generated_text"] for prompt in prompts] == expected


@pytest.mark.parametrize("name", ["eurobert", "modernbert window"])
def test_fill_mask_fills_as_we_do(exported, name):
    subject, folder = exported(name)
    filler = pipeline("fill-mask", str(folder), device="cpu", top_k=20)
    for sentence in ("the [MASK] of a query", "[MASK] layer.", "row of[MASK]"):
        found = [(each["token_str"], each["score"]) for each in filler(sentence) if each["token"] >= 5]
        expected = [(each["token"], each["probability"]) for each in fill_blanks(subject.model, subject.tokenizer, sentence)[0]]
        assert [token for token, _ in found[:5]] == [token for token, _ in expected]
        assert [score for _, score in found[:5]] == pytest.approx([score for _, score in expected], rel=1e-4)


@pytest.mark.parametrize("name, texts", [("eurobert", {
    "the [MASK] of": None, "the query. In a row": None, "": [2, 3]}), ("qwen3", {"the query. In a row": None, "": [2]})])
def test_the_tokenizer_encodes_and_decodes_as_ours(exported, name, texts):
    subject, folder = exported(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, expected in texts.items():
        ids = tokenizer(text).input_ids
        plain = [2, *subject.encode(text), *([3] if name == "eurobert" else [])]
        assert ids == (expected or (encode_blanks(subject.tokenizer, text) if "[MASK]" in text else plain))
        if "[MASK]" not in text:
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.model_max_length == 32 and list(tokenizer("the")) == ["input_ids", "attention_mask"]
    if name == "eurobert":
        assert tokenizer("the", "row").input_ids == [2, *subject.encode("the"), 3, *subject.encode("row"), 3]
        assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.pad_token_id) == (2, 3, 4, 0)
    else:
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 3, 0)


def test_a_model_is_exported_as_its_schedules_left_it(tmp_path, tiny, config):
    run = made_run(tmp_path / "one", config(CAUSAL, "model.layers=3"), tiny, layers=2, window=4, rope_base=77.0)
    export(run, tmp_path / "out", print)
    stock = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (stock["num_hidden_layers"], stock["sliding_window"], stock["rope_parameters"]["rope_theta"]) == (2, 5, 77.0)
    assert stock["layer_types"] == ["sliding_attention"] * 2


@pytest.mark.parametrize("window, kept", [(None, None), (29, 29), (30, 30), (31, None), (32, None), (500, None)])
def test_a_window_that_hides_nothing_of_a_row_is_none(config, window, kept):
    model = build(config(CAUSAL).model, 300, True)
    model.window = window
    assert as_run(model, 32).window == kept


def test_a_hybrid_run_says_loudly_which_half_it_leaves(tmp_path, tiny, config):
    said = []
    export(made_run(tmp_path / "one", config("objective.type=hybrid"), tiny), tmp_path / "out", said.append)
    assert "exported is the CAUSAL model" in said[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_in_half_the_bytes(exported, dtype):
    subject, folder = exported("qwen3", dtype=dtype)
    weights = load_file(folder / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {getattr(torch, dtype)}
    norm = weights["model.norm.weight"]
    assert torch.equal(norm, subject.model.final_norm.weight.to(norm.dtype))
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype


def test_the_same_run_gives_the_same_bytes(tmp_path, tiny, config):
    run = made_run(tmp_path / "one", config(CAUSAL), tiny)
    for name in ("a", "b"):
        export(run, tmp_path / name, print)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json"} <= set(files)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    assert len({path.stat().st_mode for path in (tmp_path / "a").iterdir()}) == 1


@pytest.mark.parametrize("overrides, reasons", [
    ((CAUSAL, "model.value_embeddings=true"), ["value_embeddings"]),
    ((CAUSAL, "model.residual_scalars=true"), ["residual_scalars"]),
    ((CAUSAL, "model.bigram_rows=64"), ["bigram_rows"]),
    ((CAUSAL, "model.logit_softcap=15"), ["logit_softcap"]), ((CAUSAL, "model.bias=true"), ["bias"]),
    ((CAUSAL, "model.mlp=relu2"), ["mlp"]), ((CAUSAL, "model.norm=layernorm"), ["norm"]),
    ((CAUSAL, "model.position=none"), ["position"]), ((CAUSAL, "model.first_attention_norm=false"), ["first_attention_norm"]),
    ((CAUSAL, PLAIN, "model.window=3", "model.bias=true"), ["window"]),
    ((*GPT2, "model.position=none", "model.window=3"), ["window"]),
    ((CAUSAL, PLAIN, "model.norm=layernorm", "model.mlp=gelu", "model.position=scaled_sinusoidal"), ["embedding_norm"]),
    ((), ["qk_norm"]), ((PLAIN, "model.mlp=relu2"), ["mlp"]), ((PLAIN, "model.window=3"), ["window"]),
    ((PLAIN, "model.position=scaled_sinusoidal"), ["position"]),
    ((PLAIN, "model.first_attention_norm=false"), ["first_attention_norm"]),
    ((*MODERNBERT, "model.qk_norm=true"), ["qk_norm"]), ((*MODERNBERT, "model.value_embeddings=true"), ["value_embeddings"]),
    ((PLAIN, "model.position=scaled_sinusoidal", "model.logit_softcap=15", "model.residual_scalars=true"),
     ["position", "logit_softcap", "residual_scalars"])])
def test_what_no_stock_class_computes_is_refused_by_name_with_a_remedy_that_works(config, overrides, reasons):
    with pytest.raises(CramError, match="no stock class") as refusal:
        target(config(*overrides).model, CAUSAL in overrides)
    told, remedy = str(refusal.value).split("To export, train with ")
    assert all(f"model.{reason}=" in told for reason in reasons)
    assert {each.partition("=")[0] for each in remedy.split()} == {f"model.{reason}" for reason in reasons}
    mended = [each for each in overrides if each.partition("=")[0] not in {word.partition("=")[0] for word in remedy.split()}]
    assert target(config(*mended, *remedy.split()).model, CAUSAL in overrides)


def test_the_shipped_recipes_map_or_say_why_not():
    assert target(load("demo_gpt").model, True).name == target(load("gpt_day").model, True).name == "Qwen3ForCausalLM"
    assert target(load("demo").model, False).name == target(load("bert_day").model, False).name == "EuroBertForMaskedLM"
    with pytest.raises(CramError, match="model.position=scaled_sinusoidal"):
        target(load("cramming2022").model, False)


def test_a_refused_run_leaves_nothing(tmp_path, tiny, config, cram):
    run = made_run(tmp_path / "one", config(), tiny)
    result = cram("export", run, tmp_path / "deep" / "out")
    assert result.code == 2 and result.err.count("\n") == 1 and "model.qk_norm=true" in result.err
    assert not (tmp_path / "deep").exists()


def test_from_the_command_line(tmp_path, tiny, config, cram):
    run = made_run(tmp_path / "one", config(CAUSAL), tiny)
    result = cram("export", run, tmp_path / "out", "--dtype", "float16")
    assert result.code == 0 and "Qwen3ForCausalLM" in result.out and "AutoModelForCausalLM" in result.out and not result.err
    assert cram("export", run, tmp_path / "out").err.endswith("--force replaces it, or give another folder\n")
    assert cram("export", run, tmp_path / "out", "--force").code == 0
    assert "is a Hugging Face model already" in cram("export", tmp_path / "out", tmp_path / "again").err
    for wrong in ((tmp_path / "none", tmp_path / "x"), (run,), (run, tmp_path / "x", "--dtype", "int8")):
        assert cram("export", *wrong).code == 2


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_export_is_never_replaced(tmp_path, tiny, config, force):
    run = made_run(tmp_path / "one", config(CAUSAL), tiny)
    with pytest.raises(CramError, match="is no export; give another folder"):
        export(run, run, print, force=force)
    assert (run / "pretrain" / "config.json").exists()
    (tmp_path / "empty").mkdir()
    export(run, tmp_path / "empty", print)


@pytest.mark.parametrize("broken", ["model_card", "_check_tokenizer", "sync"])
def test_a_crash_leaves_no_half_folder_and_what_was_there(tmp_path, tiny, config, monkeypatch, broken):
    run = made_run(tmp_path / "one", config(CAUSAL), tiny)
    export(run, tmp_path / "kept", print)
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}

    def fail(*arguments):
        raise OSError("no space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(exporting, broken, fail)
        for name in ("out", "kept"):
            with pytest.raises(OSError):
                export(run, tmp_path / name, print, force=True)
    assert sorted(os.listdir(tmp_path)) == ["kept", "one"]
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}


def test_what_a_killed_export_left_is_cleared_away(tmp_path, tiny, config):
    run = made_run(tmp_path / "one", config(CAUSAL), tiny)
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "stray.bin").write_text("half")
    export(run, tmp_path / "out", print)
    assert sorted(os.listdir(tmp_path)) == ["one", "out"] and not (tmp_path / "out" / "stray.bin").exists()


@pytest.mark.parametrize("damage", [
    lambda weights: weights | {"model.norm.weight": weights["model.norm.weight"] * 1.001},
    lambda weights: weights | {"model.norm.weight": weights["model.norm.weight"] * float("nan")}])
def test_a_folder_that_computes_something_else_gets_no_name(tmp_path, tiny, config, monkeypatch, damage):
    run = made_run(tmp_path / "one", config(CAUSAL), tiny)

    def wrong(model, causal):
        right = target(model, causal)
        return replace(right, weights=lambda *arguments: damage(right.weights(*arguments)))
    monkeypatch.setattr(exporting, "target", wrong)
    with pytest.raises(CramError, match="the logits differ by .* nothing was written"):
        export(run, tmp_path / "out", print)
    assert os.listdir(tmp_path) == ["one"]


def test_normalising_twice_is_within_the_bound_that_the_docstring_gives():
    """ModernBERT's head: LayerNorm of a LayerNorm against the LayerNorm alone, in float64."""
    for eps in (1e-12, 1e-6, 1e-5):
        for scale in (0.25, 1.0, 30.0):
            h_ND = scale * torch.randn(200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            norm = torch.nn.LayerNorm(64, eps=eps, elementwise_affine=False)
            once, twice, variance = norm(h_ND), norm(norm(h_ND)), h_ND.var(1, correction=0)
            d = (eps * (1 - 1 / (variance + eps))).abs()
            share = ((twice - once).norm(dim=1) / once.norm(dim=1))
            assert (share <= d / 2 + d ** 2 + 1e-15).all()


def test_a_norm_with_a_large_epsilon_is_refused_where_normalising_twice_shows(tmp_path, tiny, config):
    run = made_run(tmp_path / "one", config(*MODERNBERT, "model.norm_eps=0.1"), tiny)
    with pytest.raises(CramError, match="its head normalises twice, which a model.norm_eps below 1e-6 makes harmless"):
        export(run, tmp_path / "out", print)
    assert os.listdir(tmp_path) == ["one"]
