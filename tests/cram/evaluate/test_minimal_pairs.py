"""Minimal pairs: what counts as right, by which groups, and what is wrong with a file."""

import json

import pytest

from cram.errors import CramError
from data_prep.errors import DataError
from cram.evaluate.minimal_pairs import read_pairs, score_minimal_pairs, wilson


class Words:
    """One token a word: its length, as far as the vocabulary goes."""

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return type("Encoding", (), {"ids": [4 + len(word) for word in text.split()]})()


def write(mirror, name, rows):
    folder = mirror / "nyu-mll" / "blimp" / name
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    assert scores == {"skipped": f"no nyu-mll/blimp in {tmp_path}"}


def test_a_bad_line_is_named(tmp_path):
    write(tmp_path, "x", [{"sentence_good": "a", "sentence_bad": "b"}, {"sentence_good": "a"}])
    assert len(read_pairs(tmp_path, 1)) == 1
    with pytest.raises(CramError, match=r"train.jsonl, row 2: has no field sentence_bad"):
        read_pairs(tmp_path, 2)
    (tmp_path / "nyu-mll/blimp/x/train.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"train.jsonl, line 1: not JSON"):
        read_pairs(tmp_path, 2)
