"""Our own trainer in a race, and the real peers where their checkouts are given: CRAM_PEERS is a folder with nanoGPT, cramming,
modded-nanogpt, autoresearch (CRAM_PEERS_PYTHON: an interpreter with hydra-core, datasets and transformers, for cramming)."""

import json
import os
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cram.race.adapters import autoresearch, find, modded
from cram.race.clock import shared_environment
from cram.race.competitor import Competitor
from cram.race.course import Course, prepare
from cram.race.race_file import Entry, Race
from cram.race.scoring import PROGRAMS, of_rows, program
from tests.cram.conftest import WORDS

pytestmark = pytest.mark.slow


def checkout(name):
    folder = Path(os.environ.get("CRAM_PEERS", "/nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"no checkout of {name}: set CRAM_PEERS to a folder that holds it")
    return folder.resolve()


@pytest.mark.parametrize("name, adapter, kind, settings, amount", [
    ("nanoGPT", "nanogpt", "causal", {"n_layer": "1", "n_head": "2", "n_embd": "32", "block_size": "16", "batch_size": "4",
                                      "log_interval": "1"}, 5),
    ("cramming", "cramming", "masked", {"arch.num_transformer_layers": "1", "arch.hidden_size": "32",
                                        "arch.intermed_size": "64", "arch.attention.num_attention_heads": "2",
                                        "impl.microbatch_size": "2",
                                        "train.batch_size": "2", "impl.print_loss_every_nth_step": "1"}, 2.0)])
def test_a_peer_trains_and_is_scored(name, adapter, kind, settings, amount, tiny, tmp_path):
    folder = checkout(name)
    course = Course(kind, tmp_path, tiny["text"], tiny["tokenizer"], tiny["data"], tmp_path / "text.yaml", 4000, 0.15)
    entry = Entry(adapter, adapter, settings)
    race = Race("real", kind, 120.0, {adapter: entry}, adapter, threads=1, seeds=1)
    each = Competitor(race, entry, find(adapter), course, tmp_path / "work", folder,
                      os.environ.get("CRAM_PEERS_PYTHON", sys.executable))
    job = each.job("once", amount, seed=1)
    outcome = each.start(job, 120.0)
    assert outcome.failure is None, outcome.failure
    found = each.judge(job, outcome, False)
    assert found.get("failure") is None, found["failure"]
    assert 0 < found["score"]["loss"] < 1.5 * 5.71                              # log(300) = 5.70
    assert found["tokens"] > 0 and found["parameters"] > 300 * 32
    assert found["curve"] and each.commit != "unknown"
    assert subprocess.run(["git", "-C", str(folder), "status", "--porcelain"], capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize("kind, config", [("causal", "demo_gpt"), ("masked", "demo")])
def test_our_own_runs_like_everybody_else(kind, config, tmp_path):
    race = Race("own", kind, 60.0, {"cram": Entry("cram", "cram", {"config": config, "model.width": "32", "model.heads": "2"})},
                "cram", threads=1, heldout_bytes=20_000, text=("demo", *small_text(tmp_path)))
    course = prepare(race, tmp_path / "course", lambda line: None)
    each = Competitor(race, race.entries["cram"], find("cram"), course, tmp_path / "work", None)
    job = each.job("once", 3, seed=1, unit="steps")
    outcome = each.start(job, 60.0)
    assert outcome.failure is None, outcome.failure
    assert not any("tokenizer: done" in line for _, line in outcome.lines)      # the shared stages are found, not made again
    found = each.judge(job, outcome, False)
    assert found.get("failure") is None and found["tokens"] == 3 * 2048 == 3 * each.adapter.tokens_per_step(job.settings)
    assert 0 < found["score"]["loss"] < 1.1 * 5.71 and found["curve"][-1][0] <= outcome.seconds
    assert each.adapter.context(job.settings) == 128


def small_text(folder):
    """Settings for some hundred sentences of random words."""
    rng = random.Random(0)
    (folder / "corpus.jsonl").write_text("".join(
        json.dumps({"text": " ".join(rng.choices(WORDS, k=rng.randint(20, 120))) + "."}) + "\n" for _ in range(300)))
    return ("data.source=files", f"data.files=[{folder}/corpus.jsonl]", "tokenizer.vocab_size=300", "data.filters.min_chars=20",
            "data.validation_fraction=0.1", "data.workers=1")


BUILD_MODDED = """
    import json, sys, torch, constants
    ask = json.loads(sys.argv[1])
    torch.manual_seed(0)
    model = constants.definitions(ask["script"])["GPT"](**ask["shape"])
    torch.save(model.state_dict(), ask["checkpoint"])
    ids = torch.tensor(ask["ids"])
    with torch.no_grad():
        print(model(ids[:-1][None], ids[1:][None]).item())
"""
BUILD_AUTORESEARCH = """
    import json, os, sys, torch, types
    import autoresearch_standins, constants
    from dataclasses import asdict
    ask = json.loads(sys.argv[1])
    autoresearch_standins.prepare(ask["checkout"], sdpa=True)
    found = constants.definitions(os.path.join(ask["checkout"], "train.py"),
                                  fa3=types.SimpleNamespace(flash_attn_func=autoresearch_standins.attend))
    torch.manual_seed(0)
    config = found["GPTConfig"](sequence_len=32, vocab_size=50, n_layer=2, n_head=2, n_kv_head=2, n_embd=128)
    model = found["GPT"](config)
    model.init_weights()
    torch.save({"model": model.state_dict(), "config": asdict(config)}, ask["checkpoint"])
    ids = torch.tensor(ask["ids"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        print(model(ids[:-1][None], ids[1:][None], reduction="sum").item())
"""


@pytest.mark.parametrize("name, build, scorer", [("modded-nanogpt", BUILD_MODDED, "modded_score"),
                                                 ("autoresearch", BUILD_AUTORESEARCH, "autoresearch_score")])
def test_models_made_for_cards_are_scored_as_their_own_loss_says(name, build, scorer, tmp_path):
    import numpy as np

    folder, ids = checkout(name), np.random.default_rng(0).integers(0, 50, 25).tolist()
    ask = {"checkout": str(folder), "script": str(folder / modded.SCRIPT), "checkpoint": str(tmp_path / "model.pt"), "ids": ids,
           "shape": {"vocab_size": 50, "num_layers": 1, "model_dim": 128}, "request": str(tmp_path / "request.npz"),
           "answer": str(tmp_path / "answer.npz"), "vocab_size": 50, "device": "cpu", "threads": 1}
    np.savez(ask["request"], **of_rows([(ids[:-1], range(24), ids[1:])])._asdict())
    environment = shared_environment(1) | {"PYTHONPATH": str(PROGRAMS)}
    own = subprocess.run([sys.executable, "-c", textwrap.dedent(build), json.dumps(ask)], capture_output=True, text=True,
                         env=environment)
    assert own.returncode == 0, own.stderr
    (tmp_path / "question.json").write_text(json.dumps(ask))
    scored = subprocess.run([*program(scorer), str(tmp_path / "question.json")], capture_output=True, text=True,
                            env=environment)
    assert scored.returncode == 0, scored.stderr
    with np.load(ask["answer"]) as answer:
        assert answer["nats"].sum() == pytest.approx(float(own.stdout.split()[-1]), rel=2e-3)


def test_trainers_for_cards_refuse_the_processor():
    for adapter in (modded, autoresearch):
        assert "CUDA" in adapter.refuse("cpu", None)
