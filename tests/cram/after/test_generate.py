"""Generated text: cached or not, alone or in company, streamed whole character by whole character; and the two commands."""

import argparse
import io
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given, settings, strategies as st

from cram.after import fill_command, generate_command
from cram.after.generate import RereadingReader, Text, continue_texts, generate
from cram.after.sampling import Sampling
from cram.errors import CramError
from cram.evaluate.subject import Subject
from cram.model import build
from cram.schema import Model

WORDS = ["Returns the number of the array.", "Häuser für 東京 🙂 don't.", "If True, the copy is returned."] * 4
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def train_bpe():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.train_from_iterator(WORDS, tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL_TOKENS, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.encode_special_tokens = True
    return tokenizer


BPE = train_bpe()


def make(kind="causal", row=64, **changes):
    shape = {"layers": 2, "width": 32, "heads": 4, "zero_init": False, "init_std": 0.3, "tied": False}
    model = build(Model(**shape | changes), BPE.get_vocab_size(), kind != "masked", seed=0).eval()
    return Subject("a run", model, BPE, SPECIAL, kind, row, "cpu", {}, Path("."))


PROMPTS = ["Returns the", "", "If True, the copy is", "für 東"]


def test_a_prompt_and_a_seed_give_the_same_text_in_any_company():
    subject, how = make(), dict(tokens=12, temperature=0.9, top_p=0.9)
    together = generate(subject, PROMPTS, **how, seed=5)
    assert together == [generate(subject, [prompt], **how, seed=5)[0] for prompt in PROMPTS]
    assert together[::-1] == generate(subject, PROMPTS[::-1], **how, seed=5)
    assert generate(subject, PROMPTS[:2], **how, seed=[5, 6])[0] == together[0]
    assert len({generate(subject, PROMPTS[:1], **how, seed=seed)[0].text for seed in range(4)}) > 1


@pytest.mark.parametrize("kind", ["causal", "hybrid"])
@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2, "window": 4}, {"document_mask": False}])
def test_with_a_cache_or_without_the_text_is_the_same(kind, changes):
    subject = make(kind, **changes)
    texts = [Text(BPE, [2, *subject.encode(prompt)]) for prompt in PROMPTS]
    with torch.no_grad():
        continue_texts(RereadingReader(subject.model, len(PROMPTS), "cpu"), texts, tokens=15, sampling=Sampling(0.7),
                       seeds=[3] * len(PROMPTS), end=3, never=[0, 1, 2, 4])
    found = generate(subject, PROMPTS, tokens=15, temperature=0.7, seed=3)
    assert [(result.text, result.tokens, result.reason) for result in found] == [
        (text.text, text.tokens, text.reason) for text in texts]


def test_special_tokens_are_not_said_and_sep_ends_the_text():
    subject = make()
    with torch.no_grad():
        subject.model.head.weight[[0, 1, 2, 4]] = 50 * torch.eye(5)[:4, :1] + 50
        results = generate(subject, PROMPTS, tokens=30, temperature=5.0, seed=1)
    assert all(min(result.tokens, default=5) >= 5 and result.reason in ("end", "length") for result in results)
    with torch.no_grad():
        subject.model.final_norm.register_forward_hook(lambda norm, inputs, output: torch.ones_like(output))
        subject.model.head.weight.zero_()
        subject.model.head.weight[3] = 1
    assert {(result.text, result.reason) for result in generate(subject, PROMPTS, tokens=9, temperature=0)} == {("", "end")}


def test_the_state_of_the_model_and_of_the_global_generator_stay():
    subject = make()
    subject.model.train()
    before = torch.get_rng_state()
    generate(subject, PROMPTS, tokens=5)
    assert torch.equal(torch.get_rng_state(), before) and subject.model.training


def test_a_longer_text_than_trained_on_is_said_once():
    told = []
    generate(make(row=8), PROMPTS, tokens=12, say=told.append)
    assert len(told) == 1 and "trained on 8 at most" in told[0]
    generate(make(row=64), PROMPTS, tokens=12, say=told.append)
    assert len(told) == 1


def tell(text, ids, most):
    pieces = [text.add(token) for token in ids[:most] if text.reason is None]
    return [*pieces, text.finish("length")] if text.reason is None else pieces


@settings(max_examples=60, deadline=None)
@given(prompt=st.text(max_size=6), content=st.text(max_size=20), cut=st.integers(0, 30))
def test_streamed_pieces_are_whole_characters_and_add_up(prompt, content, cut):
    first, ids = BPE.encode(prompt).ids, BPE.encode(content).ids
    text = Text(BPE, [2, *first])
    pieces = tell(text, ids, cut)
    assert "".join(pieces) == text.text and text.tokens == ids[:cut]
    assert BPE.decode(first) + text.text == BPE.decode(first + ids[:cut])
    if "\ufffd" not in content:
        assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_a_character_of_several_tokens_comes_when_it_is_whole():
    ids = BPE.encode("é☃").ids
    assert len(ids) > 3  # é and the snowman were not in the text that the vocabulary is from
    text = Text(BPE, [2])
    assert [text.add(token) for token in ids] == ["", "é", "", "", "☃"]


@settings(max_examples=60, deadline=None)
@given(content=st.text("ab. ", max_size=25), stop=st.lists(st.text("ab. ", min_size=1, max_size=4), min_size=1, max_size=2))
def test_a_text_ends_before_the_first_string_to_stop_at(content, stop):
    text = Text(BPE, [2], stop)
    pieces = tell(text, BPE.encode(content).ids, 99)
    whole = "".join(pieces)
    assert whole == text.text and content.startswith(whole) and not any(string in whole for string in stop)
    assert (text.reason == "stop") == any(string in content for string in stop)
    if text.reason == "length":
        assert whole == content


def test_streaming_tells_the_same_text():
    told = {}
    results = generate(make(), PROMPTS, tokens=20, stop=["a", "th"],
                       on_text=lambda row, piece: told.setdefault(row, []).append(piece))
    assert ["".join(told.get(row, [])) for row in range(len(PROMPTS))] == [result.text for result in results]


@pytest.mark.parametrize("setting, message", [
    ({"tokens": 0}, "0 tokens to generate"), ({"stop": [""]}, "empty string"), ({"seed": [1]}, "1 seeds for 4"),
    ({"temperature": -1}, "temperature -1")])
def test_refusals(setting, message):
    with pytest.raises(CramError, match=message):
        generate(make(), PROMPTS, **{"tokens": 3} | setting)


def test_a_masked_model_does_not_continue_text():
    with pytest.raises(CramError, match="cram fill"):
        generate(make("masked"), PROMPTS, tokens=3)
    assert generate(make(), [], tokens=3) == []


def run(module, subject, monkeypatch, *arguments):
    """(lines said, exit code) of a command on this subject."""
    monkeypatch.setattr("cram.evaluate.subject.open_subject", lambda *_, **__: subject)
    said = []
    return said, module.command(argparse.ArgumentParser(), ["runs/x", *arguments], said.append)


def test_the_command_streams_one_text_and_tells_several(monkeypatch, capsys):
    subject = make()
    wanted = generate(subject, ["Returns the"], tokens=8, temperature=0.8, top_p=0.9, seed=2)[0].text
    assert run(generate_command, subject, monkeypatch, "Returns the", "--tokens", "8", "--seed", "2") == ([""], 0)
    out, err = capsys.readouterr()
    assert out == "Returns the" + wanted and "tokens, " in err and "a second" in err
    with pytest.raises(CramError, match="cram fill"):
        run(generate_command, make("masked"), monkeypatch, "Returns the")
    assert capsys.readouterr().out == ""  # nothing is told of a text that cannot be
    monkeypatch.setattr("sys.stdin", io.StringIO("Returns the\nIf True\n"))
    said, _ = run(generate_command, subject, monkeypatch, "-", "--tokens", "8", "--seed", "2", "--count", "2")
    assert len(said) == 4 and said[0] == f"Returns the{wanted}\n" and said[2].startswith("If True")
    assert said[0] != said[1].replace("\n", "") and capsys.readouterr().out == ""


def test_the_command_fills_every_blank(monkeypatch):
    said, code = run(fill_command, make("masked"), monkeypatch, "the [MASK] of [MASK].", "--top", "3")
    assert code == 0 and "[MASK]" not in said[0] and [line.count("%") for line in said] == [0, 3, 3]
    assert run(fill_command, make("hybrid"), monkeypatch, "the [MASK] of")[1] == 0
    for subject, sentence, message in [(make(), "a [MASK]", "cram generate"),
                                       (make("masked"), "no blank", r"no \[MASK\] to fill")]:
        with pytest.raises(CramError, match=message):
            run(fill_command, subject, monkeypatch, sentence)
    with pytest.raises(CramError, match="--top 0"):
        run(fill_command, make("masked"), monkeypatch, "a [MASK]", "--top", "0")
