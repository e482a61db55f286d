"""The loop: budgets kept, bits repeated, kills survived. Real child processes where a process must die."""

import json
import os
import random
import signal
import sys
import time

import numpy as np
import pytest
import torch

import cram.learner
import cram.train
from cram import checkpoint
from cram.audit import read_ledger
from cram.device import Device
from cram.errors import CramError
from cram.interrupt import Interrupted, StopSignal
from cram.telemetry import read_metrics
from cram.train import pretrain
from tests.cram import forked
from tests.cram.running import restore_torch, run, same, stop_in_step, stopped, weights  # noqa: F401 (fixtures)

CHILD = """
import json, sys
from pathlib import Path
from cram.config import from_dict
from cram.train import pretrain
config, data, tokenizer, run = sys.argv[1:]
pretrain(from_dict(json.loads(config)), Path(data), Path(tokenizer), Path(run), "run", lambda line: print(line, flush=True))
"""


def child(config, tiny, folder):
    from cram.config import to_dict
    return forked.Popen([sys.executable, "-c", CHILD, json.dumps(to_dict(config)), tiny["data"], tiny["tokenizer"], folder],
                        stdout=forked.PIPE, stderr=forked.STDOUT, text=True)


def until_plan(process):
    """Wait until the child is about to take its first step."""
    lines = []
    while not lines or not lines[-1].startswith("plan"):
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)  # it has died


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_a_step_budget_is_used_exactly_and_the_loss_falls(tiny, small_config, tmp_path, objective):
    config = small_config(f"objective.type={objective}", budget="40 steps")
    run(config, tiny, tmp_path)
    assert checkpoint.list_checkpoints(tmp_path / "checkpoints")[0].name == "step-00000040"
    ledger = read_ledger(tmp_path / "ledger.jsonl")
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert ledger.spent == 40 and ledger.reason == "finished" and ledger.tokens == 40 * 512
    assert rows[-1]["progress"] == 1.0 and rows[-1]["lr"] == 0.0 == rows[-1]["muon_lr"]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    model = checkpoint.load_model(tmp_path)
    assert ledger.flops == pytest.approx(40 * 512 * model.flops_per_token(32, 1.0 if objective == "causal" else 10 / 32))
    assert not model.training
    assert all(ledger.account[name] > 0 for name in ("setup", "steps", "saving", "data_wait", "validation"))
    progress = np.fromfile(tmp_path / "progress.f64")
    assert len(progress) == 40 and (np.diff(progress) > 0).all() and progress[-1] == 1.0
    assert sum(row["kind"] == "validation" for row in read_metrics(tmp_path / "metrics.jsonl")) == 9


@pytest.mark.parametrize("budget, kind", [("10000 tokens", "tokens"), ("3e9 flops", "flops")])
def test_token_and_flop_budgets_are_never_exceeded(tiny, small_config, tmp_path, budget, kind):
    run(small_config(budget=budget), tiny, tmp_path)
    ledger = read_ledger(tmp_path / "ledger.jsonl")
    one_step = ledger.spent / ledger.steps
    assert ledger.kind == kind and ledger.amount - one_step < ledger.spent <= ledger.amount


@pytest.mark.slow
def test_a_time_budget_is_spent_but_never_exceeded_and_its_record_replays_bit_for_bit(tiny, small_config, tmp_path):
    clocked = run(small_config(budget="6s"), tiny, tmp_path / "clock")
    ledger = read_ledger(tmp_path / "clock" / "ledger.jsonl")
    assert 0.85 < ledger.fraction <= 1.0 and ledger.reason == "finished"
    assert sum(ledger.account.values()) == pytest.approx(ledger.seconds)
    progress = np.fromfile(tmp_path / "clock" / "progress.f64")
    assert progress[-1] == 1.0 and len(progress) == ledger.steps
    replayed = run(small_config(f"train.replay={tmp_path}/clock/progress.f64", budget=f"{ledger.steps} steps"), tiny,
                   tmp_path / "replay")
    assert same(clocked, replayed)
    with pytest.raises(CramError, match="set budget='"):
        run(small_config(f"train.replay={tmp_path}/clock/progress.f64", budget="3 steps"), tiny, tmp_path / "wrong")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["masked", "causal"])
@pytest.mark.parametrize("micro", [512, 128])
def test_killed_and_resumed_equals_straight_bit_for_bit(tiny, small_config, tmp_path, objective, micro):
    """kill -9 at random moments of a real process, the same command again: torch.equal weights at the end."""
    config = small_config(f"objective.type={objective}", f"train.micro_batch_tokens={micro}", "train.checkpoint_every_steps=7",
                          *["objective.mask_rate_end=0.15"] * (objective == "masked"), "train.batch_ramp=0.5", f"train.batch_start_tokens={micro}",
                          budget="200 steps")
    straight = run(config, tiny, tmp_path / "straight")
    rng = random.Random(micro)
    for kills in range(2):
        process = child(config, tiny, tmp_path / "killed")
        until_plan(process)
        time.sleep(rng.uniform(0.1, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = child(config, tiny, tmp_path / "killed")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert same(straight, weights(tmp_path / "killed"))
    assert (tmp_path / "killed" / "progress.f64").read_bytes() == (tmp_path / "straight" / "progress.f64").read_bytes()
    ledger = read_ledger(tmp_path / "killed" / "ledger.jsonl")
    assert ledger.sessions >= 2 and ledger.account["lost"] > 0 and ledger.steps == 200
    steps = [row["step"] for row in read_metrics(tmp_path / "killed" / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_micro_batches_change_nothing_but_rounding(tiny, small_config, tmp_path):
    whole = run(small_config("objective.type=causal", "train.micro_batch_tokens=512", budget="5 steps"), tiny, tmp_path / "a")
    parts = run(small_config("objective.type=causal", "train.micro_batch_tokens=128", budget="5 steps"), tiny, tmp_path / "b")
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=2e-4)
    # clipping, Muon and AdamW are blind to the scale of a gradient: its norm is not
    norms = [[row["grad_norm"] for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
             for name in "ab"]
    assert norms[0] == pytest.approx(norms[1], rel=1e-2) and norms[0][0] == pytest.approx(norms[1][0], rel=1e-4)


@pytest.mark.slow
def test_killed_under_a_clock_it_ends_inside_the_budget_and_the_loss_of_time_is_shown(tiny, small_config, tmp_path):
    config = small_config("train.checkpoint_every=0.3", budget="12s")
    for wait in (0.7, 1.1):
        process = child(config, tiny, tmp_path)
        until_plan(process)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = child(config, tiny, tmp_path)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "are lost and stay charged" in output
    ledger = read_ledger(tmp_path / "ledger.jsonl")
    assert ledger.sessions == 3 and ledger.reason == "finished" and ledger.fraction <= 1.0
    assert ledger.account["lost"] >= 2 * 0.5  # two crashes, at least one heartbeat each


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_with_143_and_the_rest_follows(tiny, small_config, tmp_path, number):
    config = small_config(budget="150 steps")
    process = child(config, tiny, tmp_path)
    until_plan(process)
    time.sleep(0.3)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 143 and "the same command resumes" in output
    ledger = read_ledger(tmp_path / "ledger.jsonl")
    newest = checkpoint.list_checkpoints(tmp_path / "checkpoints")[0]
    assert ledger.reason == "interrupted" and 0 < ledger.steps == int(newest.name[5:])
    resumed = run(config, tiny, tmp_path)
    assert same(resumed, run(config, tiny, tmp_path.with_name(tmp_path.name + "straight")))
    assert read_ledger(tmp_path / "ledger.jsonl").account["lost"] < 0.5


def test_a_damaged_newest_checkpoint_costs_time_not_the_run(tiny, small_config, tmp_path, stop_in_step):
    config = small_config("train.checkpoint_every_steps=5", "objective.mask_rate_end=0.1", budget="30 steps")
    straight = run(config, tiny, tmp_path / "straight")
    stop_in_step(17)
    stopped(config, tiny, tmp_path / "harmed")
    newest = checkpoint.list_checkpoints(tmp_path / "harmed" / "checkpoints")[0] / "state.pt"
    assert newest.parent.name == "step-00000015"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    said = []
    harmed = run(config, tiny, tmp_path / "harmed", said=said)
    assert any("step-00000015 is damaged" in line for line in said) and any("resuming at step 10" in line for line in said)
    assert same(straight, harmed)
    assert (tmp_path / "harmed" / "progress.f64").read_bytes() == (tmp_path / "straight" / "progress.f64").read_bytes()
    left = [path.name for path in checkpoint.list_checkpoints(tmp_path / "harmed" / "checkpoints")]
    assert left == ["step-00000030", "step-00000025"]


def test_a_session_takes_up_everything_that_was_saved(tiny, small_config, tmp_path, monkeypatch, stop_in_step):
    """Also what no ordinary run on a CPU shows: loss scale, generator, a micro-batch found by trial, costs."""
    config = small_config("train.checkpoint_every_steps=5", "objective.mask_rate_end=0.1", budget="12 steps")
    draws, sizes, costs = [], [512], []
    forward, load = cram.learner.Loss.forward, cram.train.Pace.load_state_dict
    monkeypatch.setattr(cram.train, "choose_device", lambda train: Device("cpu", "CPU", torch.float16, False, None))
    monkeypatch.setattr(cram.train, "choose_micro_batch", lambda *_: sizes[0])
    monkeypatch.setattr(cram.train, "first_step_seconds", lambda *_: 0.1)  # its trials would draw as well
    monkeypatch.setattr(cram.learner.Loss, "forward", lambda *a: draws.append(torch.rand(()).item()) or forward(*a))
    monkeypatch.setattr(cram.train.Pace, "load_state_dict", lambda pace, state: costs.append(state) or load(pace, state))
    straight = run(config, tiny, tmp_path / "straight")
    expected = draws.copy()
    draws.clear()
    stop_in_step(7)
    stopped(config, tiny, tmp_path / "harmed")
    sizes[0] = 128  # another session finds less memory free
    harmed = run(config, tiny, tmp_path / "harmed")
    assert same(straight, harmed)
    assert len(expected) == 12 and draws[:5] + draws[7:] == expected
    scales = [checkpoint.load_newest(tmp_path / name / "checkpoints", "run", print)["loss_scale"]
              for name in ("straight", "harmed")]
    assert scales[0] == scales[1] and scales[0]["good_steps"] > 5
    assert len(costs) == 1 and costs[0]["save"] > 0
    ledger = read_ledger(tmp_path / "harmed" / "ledger.jsonl")
    assert [row["step"] for row in ledger.rows if row["kind"] == "checkpoint"] == [0, 5, 10, 12]


@pytest.mark.parametrize("objective", ["masked", "causal"])
def test_validation_changes_nothing_in_the_run(tiny, small_config, tmp_path, objective):
    often, never = (run(small_config(f"objective.type={objective}", f"train.validate_every={every}"), tiny, tmp_path / every)
                    for every in ("0.2", "1.0"))
    kinds = [[row["kind"] for row in read_metrics(tmp_path / every / "metrics.jsonl")] for every in ("0.2", "1.0")]
    assert kinds[0].count("validation") == 4 and kinds[1].count("validation") == 0
    assert same(often, never)


def test_without_room_nothing_is_done_on_the_side(tiny, small_config, tmp_path, monkeypatch):
    monkeypatch.setattr(cram.train.Pace, "has_room", lambda pace, seconds: False)
    run(small_config("train.checkpoint_every_steps=2", budget="8 steps"), tiny, tmp_path)
    assert not any(row["kind"] == "validation" for row in read_metrics(tmp_path / "metrics.jsonl"))
    saved = [row["step"] for row in read_ledger(tmp_path / "ledger.jsonl").rows if row["kind"] == "checkpoint"]
    assert saved == [0, 8]


def test_every_setting_of_the_loop_matters(tiny, small_config, tmp_path):
    settings = [["optimizer.clip=1e-9"], ["objective.z_loss=0.1"], ["objective.mask_rate_end=0.05"], ["schedule.warmup=0.4"],
                ["train.batch_ramp=0.9", "train.batch_start_tokens=128"]]
    plain = run(small_config("train.micro_batch_tokens=128", budget="6 steps"), tiny, tmp_path / "plain")
    for setting in settings:
        changed = small_config("train.micro_batch_tokens=128", *setting, budget="6 steps")
        assert not same(plain, run(changed, tiny, tmp_path / setting[0])), setting


def test_the_seed_decides_the_weights_and_the_order_of_the_text(tiny, small_config, tmp_path, monkeypatch):
    for seed in (1, 2):
        run(small_config(f"seed={seed}", "train.keep_checkpoints=9", budget="2 steps"), tiny, tmp_path / f"{seed}")
    first = [torch.load(tmp_path / f"{seed}" / "checkpoints" / "step-00000000" / "state.pt")["model"] for seed in (1, 2)]
    assert not same(*first)
    build = cram.learner.build
    monkeypatch.setattr(cram.learner, "build", lambda *a, seed: build(*a, seed=0))
    configs = [small_config(f"seed={seed}", "objective.type=causal", budget="2 steps") for seed in (1, 2)]
    assert not same(*(run(config, tiny, tmp_path / f"text{config.seed}") for config in configs))


def test_lost_work_that_uses_up_the_budget_ends_the_run_with_a_warning(tiny, small_config, tmp_path, stop_in_step):
    config = small_config("train.checkpoint_every_steps=2", "telemetry.heartbeat=1000", budget="60s")
    stop_in_step(5)
    stopped(config, tiny, tmp_path)
    path = tmp_path / "ledger.jsonl"
    *lines, _ = path.read_bytes().splitlines(keepends=True)  # without the closing row, as kill -9 leaves it
    path.write_bytes(b"".join(lines))
    path.with_suffix(".head").write_text(json.dumps({"row": len(lines) - 1, "hash": json.loads(lines[-1])["hash"]}))
    said = []
    run(config, tiny, tmp_path, said=said)
    assert any("warning: lost work used up the budget" in line for line in said)
    ledger = read_ledger(path)
    assert ledger.reason == "finished" and ledger.steps == 4 and ledger.fraction == pytest.approx(1.0)
    assert ledger.fraction <= 1.0 and len(np.fromfile(tmp_path / "progress.f64")) == 4
    assert "lost work" in read_metrics(tmp_path / "metrics.jsonl")[-1]["reason"]


def test_foreign_checkpoints_and_missing_ledgers_are_refused(tiny, small_config, tmp_path):
    config = small_config("train.checkpoint_every_steps=2", budget="4 steps")
    run(config, tiny, tmp_path / "mine")
    with pytest.raises(CramError, match="missing, but there are checkpoints"):
        (tmp_path / "lost").mkdir()
        os.rename(tmp_path / "mine" / "checkpoints", tmp_path / "lost" / "checkpoints")
        run(config, tiny, tmp_path / "lost")
    run(config, tiny, tmp_path / "other")
    pretrain_again = tmp_path / "foreign"
    pretrain_again.mkdir()
    os.rename(tmp_path / "lost" / "checkpoints", pretrain_again / "checkpoints")
    from cram.budget import Budget
    from cram.ledger import Ledger
    Ledger(pretrain_again / "ledger.jsonl", Budget.parse(config.budget), "another", heartbeat=9).close("interrupted")
    with pytest.raises(CramError, match="belongs to run run, not to another"):
        pretrain(config, tiny["data"], tiny["tokenizer"], pretrain_again, "another", print)


def test_a_finished_run_is_left_alone(tiny, small_config, tmp_path):
    config, said = small_config(budget="3 steps"), []
    run(config, tiny, tmp_path)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    run(config, tiny, tmp_path, said=said)
    assert said == ["pretrain: this run has already spent its budget"]
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    for path in checkpoint.list_checkpoints(tmp_path / "checkpoints"):
        (path / "state.pt").write_bytes(b"")
    with pytest.raises(CramError, match="no good checkpoint of its last step is left; start anew with --force"):
        run(config, tiny, tmp_path)


def test_a_budget_too_small_for_one_step_says_so(tiny, small_config, tmp_path):
    with pytest.raises(CramError, match="spent before the first step.*give it more"):
        run(small_config(budget="0.01s"), tiny, tmp_path)


def test_a_budget_that_is_gone_is_never_charged_again(tiny, small_config, tmp_path):
    for _ in range(2):
        with pytest.raises(CramError, match="spent before the first step.*give it more"):
            run(small_config(budget="0.01s"), tiny, tmp_path)
        charged = (tmp_path / "ledger.jsonl").read_bytes()
    with pytest.raises(CramError, match="give it more"):
        run(small_config(budget="0.01s"), tiny, tmp_path)
    assert (tmp_path / "ledger.jsonl").read_bytes() == charged and read_ledger(tmp_path / "ledger.jsonl").sessions == 1


def test_the_plan_names_the_threads_that_compute(tiny, small_config, tmp_path):
    said = []
    run(small_config("train.threads=1", budget="2 steps"), tiny, tmp_path, said=said)
    assert any("CPU, 1 thread," in line for line in said)
    assert any(line == "pretrain: 2 steps; 2 steps of 2 steps spent (100.0%)" for line in said)


def test_a_diverged_run_stops_with_advice(tiny, small_config, tmp_path):
    with pytest.raises(CramError, match="lower optimizer.lr"):
        run(small_config("optimizer.lr=1e30", "optimizer.type=adamw", "optimizer.clip=null", budget="60 steps"), tiny, tmp_path)
    assert read_ledger(tmp_path / "ledger.jsonl").reason == "stopped by Exploded"
    with pytest.raises(CramError, match="kept exploding, and would again.*--force"):
        run(small_config("optimizer.lr=1e30", "optimizer.type=adamw", "optimizer.clip=null", budget="60 steps"), tiny, tmp_path)


def test_a_run_that_ends_in_skipped_steps_says_so(tiny, small_config, tmp_path):
    said = []
    run(small_config("optimizer.lr=1e30", "optimizer.type=adamw", "optimizer.clip=null", budget="6 steps"), tiny, tmp_path, said=said)
    assert any("skipped" in line and "of the last 6 steps changed nothing" in line for line in said)


def test_a_single_step_is_told_to_have_learnt_nothing(tiny, small_config, tmp_path):
    said = []
    run(small_config(budget="1 steps"), tiny, tmp_path, said=said)
    assert any("warning: the budget was enough for one step" in line for line in said)


def test_a_batch_ramp_shows_with_an_automatic_micro_batch(tiny, small_config, tmp_path):
    run(small_config("train.batch_ramp=0.9", "train.batch_start_tokens=64", "telemetry.log_every=1", budget="10 steps"), tiny,
        tmp_path)
    batches = [row["batch_tokens"] for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert batches[0] == 64 and batches[-1] > 300 and batches == sorted(batches)


def test_the_model_of_a_finished_run_is_that_of_its_last_step_or_none(tiny, small_config, tmp_path):
    run(small_config("train.checkpoint_every_steps=2", budget="4 steps"), tiny, tmp_path)
    path = tmp_path / "checkpoints" / "step-00000004" / "state.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CramError, match="the last step, 4, is damaged or gone; the newest good one is of step 2"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(CramError, match="no good checkpoint of its last step"):
        run(small_config("train.checkpoint_every_steps=2", budget="4 steps"), tiny, tmp_path)


@pytest.mark.slow
def test_with_compilation_every_shape_is_compiled_before_the_first_step(tiny, small_config, tmp_path):
    config = small_config("train.compile=on", "train.sequence_schedule=[[0, 16], [0.5, 32]]", "model.layers=1", "model.width=16",
                          "model.heads=1", budget="6 steps")
    run(config, tiny, tmp_path)
    ledger = read_ledger(tmp_path / "ledger.jsonl")
    assert ledger.account["compile"] > 5 * ledger.account["steps"] and ledger.steps == 6
    with pytest.raises(CramError, match="budget=10s with torch.compile.*train.compile=off"):
        run(small_config("train.compile=on", budget="10s"), tiny, tmp_path / "hasty")
    assert not (tmp_path / "hasty" / "ledger.jsonl").exists()


def test_interrupted_is_an_exit_status():
    assert Interrupted().code == 143


def test_an_edited_shard_is_refused_before_anything_is_charged(tiny, small_config, tmp_path):
    import shutil
    data = shutil.copytree(tiny["data"], tmp_path / "data")
    shard = next(data.glob("train-*.bin"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    from data_prep.errors import DataError
    with pytest.raises(DataError, match="train-00000.bin.*cram data --force"):
        pretrain(small_config(), data, tiny["tokenizer"], tmp_path / "run", "run", print)
    assert not (tmp_path / "run" / "ledger.jsonl").exists()


def test_one_signal_is_noted_a_second_one_interrupts_and_the_handlers_come_back():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    def unnoted(number, frame):
        raise AssertionError(f"signal {number} was not noted")
    before = [signal.signal(number, unnoted) for number in numbers]
    try:
        for number in numbers:
            with StopSignal() as stop:
                assert not stop.received
                signal.raise_signal(number)
                assert stop.received
                with pytest.raises(KeyboardInterrupt):
                    signal.raise_signal(number)
            assert all(signal.getsignal(other) is unnoted for other in numbers)
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)
