"""Minimal pairs in batches against one sentence at a time."""

import json

import numpy as np
import pytest
import torch

from cram.errors import CramError
from cram.evaluate.minimal_pairs import read_pairs, score_minimal_pairs, sentence_scores, wilson
from cram.ops import Documents


class Words:
    """One token a word: its length, as far as the vocabulary goes."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return type("Encoding", (), {"ids": [4 + len(word) for word in text.split()]})()


def write(mirror, name, rows):
    folder = mirror / "nyu-mll" / "blimp" / name
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def one_by_one(model, sentences):
    scores = []
    for tokens in sentences:
        total = 0.0
        for position, token in enumerate(tokens):
            if model.causal:
                seen = [2, *tokens[:position]]
            else:
                seen = [2, *tokens[:position], 4, *tokens[position + 1:], 3]
            total += model.log_probabilities(seen)[token]
        scores.append(total)
    return scores


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 37, 8192])
def test_batches_equal_one_by_one(make, causal, batch_tokens):
    rng = np.random.default_rng(0)
    sentences = [rng.integers(5, make.vocab, rng.integers(1, 9)).tolist() for _ in range(30)]
    model = make.bag(causal)
    scores = sentence_scores(model, sentences, make.special, batch_tokens=batch_tokens)
    assert scores == pytest.approx(one_by_one(model, sentences), abs=1e-4)


def test_accuracy_by_phenomenon(tmp_path, make):
    rows = [{"sentence_good": "a bb ccc", "sentence_bad": "ccc bb a a", "linguistics_term": "order"}] * 3
    rows += [{"sentence_good": "dddd dddd", "sentence_bad": "a", "linguistics_term": "order"}] * 9
    write(tmp_path, "one", rows)
    write(tmp_path, "two", [{"sentence_good": "a", "sentence_bad": "a a a"}] * 2)
    model = make.uniform(causal=True)  # then the shorter sentence is the likelier one
    scores = score_minimal_pairs(model, Words(), tmp_path, 4, make.special)
    assert scores["pairs"] == 6 and scores["accuracy"] == pytest.approx(5 / 6)
    assert scores["phenomena"]["order"] == {"accuracy": 0.75, "pairs": 4, "low": wilson(3, 4)[0], "high": wilson(3, 4)[1]}
    assert scores["phenomena"]["two"]["accuracy"] == 1.0  # without a term, the folder names it
    assert score_minimal_pairs(model, Words(), tmp_path, 4, make.special) == scores


def test_wilson_interval_against_its_definition():
    """The bounds are the proportions p at which the observed share lies 1.96 standard errors away."""
    for hits, n in [(3, 4), (0, 10), (10, 10), (550, 1000)]:
        for bound in wilson(hits, n):
            assert abs(hits / n - bound) == pytest.approx(1.96 * (bound * (1 - bound) / n) ** 0.5, abs=1e-9)


def test_no_files_is_a_reason_not_a_failure(tmp_path, make):
    scores = score_minimal_pairs(make.uniform(True), Words(), tmp_path, 4, make.special)
    assert scores == {"skipped": f"no nyu-mll/blimp/*/train.jsonl in {tmp_path}"}


def test_a_bad_line_is_named(tmp_path):
    write(tmp_path, "x", [{"sentence_good": "a", "sentence_bad": "b"}, {"sentence_good": "a"}])
    assert len(read_pairs(tmp_path, 1)) == 1
    with pytest.raises(CramError, match=r"train.jsonl, line 2: .*missing: 'sentence_bad'"):
        read_pairs(tmp_path, 2)
    (tmp_path / "nyu-mll/blimp/x/train.jsonl").write_text("{\n")
    with pytest.raises(CramError, match=r"train.jsonl, line 1: not JSON"):
        read_pairs(tmp_path, 2)


def test_a_real_transformer_agrees_with_itself_one_by_one(make):
    from cram import schema
    from cram.model import Transformer

    config = schema.Model(layers=2, width=32, heads=2, zero_init=False, init_std=0.2)
    sentences = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14, 15]]
    for causal in (True, False):
        torch.manual_seed(0)
        model = Transformer(config, make.vocab, causal)
        expected = []
        for tokens in sentences:
            row = [2, *tokens, 3]
            total = 0.0
            for position in range(1, len(tokens) + 1):
                seen = row if causal else [*row[:position], 4, *row[position + 1:]]
                bounds = torch.zeros(len(row), dtype=torch.int32)
                with torch.no_grad():
                    hidden = model(torch.tensor(seen), Documents(bounds, bounds + len(row), len(row)))
                    log_p = model.logits(hidden[position - causal]).double().log_softmax(-1)
                total += log_p[row[position]].item()
            expected.append(total)
        assert sentence_scores(model, sentences, make.special, batch_tokens=12) == pytest.approx(expected, abs=1e-4)
