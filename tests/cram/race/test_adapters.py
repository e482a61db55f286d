"""What each program is told, and how text lies before it; without any checkout."""

import json
import pickle

import numpy as np
import pytest

from cram.race.adapters import Job, autoresearch, cramming, find, modded, nanogpt
from cram.race.clock import Outcome
from cram.race.course import Course


@pytest.fixture
def course(tiny, tmp_path):
    return Course("causal", tmp_path, tiny["text"], tiny["tokenizer"], tiny["data"], tmp_path / "text.yaml", 4000, 0.15)


@pytest.fixture
def job(course, tmp_path):
    def make(settings, amount, unit="steps", device="cpu"):
        for name in ("layout", "own", "checkout"):
            (tmp_path / name).mkdir(exist_ok=True)
        return Job("label", settings, course, tmp_path / "layout", tmp_path / "own", 3, amount, unit, device, 2,
                   tmp_path / "checkout", "python")
    return make


def options(argv):
    return dict(word.lstrip("-").split("=", 1) for word in argv if "=" in word)


def test_nanogpt_gets_steps_a_schedule_as_long_and_one_look_at_the_end(job, course, tmp_path):
    asked = job({"learning_rate": "3e-3", "batch_size": "8", "block_size": "32"}, 50)
    told = options(nanogpt.command(asked).argv)
    assert told["max_iters"] == told["lr_decay_iters"] == told["eval_interval"] == "50"
    assert told["warmup_iters"] == "5" and float(told["min_lr"]) == pytest.approx(3e-4) and told["compile"] == "False"
    assert nanogpt.tokens(asked, None) == 50 * 8 * 32
    assert options(nanogpt.command(job({"warmup_iters": "2", "min_lr": "0.0"}, 50)).argv)["warmup_iters"] == "2"
    lines = [(1.0, "step 0: train loss 4.2, val loss 4.2"), (1.5, "iter 0: loss 4.2500, time 10.00ms, mfu -100.00%"),
             (2.5, "iter 10: loss 3.1250, time 9.00ms, mfu 0.01%")]
    assert nanogpt.curve(asked, Outcome(3.0, 0, lines)) == [(1.5, 4.25), (2.5, 3.125)]
    nanogpt.lay_out(course, {}, tmp_path / "layout", "python", None)
    written = np.fromfile(tmp_path / "layout" / "train.bin", np.uint16)
    assert (written == course.training.read(0, course.training.n_tokens)).all()
    assert pickle.loads((tmp_path / "layout" / "meta.pkl").read_bytes()) == {"vocab_size": 300}


def test_cramming_gets_hours_or_steps(job):
    told = options(cramming.command(job({"arch.hidden_size": "64", "impl.microbatch_size": "16"}, 36.0, "seconds")).argv)
    assert float(told["budget"]) == pytest.approx(0.01) and told["arch.hidden_size"] == "64" and told["seed"] == "3"
    assert told["impl.compile_torch"] == "False" and told["impl.threads"] == "0"
    told = options(cramming.command(job({}, 7, "steps", "cuda")).argv)
    assert told["train.steps"] == "7" and float(told["budget"]) >= 100 and told["impl.compile_torch"] == "True"
    asked = job({"impl.microbatch_size": "16"}, 1)
    lines = [(5.0, "[now] Train loss 5.1000 at step 20 with lr 0.00100. [Avg: 5.2500]  Perf: 0.1s per step"),
             (9.0, "race: 33 micro-batches")]
    assert cramming.tokens(asked, Outcome(9.0, 0, lines)) == 33 * 16 * 128
    assert cramming.curve(asked, Outcome(9.0, 0, lines)) == [(5.0, 5.25)]


def test_modded_reads_shards_with_its_header_and_its_text_again_and_again(job, course, tmp_path):
    small = {"batch_size": "1024", "mbs": "1", "num_layers": "2", "model_dim": "128"}
    asked = job(small, 20, device="cuda")
    modded.lay_out(course, small, tmp_path / "layout", "python", None)
    shards = sorted((tmp_path / "layout" / "data" / "fineweb10B").glob("fineweb_train_*.bin"))
    header = np.fromfile(shards[-1], np.int32, 256)
    assert header[:3].tolist() == [20240520, 1, course.training.n_tokens] and len(shards) == modded.EPOCHS
    assert (np.fromfile(shards[-1], np.uint16, offset=1024) == course.training.read(0, course.training.n_tokens)).all()
    command = modded.command(asked)
    told = json.loads(command.argv[-1])
    assert told["constants"]["train_steps"] == 20 and told["constants"]["batch_size"] == 1024
    assert told["calls"]["GPT"] == {"vocab_size": 300, "num_layers": 2, "model_dim": 128} and command.env["WORLD_SIZE"] == "1"
    assert (tmp_path / "own" / "data" / "fineweb10B" / "fineweb_val_000000.bin").is_file()
    assert modded.curve(asked, Outcome(9.0, 0, [(4.0, "step:20/20 val_loss:3.25000 train_time:2s")])) == [(4.0, 3.25)]


def test_autoresearch_finds_our_text_and_tokenizer_in_its_cache(job, course, tmp_path):
    import sys
    import pyarrow.parquet

    autoresearch.lay_out(course, {}, tmp_path / "layout", sys.executable, None)
    cache = tmp_path / "layout" / ".cache" / "autoresearch"
    texts = pyarrow.parquet.read_table(cache / "data" / "shard_00000.parquet")["text"].to_pylist()
    assert len(texts) == course.training.n_documents
    assert [len(text.encode()) for text in texts] == course.training.document_bytes.tolist()     # byte for byte
    assert (cache / "tokenizer" / "tokenizer.pkl").stat().st_size > 0
    asked = job({"DEPTH": "4", "TOTAL_BATCH_SIZE": "65536", "WINDOW_PATTERN": "L", "MAX_SEQ_LEN": "512"}, 250.5, "seconds",
                "cuda")
    command = autoresearch.command(asked)
    told = json.loads(command.argv[-1])
    assert told["prepare"] == {"TIME_BUDGET": 250.5, "MAX_SEQ_LEN": 512}
    assert told["constants"] == {"DEPTH": 4, "TOTAL_BATCH_SIZE": 65536, "WINDOW_PATTERN": "L"}
    assert command.env["HOME"] == str(tmp_path / "layout")
    lines = [(8.0, "step 00003 (1.0%) | loss: 5.125000 | lrm: 1.00 | dt: 9ms"), (9.0, "num_steps:        40")]
    assert autoresearch.curve(asked, Outcome(9.0, 0, lines)) == [(8.0, 5.125)]
    assert autoresearch.tokens(asked, Outcome(9.0, 0, lines)) == 40 * 65536


@pytest.mark.parametrize("name", ["nanogpt", "cramming", "modded", "autoresearch"])
def test_a_folder_that_is_no_checkout_is_refused(name, tmp_path):
    assert "is no checkout of" in find(name).refuse("cuda", tmp_path)
