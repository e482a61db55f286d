"""Minimal pairs at each validation: scored as the benchmark scores them, charged, and without effect on the run."""

import json

import pytest

from cram.audit import read_ledger
from cram.checkpoint import load_model
from cram.errors import CramError
from cram.evaluate.minimal_pairs import sample_pairs, score_sample
from cram.telemetry import read_metrics
from data_prep.shards import Shards
from data_prep.tokenizer import load_tokenizer
from tests.cram.running import run, same

WORDS = "model attention layer token budget gradient update step matrix vector sample batch loss rate mask row head key".split()


@pytest.fixture
def mirror(tmp_path):
    for number in range(4):
        folder = tmp_path / "mirror" / "nyu-mll" / "blimp" / f"paradigm_{number}"
        folder.mkdir(parents=True)
        rows = [{"sentence_good": f"the {a} of the {b}", "sentence_bad": f"{a} the the {b} of"}
                for a, b in zip(WORDS[number:], WORDS[number + 3:])]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "mirror"


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_pairs_are_scored_at_each_validation(tiny, small_config, tmp_path, mirror, objective):
    asked = (f"objective.type={objective}", "train.validate_every=0.25")
    looked = run(small_config(*asked, "train.validation_pairs=20", f"evaluate.mirror={mirror}"), tiny, tmp_path / "looked")
    plain = run(small_config(*asked), tiny, tmp_path / "plain")
    rows = [row for row in read_metrics(tmp_path / "looked" / "metrics.jsonl") if row["kind"] == "validation"]
    assert len(rows) == 3 and all(0 <= row["minimal_pairs"] <= 1 for row in rows)
    assert all("minimal_pairs" not in row for row in read_metrics(tmp_path / "plain" / "metrics.jsonl"))
    assert same(looked, plain)  # the same weights: nothing was drawn, nothing trained
    assert read_ledger(tmp_path / "looked" / "ledger.jsonl").account["validation"] > 0


def test_the_score_is_that_of_the_benchmark(tiny, small_config, tmp_path, mirror):
    from cram.device import choose_device
    from cram.evaluate.midway import Look
    config = small_config("objective.type=causal", "train.validation_pairs=20", f"evaluate.mirror={mirror}")
    run(config, tiny, tmp_path / "run")
    model, tokenizer = load_model(tmp_path / "run", "cpu", print), load_tokenizer(tiny["tokenizer"])
    shards = Shards(tiny["data"], "validation")
    look = Look(config, shards, tokenizer)
    scores, sample = look(model, choose_device(config.train), 512)
    pairs = sample_pairs(mirror, 20, seed=0)
    assert len(pairs) == 20 and scores["minimal_pairs"] == score_sample(model, tokenizer, pairs, shards.special)["accuracy"]
    assert isinstance(sample, str) and look.tokens > config.train.validation_tokens


def test_without_pairs_it_is_said_before_the_run(tiny, small_config, tmp_path):
    with pytest.raises(CramError, match="train.validation_pairs needs BLiMP: set evaluate.mirror"):
        small_config("train.validation_pairs=20")
    with pytest.raises(CramError, match="train.validation_pairs: no nyu-mll/blimp"):
        run(small_config("train.validation_pairs=20", f"evaluate.mirror={tmp_path}"), tiny, tmp_path / "run")
