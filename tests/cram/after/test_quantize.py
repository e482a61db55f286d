"""Rounding and packing, layers of few bits, whole models of them: small, close, saved and read again."""

import argparse
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings, strategies as st

from cram.after.generate import generate
from cram.after.quantize import (Part, calibration_views, group_of, measure, quantize_lines, quantize_model, quantize_run,
                                 split_heldout)
from cram.after.quantize_command import command
from cram.after.quantized import QuantLinear, file_bytes, matrices, save_quantized
from cram.after.round_to_nearest import decode, encode, find_levels, pack, round_trip, unpack
from cram.config import load
from cram.errors import CramError
from cram.evaluate.subject import Subject, open_subject
from cram.model import build
from cram.ops import Documents
from cram.schema import Model, Quantize
from data_prep.artifact import write_manifest
from data_prep.tokenizer import load_tokenizer

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 40


def numbers(*shape, seed=0, spread=1.0, shift=0.0):
    return shift + spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), group=st.sampled_from([1, 4, 32]),
       spread=st.sampled_from([0.0, 1e-3, 1.0, 300.0]), shift=st.sampled_from([0.0, -5.0]), symmetric=st.booleans())
def test_numbers_come_back_within_half_a_step(seed, bits, group, spread, shift, symmetric):
    x = numbers(3, 32, seed=seed, spread=spread, shift=shift)
    levels = find_levels(x, bits, group, symmetric)
    back = decode(encode(x, levels, bits), levels)
    scale, low = (part.float().repeat_interleave(group, 1) for part in levels)
    # levels are float16: the outermost numbers may lie beyond the outermost level by its rounding, 2^-24 for tiny ones
    assert ((back - x).abs() <= scale / 2 + (low.abs() + 2**bits * scale) * 2**-10 + (1 + 2**bits) * 2**-24).all()
    assert levels.scale.shape == (3, 32 // group) and levels.scale.dtype == torch.float16


def test_a_symmetric_zero_stays_zero_and_levels_come_back_as_they_are():
    x = numbers(4, 64)
    x[:, 7] = 0
    assert not round_trip_symmetric(x)[:, 7].any()
    assert torch.equal(round_trip(round_trip(x, 4, 16), 4, 16), round_trip(x, 4, 16))


def round_trip_symmetric(x):
    levels = find_levels(x, 8, 64, symmetric=True)
    return decode(encode(x, levels, 8), levels)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(1, 8), rows=st.integers(1, 3), eights=st.integers(1, 6), seed=st.integers(0, 1000))
def test_packing_is_exact_and_as_small_as_it_says(bits, rows, eights, seed):
    codes = torch.randint(0, 2**bits, (rows, 8 * eights), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, bits), codes)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, bits * eights)


def test_what_does_not_fit_is_refused():
    with pytest.raises(CramError, match="20 inputs do not divide into groups of 8"):
        find_levels(torch.zeros(2, 20), 4, 8)
    with pytest.raises(CramError, match="12 codes of 3 bits"):
        pack(torch.zeros(2, 12, dtype=torch.uint8), 3)
    assert torch.equal(unpack(pack(torch.full((1, 6), 9, dtype=torch.uint8), 4), 4), torch.full((1, 6), 9, dtype=torch.uint8))
    for bad in (1e6, float("nan"), float("inf")):
        with pytest.raises(CramError, match="65,504"):
            find_levels(torch.full((1, 8), bad), 4, 8)


def quant_linear(outputs, inputs, bits, group, symmetric=False, bias=False):
    weight = numbers(outputs, inputs, spread=0.05)
    levels = find_levels(weight, bits, group, symmetric)
    return QuantLinear(encode(weight, levels, bits), levels, bits, numbers(outputs, seed=2) if bias else None), weight


@pytest.mark.parametrize("bits, group, symmetric", [(3, 32, False), (4, 64, False), (8, 128, True), (4, 16, False),
                                                    (8, 32, False)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_multiplies_by_the_weights_it_reads_back(bits, group, symmetric, bias):
    """By PyTorch's kernels to the precision of bfloat16, where they take the shape; else, and in float64, exactly."""
    layer, weight = quant_linear(48, 128, bits, group, symmetric, bias)
    x = numbers(5, 128, seed=1)
    wanted = x.double() @ layer.read_back(torch.float64).T + (layer.bias.double() if bias else 0)
    fast = layer._kernel(x) is not None
    assert fast == ((bits, group) not in [(4, 16), (8, 32)])
    assert torch.allclose(layer(x).double(), wanted, atol=(0.02 if fast else 1e-5) * float(wanted.abs().max()))
    assert torch.allclose(layer(x.double()), wanted, atol=1e-12)
    assert layer(x[None]).shape == (1, 5, 48) and layer(x).dtype == torch.float32
    assert (layer.weight - weight).abs().max() <= layer.scale.float().max() * 0.6
    assert layer.bytes == 48 * 128 * bits / 8 + 48 * (128 // group) * 4


def test_a_layer_forgets_the_kernels_form_when_its_numbers_change():
    layer, other = quant_linear(32, 64, 4, 64)[0], quant_linear(32, 64, 4, 64)[0]
    other.low += 1
    x = numbers(2, 64, seed=1)
    before = layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.allclose(layer(x), before + x.sum(1, keepdim=True), atol=0.2)


class MemoryShards:
    """Held-out documents in memory."""

    lossless, special, vocab_size, folder = True, SPECIAL, VOCAB, Path("memory")

    def __init__(self, documents):
        self.stream = np.concatenate([[2, *document, 3] for document in documents]).astype(np.uint16)
        self.document_starts = np.cumsum([0, *(len(document) + 2 for document in documents)])
        self.document_bytes = np.array([3 * len(document) for document in documents])
        self.n_documents, self.n_tokens = len(documents), len(self.stream)

    def read(self, start, stop):
        return self.stream[start:stop]


def language(documents, seed):
    """Texts in which each token is mostly followed by one of two others."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(documents):
        tokens = [int(rng.integers(5, VOCAB))]
        for _ in range(int(rng.integers(5, 60))):
            step = 1 if rng.random() < 0.6 else 7 if rng.random() < 0.8 else int(rng.integers(35))
            tokens.append(5 + (tokens[-1] - 5 + step) % 35)
        texts.append(tokens)
    return texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer's folder."""
    place = tmp_path_factory.mktemp("tokenizer")
    words = [f"w{number}" for number in range(5, VOCAB)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(names, range(VOCAB))), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    serialised = tokenizer.to_str().encode()
    (place / "tokenizer.json").write_bytes(serialised)
    write_manifest(place, {"version": 1, "sha256": hashlib.sha256(serialised).hexdigest(), "vocab_size": VOCAB,
                           "special": SPECIAL})
    return place


def train(kind, folder):
    """A model that has learned the language above: a few seconds."""
    torch.manual_seed(0)
    config = load("demo" if kind == "masked" else "demo_gpt", ["train.sequence_length=64"])
    config.model = Model(layers=2, width=64, heads=4, mlp_width=128, tied=kind == "masked")
    model = build(config.model, VOCAB, kind != "masked", seed=0)
    steps = 60 if kind == "causal" else 160
    optimizer, texts = torch.optim.AdamW(model.parameters(), 3e-3), language(10 * steps, 1)
    for step in range(steps):
        batch = [[2, *text, 3] for text in texts[10 * step:10 * step + 10]]
        ids, documents = torch.tensor(sum(batch, [])), Documents.from_lengths(list(map(len, batch)))
        hide = torch.rand(len(ids)) < 0.2
        hidden = model(torch.where(hide, 4, ids) if kind == "masked" else ids, documents)
        logits, labels = (model.logits(hidden[hide]), ids[hide]) if kind == "masked" else (model.logits(hidden[:-1]), ids[1:])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    return Subject(f"a {kind} run", model.eval(), load_tokenizer(folder), SPECIAL, kind, 64, "cpu", {"weights": "abc"},
                   Path("runs/x"), config)


@pytest.fixture(scope="module", params=["causal", "masked"])
def subject(request, folder):
    return train(request.param, folder)


@pytest.fixture(scope="module")
def shards():
    return MemoryShards(language(200, 2))


SCHEMES = ["int8", "int4", "int3", "gptq4", "gptq3", "kv4"]


@pytest.fixture(scope="module")
def result(subject, shards):
    torch.set_num_threads(1)
    wanted = Quantize(schemes=SCHEMES, group=32, tokens=2000, calibration_tokens=3000)
    return measure(subject, shards, wanted, 0.15, lambda line: None)[0]


def test_what_bits_cost(result):
    rows = {row["scheme"]: row for row in result["rows"]}
    loss = {scheme: row["loss"] - rows["none"]["loss"] for scheme, row in rows.items()}
    assert rows["none"]["loss"] < 0.8 * np.log(35)  # it has learned something to lose
    assert abs(loss["int8"]) < 0.003 and abs(loss["int4"]) < 0.1 and abs(loss["gptq4"]) < 0.1
    assert loss["gptq3"] < loss["int3"] and abs(loss["gptq4"]) < loss["int3"]
    assert [round(rows[scheme]["bits_per_weight"], 2) for scheme in ("none", "int4", "gptq4", "gptq3")] == [32, 5, 5, 4]
    assert rows["int4"]["matrix_bytes"] * 32 == rows["none"]["matrix_bytes"] * 5
    assert rows["gptq3"]["file_bytes"] < rows["int4"]["file_bytes"] < rows["int8"]["file_bytes"] < rows["none"]["file_bytes"]
    assert all(row["tokens_per_second"] > 0 for row in rows.values())
    if result["objective"] == "causal":
        assert 0 < abs(loss["kv4"]) < 0.1
        assert rows["kv4"]["cache_bytes_per_token"] * 32 == rows["none"]["cache_bytes_per_token"] * 4.5
        assert rows["kv4"]["bits_per_byte"] == pytest.approx(rows["none"]["bits_per_byte"], abs=0.05)
    else:
        assert "kv4" not in rows and "no key/value cache" in result["skipped"]["kv4"]


def test_the_table(result):
    lines = quantize_lines(json.loads(json.dumps(result)))
    assert len(lines) == 1 + len(SCHEMES) + 1 and all(scheme in " ".join(lines) for scheme in ("none", *SCHEMES))
    assert ("generation, tokens/s" if result["objective"] == "causal" else "scoring, tokens/s") in lines[0]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=30), tokens=st.integers(1, 600),
       calibration=st.integers(1, 600))
def test_no_document_is_both_scored_and_calibrated_on(lengths, tokens, calibration):
    shards = MemoryShards([[5 + number] * length for number, length in enumerate(lengths)])
    told = []
    scored, text = split_heldout(shards, tokens, calibration, told.append)
    first, second = (set(part.read(0, part.n_tokens).tolist()) - {2, 3} for part in (scored, text))
    assert first and second and not first & second
    assert bool(told) == (tokens + calibration > shards.n_tokens)
    assert scored.n_documents == len(first) and scored.document_bytes.sum() == sum(3 * lengths[n - 5] for n in first)


def test_one_document_is_too_few():
    with pytest.raises(CramError, match="data.validation_fraction"):
        split_heldout(MemoryShards([[5, 6]]), 10, 10, print)


def test_only_the_matrices_of_the_blocks_change(subject):
    small = quantize_model(subject, "int4", 32)
    assert set(matrices(small.model)) == {f"blocks.{number}.{name}" for number in range(2) for name in (
        "attention.q", "attention.k", "attention.v", "attention.out", "mlp.gate", "mlp.up", "mlp.down")}
    assert all(isinstance(layer, QuantLinear) for layer in matrices(small.model).values())
    assert not any(isinstance(layer, QuantLinear) for layer in matrices(subject.model).values())
    for name in ("embedding.weight", "head.weight", "final_norm.weight", "blocks.0.attention.q_norm.weight"):
        assert torch.equal(small.model.state_dict()[name], subject.model.state_dict()[name])
    assert small.identity == {"weights": "abc", "scheme": "int4", "group": 32} and small.name.endswith("run-int4")


def test_refusals(subject, shards):
    with pytest.raises(CramError, match="'int5' is none of int8, int4"):
        quantize_model(subject, "int5", 32)
    with pytest.raises(CramError, match="'int5' is none of"):
        measure(subject, shards, Quantize(schemes=["int5"]), 0.15, print)
    with pytest.raises(CramError, match="attention.q has 64 inputs, which fall into no groups of 7 or a divisor of it"):
        quantize_model(subject, "int4", 7)
    with pytest.raises(CramError, match="needs calibration text"):
        quantize_model(subject, "gptq4", 32)
    with pytest.raises(CramError, match="quantized already"):
        quantize_model(quantize_model(subject, "int8", 32), "int4", 32)
    with pytest.raises(CramError, match="not a model of cram's"):
        quantize_model(replace(subject, model=torch.nn.Linear(2, 2)), "int4", 32)


@pytest.mark.parametrize("scheme", ["int8", "int4", "gptq3"])
def test_a_saved_model_is_the_same_model(subject, shards, folder, tmp_path, scheme):
    text = Part(shards, 100, 150)
    small = quantize_model(subject, scheme, 32, calibration_views(subject, text, 0.15))
    save_quantized(small, tmp_path / "out", folder)
    again = open_subject(tmp_path / "out", device="cpu")
    ids, documents = torch.arange(5, 25), Documents.from_lengths([8, 12])
    assert torch.equal(again.model.logits(again.model(ids, documents)), small.model.logits(small.model(ids, documents)))
    assert (again.name, again.kind, again.row, again.special, again.identity) == (
        small.name, small.kind, small.row, small.special, small.identity)
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == file_bytes(small.model)
    if small.kind == "causal":
        how = dict(tokens=8, temperature=0)
        assert generate(again, ["w7 w8"], **how) == generate(small, ["w7 w8"], **how)


def test_a_damaged_or_foreign_folder_is_refused(subject, folder, tmp_path):
    small = quantize_model(subject, "int4", 32)
    save_quantized(small, tmp_path, folder)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CramError, match="not what was written"):
        open_subject(tmp_path, device="cpu")
    path.unlink()
    with pytest.raises(CramError, match="not a whole quantized model"):
        open_subject(tmp_path, device="cpu")
    (tmp_path / "quantized.json").write_text('{"format": 99}')
    with pytest.raises(CramError, match="format 99"):
        open_subject(tmp_path, device="cpu")
    (tmp_path / "quantized.json").unlink()
    with pytest.raises(CramError, match="is not empty"):
        save_quantized(small, tmp_path, folder)
    with pytest.raises(CramError, match="nothing to save"):
        save_quantized(subject, tmp_path / "new", folder)


def test_nothing_asked_for(subject, shards):
    result, last = measure(subject, shards, Quantize(schemes=[]), 0.15, print)
    assert last is None and quantize_lines(result) == ["all: skipped, quantize.schemes is empty"]


def test_a_hybrid_model_loses_both_ways(folder, shards):
    hybrid = replace(train("causal", folder), kind="hybrid")
    wanted = Quantize(schemes=["gptq3", "kv4"], group=32, tokens=1000, calibration_tokens=1000)
    rows = measure(hybrid, shards, wanted, 0.15, print)[0]["rows"]
    assert [("masked_loss" in row, "bits_per_byte" in row) for row in rows] == [(True, True), (True, True), (False, True)]


def test_the_command(subject, shards, folder, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer").symlink_to(folder)
    monkeypatch.setattr("cram.evaluate.subject.open_subject", lambda *_, **__: subject)
    monkeypatch.setattr("data_prep.shards.Shards", lambda *_: shards)

    def run(*arguments):
        said = []
        assert command(argparse.ArgumentParser(), [str(tmp_path / "run"), *arguments], said.append) == 0
        return said

    said = run("int4", "--group", "32", "--tokens", "300", "--calibration-tokens", "99", "--save", str(tmp_path / "out"))
    assert [line.split()[0] for line in said[:3]] == ["scheme", "none", "int4"]
    assert said[-1].startswith(f"saved: {tmp_path / 'out'}")
    assert open_subject(tmp_path / "out").notes == {"scheme": "int4"}
    for arguments, message in [(["int4", "int8", "--save", "x"], "name one scheme"),
                               (["kv4", "--save", "x"], "name one scheme"), (["--group", "0"], "whole numbers from 1"),
                               (["int4", "--group", "9", "--save", "x"], "none of the schemes could be tried")]:
        with pytest.raises(CramError, match=message):
            run(*arguments)


def test_the_stage_writes_its_table(subject, shards, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("cram.after.quantize.open_run", lambda *folders, **_: opened.append(folders) or subject)
    monkeypatch.setattr("cram.after.quantize.Shards", lambda folder, split: shards)
    config, said = load("demo_gpt", ["quantize.schemes=[int8]", "quantize.group=32", "quantize.tokens=300",
                                     "quantize.calibration_tokens=100", "train.threads=1"]), []
    quantize_run(config, tmp_path / "data", tmp_path / "tokenizer", tmp_path / "pretrain", tmp_path, said.append)
    assert opened == [("demo_gpt", tmp_path / "pretrain", tmp_path / "tokenizer")]
    written = json.loads((tmp_path / "quantize.json").read_text())
    assert [row["scheme"] for row in written["rows"]] == ["none", "int8"] and said == quantize_lines(written)
    assert written["calibration_tokens"] == 0 and written["scored_tokens"] <= 300


@pytest.mark.parametrize("inputs, group, found", [(128, 64, 64), (96, 64, 32), (64, 48, 16), (8, 64, 8), (4, 4, 4)])
def test_groups_that_do_not_divide_give_way_to_one_that_does(inputs, group, found):
    assert group_of("layer", inputs, group) == found


def test_a_scheme_that_does_not_fit_is_skipped_and_the_others_go_on(subject, shards):
    result, _ = measure(subject, shards, Quantize(schemes=["int4", "int8"], group=7, tokens=500, calibration_tokens=500), 0.15, print)
    assert [row["scheme"] for row in result["rows"]] == ["none", "int8"] and "no groups of 7" in result["skipped"]["int4"]
