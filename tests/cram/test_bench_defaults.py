"""cram bench defaults: every default of ours has its comparison, arms differ in their switch alone, verdicts are arithmetic."""

import dataclasses
import json

import pytest

from cram.bench import defaults
from cram.bench.defaults import BASELINE, NO_TECHNIQUE, RECIPES, SWITCHES, Plan, Switch, uncovered
from cram.cli import main
from cram.config import KEYS, SECTIONS, load, lookup
from cram.errors import CramError
from cram.explain import differences
from tests.cram.test_bench_data import documents

ARMS = [(switch, on) for switch in SWITCHES for on in switch.on]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_default_that_is_not_crammings_has_a_comparison(recipe):
    assert uncovered(load(recipe), load(BASELINE)) == []


def test_a_new_default_would_be_missed():
    changed = load("demo", ["train.ema=0.99", "optimizer.beta2=0.95", "data.packing=best-fit"])
    assert uncovered(changed, load(BASELINE)) == ["optimizer.beta2", "train.ema"]
    without = [switch for switch in SWITCHES if switch.name != "QK-norm"]
    assert uncovered(load("gpt_day"), load(BASELINE), without) == ["model.qk_norm"]


def test_only_what_is_there_is_named():
    assert set(NO_TECHNIQUE) <= {*KEYS, *SECTIONS}
    compared = {key for switch in SWITCHES if not switch.name.startswith("on trial") for key in switch.keys}
    differing = {key for recipe in RECIPES for key, *_ in differences(load(recipe), load(BASELINE))}
    assert compared - differing == {"schedule.decay"}, "moves with the schedule"
    assert not compared & set(NO_TECHNIQUE)


@pytest.mark.parametrize("switch, on", ARMS, ids=[f"{switch.name}-{on}" for switch, on in ARMS])
def test_arms_differ_in_their_switch_alone(switch, on):
    """And hold the recipes' own values, unless these have no meaning at this size."""
    ours, theirs = (load(on, ["budget=1e9 flops", *arm]) for arm in switch.arms(on))
    changed = {key for key, *_ in differences(ours, theirs)}
    alone = {setting.partition("=")[0] for setting in switch.other}
    assert changed and changed <= {*switch.keys, *alone}
    for side, config, recipe in ((0, ours, switch.of), (1, theirs, BASELINE)):
        for key in switch.keys:
            wanted = switch.scaled[key][side] if key in switch.scaled else lookup(load(recipe), key)
            assert lookup(config, key) == wanted
    beside = {setting.partition("=")[0] for setting in switch.both}
    assert {key for key, *_ in differences(ours, load(on))} <= {"budget", *switch.keys, *beside}


def test_shared_arms_are_run_once():
    plan = Plan()
    arms = list(plan.arms())
    assert len(arms) == len(set(arms)) < 2 * len(ARMS)
    assert sum(arm == ("demo", ()) for arm in arms) == 1 and arms[0] == ("demo", ())
    assert plan.expected(3) == f"{3 * len(arms)} runs of 1.2e12 flops, about {3 * len(arms) * 35 / 60:.0f} min"
    assert dataclasses.replace(plan, budget="8 steps").expected(1) == f"{len(arms)} runs of 8 steps"


def results(monkeypatch, losses):
    """The rows of two seeds in which a run's loss is what ``losses(on, settings, seed)`` says."""
    told, runs = [], []

    def run(arm, number, seed, plan, place):
        runs.append((arm, seed))
        return {"predicted": 9, "steps": 4, "seconds": 2.0 if arm[1] else 3.0} | losses(*arm, seed)

    monkeypatch.setattr(defaults, "_run", run)
    switches = Switch("RMSNorm", ("model.norm",)), Switch("zero init", ("model.zero_init",), on=("demo", "demo_gpt"))
    plan = Plan("1e9 flops", switches)
    rows = [row for rows in defaults.measure(plan, 2, "cpu", None, told.append) for row in rows]
    assert told[0].startswith("defaults: 10 runs of 1e9 flops") and len(runs) == len(set(runs)) == 10
    return rows


def test_verdicts_pair_each_seed_with_itself(monkeypatch):
    def losses(on, settings, seed):
        harm = 0.5 + 0.01 * seed if "model.norm=layernorm" in settings else (-1) ** seed if settings else 0.0
        return {"loss": 10.0 * seed + harm}

    rows = results(monkeypatch, losses)
    found = {(each["switch"], each["recipe"]): each for each in defaults.verdicts(rows)}
    norm = found["RMSNorm", "demo"]
    assert norm["gains"] == pytest.approx([0.5, 0.51]) and norm["verdict"] == "better" and norm["time_ratio"] == 1.5
    assert norm["interval"] == pytest.approx(12.706 * 0.01 / 2), "half of (t x standard deviation / root of 2)"
    assert [found["zero init", on]["verdict"] for on in ("demo", "demo_gpt")] == ["cannot tell"] * 2
    [(_, header, body)] = defaults.tables(rows)
    assert all(len(line) == len(header) for line in body)
    assert body[0][5:] == ["+0.5050 ± 0.0635", "better", "1.50"]


def test_a_failed_run_fails_its_comparisons_alone(monkeypatch):
    def losses(on, settings, seed):
        if on == "demo" and "model.zero_init=false" in settings and seed:
            raise CramError("no room")
        return {"loss": 1.0, "predicted": 8 if "model.norm=layernorm" in settings else 9}

    rows = results(monkeypatch, losses)
    errors = {(row["switch"], row["recipe"], row["seed"]): row.get("error") for row in rows}
    assert errors["zero init", "demo", 1] == "no room"
    assert errors["zero init", "demo", 0] is errors["zero init", "demo_gpt", 1] is None
    assert errors["RMSNorm", "demo", 0] == "scored on other tokens: 9 and 8"
    assert {each["switch"]: each["seeds"] for each in defaults.verdicts(rows) if each["recipe"] == "demo"} == {"zero init": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(900)))
    return path


@pytest.mark.slow
def test_the_whole_command_and_again(corpus, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    command = ["bench", "defaults", "--quick", "--repeats", "1", "--files", str(corpus), "--out", str(out), "--runs", str(runs),
               "--budget", "1e9 flops"]
    assert main(command) == 0
    record = json.loads((out / "defaults_cpu.json").read_text())
    rows = {(row["switch"], row["recipe"]): row for row in record["rows"]}
    assert len(rows) == 4 and record["complete"] and not any("error" in row for row in rows.values())
    zero = "zero initialisation"
    assert rows[zero, "demo"]["loss"] == rows["RMSNorm", "demo"]["loss"] != rows[zero, "demo_gpt"]["loss"]
    for row in rows.values():
        assert row["gain"] == row["other_loss"] - row["loss"] != 0 and row["time_ratio"] > 0 and row["steps"] > 3
    ramp = rows["no batch ramp", "demo"]
    assert ramp["other"].endswith("train.batch_start_tokens=256") and ramp["default"] == "train.micro_batch_tokens=256"
    assert "## Verdicts" in (out / "defaults_cpu.md").read_text()
    ledgers = {path: path.read_bytes() for path in runs.glob("artifacts/pretrain-*/ledger.jsonl")}
    assert len(ledgers) == 7 and main(command) == 0
    assert {path: path.read_bytes() for path in runs.glob("artifacts/pretrain-*/ledger.jsonl")} == ledgers, "nothing ran again"
