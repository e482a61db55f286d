"""Whole ablations of tiny models: side by side as one after the other, killed and resumed, with arms that fail."""

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace

import pytest

from cram.audit import read_ledger
from cram.insight.ablate import question, trials
from tests.cram import forked
from tests.cram.conftest import WORDS
from tests.cram.running import restore_torch  # noqa: F401

QUESTION = """\
question: Is wider better?
source: nobody
baseline: demo_gpt
settings:
  data: {{source: files, files: [{corpus}], workers: 1, validation_fraction: 0.1}}
  data.filters: {{min_chars: 20, max_repeated_line_fraction: null}}
  tokenizer.vocab_size: 300
  model: {{layers: 1, width: 32, heads: 2}}
  train: {{threads: 1, sequence_length: 32, batch_tokens: 512, validation_tokens: 512, validate_every: 0.25}}
  evaluate: {{tokens: 4096, minimal_pairs: 0, prompts: [The], sample_tokens: 1}}
  telemetry.log_every: 2
variants:
  plain: {{}}
{variants}
budget: {budget}
seeds: 2
metric: loss
ladder: {ladder}
expect: nothing
"""


@pytest.fixture(scope="session")
def ask(tmp_path_factory):
    """``ask(variants, budget, ladder) -> file`` about some hundred sentences of random words."""
    root = tmp_path_factory.mktemp("question")
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(20, 120))) + "." for _ in range(300)]
    (root / "corpus.jsonl").write_text("".join('{"text": "%s"}\n' % text for text in documents))

    def write(variants, budget="12 steps", ladder="[0.5, 1]", name="wide"):
        path = root / f"{name}.yaml"
        path.write_text(QUESTION.format(corpus=root / "corpus.jsonl", variants=variants, budget=budget, ladder=ladder))
        return path
    return write


def rows(out, name="wide"):
    return json.loads((out / name / "ablation.json").read_text())["rows"]


def bare(found):
    """Rows without what depends on the clock."""
    clock = ("seconds", "training_seconds", "head")
    return [{name: value for name, value in row.items() if name not in clock} for row in found]


@pytest.mark.slow
def test_side_by_side_gives_the_same_bits_as_one_after_the_other(ask, tmp_path, cram):
    path = ask("  narrow: {model.width: 16}\n  short: {budget: 0.5}")
    dry = cram("ablate", path, "--out", tmp_path / "one", "--dry-run")
    assert "6 runs, 60 steps in all" in dry.out and not (tmp_path / "one").exists()
    one, two = (cram("ablate", path, "--out", tmp_path / name, "--jobs", jobs) for name, jobs in (("one", 1), ("two", 2)))
    assert one.code == two.code == 0, one.err + two.err
    assert bare(rows(tmp_path / "one")) == bare(rows(tmp_path / "two"))
    assert {(row["arm"], row["seed"], row["factor"]) for row in rows(tmp_path / "one")} == {
        (arm, seed, factor) for arm, factor in (("plain", 1.0), ("narrow", 1.0), ("short", 0.5)) for seed in (0, 1)}

    links = tmp_path / "one" / "wide" / "runs"
    ledgers = [read_ledger(path / "pretrain" / "ledger.jsonl") for path in sorted(links.iterdir())]
    assert len(ledgers) == 6 and {row["head"] for row in rows(tmp_path / "one")} == {ledger.head for ledger in ledgers}
    assert f"{sum(ledger.tokens for ledger in ledgers):,} tokens" in one.out

    again = cram("ablate", path, "--out", tmp_path / "one")
    assert "6 of 6 runs are there already" in again.out and [row["head"] for row in rows(tmp_path / "one")] == [
        row["head"] for row in rows(tmp_path / "one")]
    board_has_every_run_once(tmp_path / "one" / "wide")


def board_has_every_run_once(folder):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    board = EventMultiplexer().AddRunsFromDirectory(str(folder / "tensorboard")).Reload()
    names = [path.name for path in (folder / "runs").iterdir()]
    assert sorted(board.Runs()) == sorted(names)
    for row in json.loads((folder / "ablation.json").read_text())["rows"]:
        name = f"{row['arm']}{'-x0.5' if row['factor'] == 0.5 else ''}-seed{row['seed']}"
        assert {"loss/train", "loss/validation"} <= set(board.Runs()[name]["scalars"])
        assert board.Scalars(name, "final/loss")[0].value == pytest.approx(row["value"])
        start = board.SummaryMetadata(name, "_hparams_/session_start_info")
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        hparams = HParamsPluginData.FromString(start.plugin_data.content).session_start_info.hparams
        assert set(hparams) == {"arm", "seed", "model.width", "budget"}
        assert hparams["model.width"].string_value == ("16" if row["arm"] == "narrow" else "32")


@pytest.mark.slow
def test_killed_it_goes_on_where_it_was(ask, tmp_path, root, cram):
    path = ask("  narrow: {model.width: 16}", budget="80 steps", ladder="[]", name="killed")
    command = [sys.executable, "-m", "cram", "ablate", str(path), "--out", str(tmp_path / "out"), "--jobs", "2",
               "train.checkpoint_every_steps=10"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = forked.Popen(command, env=environment, stdout=forked.DEVNULL, stderr=forked.DEVNULL)
    ledgers = lambda: list((tmp_path / "out" / "artifacts").glob("pretrain-*/ledger.jsonl"))  # noqa: E731
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(len(ledger.read_bytes().splitlines()) > 2 for ledger in ledgers()):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ledgers() and not (tmp_path / "out" / "killed" / "ablation.json").exists()
    time.sleep(1.5)     # processes beside it end when it is gone
    result = forked.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert cram("ablate", path, "--out", tmp_path / "whole", "train.checkpoint_every_steps=10").code == 0
    sessions = [read_ledger(path).sessions for path in ledgers()]
    assert max(sessions) == 2 and len(sessions) == 4
    resumed, straight = ([row["value"] for row in rows(tmp_path / name, "killed")] for name in ("out", "whole"))
    assert resumed == straight


@pytest.mark.slow
def test_an_arm_that_fails_is_a_result(ask, tmp_path, cram):
    path = ask("  hot: {optimizer.lr: 1e+30, train.skip_limit: 2, train.rollback_limit: 1}\n  narrow: {model.width: 16}",
               budget="60 steps", ladder="[]", name="failing")
    result = cram("ablate", path, "--out", tmp_path, "--seeds", "1")
    assert result.code == 0, result.err
    found = {row["arm"]: row for row in rows(tmp_path, "failing")}
    assert "error" in found["hot"] and "value" in found["plain"] and "value" in found["narrow"]
    page = (tmp_path / "failing" / "ablation.md").read_text().replace("\\", "")
    assert "hot: failed beside plain" in result.out and found["hot"]["error"] in page
    assert found["hot"]["steps"] > 0 and f"{sum(row['tokens'] for row in found.values()):,} tokens" in result.out


def test_a_trial_says_which_other_it_replaces(ask, tmp_path, cram):
    """Same folder, another budget or other settings: the record there goes. The same again, or more seeds, is no loss."""
    file = ask("  wider: {model.width: 48}")
    (tmp_path / "wide").mkdir()
    kept = question.plain_dict(question.read(file)) | {"schema": 1}
    (tmp_path / "wide" / "ablation.json").write_text(json.dumps(kept))

    def told(*more):
        return cram("ablate", file, "--out", tmp_path, "--dry-run", *more)

    for same in ((), ("--seeds", 5)):
        assert told(*same).code == 0 and "takes its place" not in told(*same).out
    for more, what in ((("--budget", "24 steps"), "budget '12 steps', now '24 steps'"),
                       (("model.bias=true",), "model.bias=true")):
        found = told(*more)
        assert found.code == 0 and what in found.out and "takes its place; --out DIR keeps both" in found.out
    (tmp_path / "wide" / "ablation.json").write_text("{")
    assert "replaced: " in told().out


@pytest.mark.slow
def test_a_shipped_question_is_answered_in_its_tiny_size(tmp_path, cram):
    """One of all; the others: cram ablate all --tiny"""
    result = cram("ablate", "repetition", "--tiny", "--seeds", "1", "--budget", "3e9 flops", "--out", tmp_path)
    assert result.code == 0 and "failed" not in result.out, result.out + result.err
    found = rows(tmp_path, "repetition-tiny")
    assert len(found) == 4 and len({row["scored_on"] for row in found}) == 1
    page = (tmp_path / "repetition-tiny" / "ablation.md").read_text()
    assert "cram ablate repetition --tiny --seeds 1 --budget '3e9 flops'" in page


def test_memory_is_measured_anew_when_the_model_is_another(ask, tmp_path):
    """Under the same names of question, arm and seed, as after: cram ablate recomputation model.width=64"""
    path = ask("  wide: {model.width: 256}", name="memory")
    narrow, wide = trials.trials(question.read(path, seeds=1), tmp_path)[:2]
    wide = replace(wide, links=narrow.links)
    few, many = trials.peak_memory(narrow), trials.peak_memory(wide)
    assert many > 2 * few
    assert (trials.peak_memory(narrow), trials.peak_memory(wide)) == (few, many)


def test_without_a_card_runs_for_a_card_are_refused_and_none_is_tried(ask, tmp_path, cram, monkeypatch):
    path = ask("  wide: {model.width: 64}", name="card")
    path.write_text(path.read_text() + "card: {budget: 20 steps}\n")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("cram.insight.ablate.cost.step_cost", lambda config, kind: pytest.fail("a step was tried"))
    refused = cram("ablate", path, "--card", "--out", tmp_path / "out")
    assert refused.code == 2 and "torch sees no CUDA card here" in refused.err and not (tmp_path / "out").exists()
    looked = cram("ablate", path, "--card", "--dry-run", "--out", tmp_path / "out")
    assert looked.code == 0 and "not tried here: there is no card" in looked.out, looked.err
