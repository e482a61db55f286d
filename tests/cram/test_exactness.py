"""Interrupted = uninterrupted, bit for bit, whatever learns and however it is scheduled; and a record replays."""

import numpy as np
import pytest
import torch

import cram.learner
import cram.train
from cram.audit import read_ledger
from cram.errors import CramError
from cram.telemetry import read_metrics
from tests.cram.running import restore_torch, run, same, state, stop_in_step, stopped, weights  # noqa: F401 (fixtures)

OPTIMIZERS = {
    "adamw": ("optimizer.type=adamw",), "muon": ("optimizer.type=muon",), "adalomo": ("optimizer.type=adalomo",),
    "8-bit": ("optimizer.type=adamw", "optimizer.state_bits=8", "model.width=64", "optimizer.lr=0.01")}
BUDGETS = {"steps": "12 steps", "tokens": "6200 tokens", "flops": "3e9 flops"}


def interrupted_equals_straight(config, tiny, tmp_path, stop_in_step, step):
    """Both runs, the second stopped in ``step`` and taken up again from its newest checkpoint."""
    straight = run(config, tiny, tmp_path / "straight")
    stop_in_step(step)
    stopped(config, tiny, tmp_path / "stopped")
    resumed = run(config, tiny, tmp_path / "stopped")
    assert same(straight, resumed)
    records = [(tmp_path / name / "progress.f64").read_bytes() for name in ("straight", "stopped")]
    assert records[0] == records[1]
    rows = [[{key: row.get(key) for key in ("step", "lr", "grad_norm", "batch_tokens", "row", "layers")}
             for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
            for name in ("straight", "stopped")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("objective", ["masked", "causal", "hybrid"])
@pytest.mark.parametrize("micro", [512, 128], ids=["whole", "accumulated"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_interrupted_equals_uninterrupted(tiny, small_config, tmp_path, stop_in_step, optimizer, micro, objective):
    if optimizer == "8-bit":
        pytest.importorskip("bitsandbytes")
    number = sum(map(len, (optimizer, objective))) + micro  # budgets and moments vary over the matrix
    budget = list(BUDGETS.values())[number % 3]
    config = small_config(f"objective.type={objective}", f"train.micro_batch_tokens={micro}", "train.checkpoint_every_steps=4",
                          "telemetry.log_every=1", *OPTIMIZERS[optimizer], budget=budget)
    interrupted_equals_straight(config, tiny, tmp_path, stop_in_step, 5 + number % 4)


TECHNIQUES = {
    "fused backward": ("optimizer.type=adalomo", "optimizer.clip=null", "optimizer.fused_backward=true"),
    "offload": ("optimizer.type=adamw", "optimizer.offload=true"),
    "cautious": ("optimizer.cautious=true", "optimizer.weight_decay=0.5"),
    "recompute": ("train.recompute=full",),
    "lengths": ("train.sequence_schedule=[[0, 8], [0.3, 16], [0.6, 32]]", "model.rope_base_end=50000"),
    "windows": ("train.window_schedule=[[0, 4], [0.6, 32]]",),
    "depths": ("train.layer_schedule=[[0, 1], [0.6, 2]]", "train.ema=0.9"),
    "shapes": ("train.batch_ramp=0.7", "train.batch_start_tokens=128", "train.micro_batch_tokens=128",
               "objective.mask_rate_end=0.1"),
    "parts": ("model.value_embeddings=true", "model.residual_scalars=true", "model.mlp=relu2", "model.tied=false",
              "model.logit_softcap=15", "model.bigram_rows=64", "objective.z_loss=1e-4"),
    "chunked": ("train.loss=chunked", "objective.type=causal"),
}


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_every_technique_resumes_exactly(tiny, small_config, tmp_path, stop_in_step, technique):
    config = small_config("train.checkpoint_every_steps=4", "telemetry.log_every=1", *TECHNIQUES[technique], budget="14 steps")
    interrupted_equals_straight(config, tiny, tmp_path, stop_in_step, 9)


def test_every_technique_changes_the_run(tiny, small_config, tmp_path):
    """None of them is a key that nobody reads; recomputation, offload and chunks alone change nothing but rounding."""
    plain = {objective: run(small_config(f"objective.type={objective}", "train.micro_batch_tokens=512", budget="6 steps"), tiny,
                            tmp_path / objective) for objective in ("masked", "causal")}
    adamw = run(small_config("optimizer.type=adamw", budget="6 steps"), tiny, tmp_path / "adamw")
    for name, switches in TECHNIQUES.items():
        changed = run(small_config(*switches, budget="6 steps"), tiny, tmp_path / name)
        if name == "offload":
            assert same(changed, adamw)
        elif name == "recompute":
            assert same(changed, plain["masked"])
        elif name == "chunked":
            assert all(torch.allclose(changed[key], plain["causal"][key], rtol=1e-3, atol=1e-4) for key in changed)
        else:
            assert not same(changed, plain["masked"]), name


def test_the_schedules_show_in_the_metrics(tiny, small_config, tmp_path):
    config = small_config("train.sequence_schedule=[[0, 8], [0.5, 32]]", "train.layer_schedule=[[0, 1], [0.5, 2]]",
                          "train.window_schedule=[[0, 4], [0.5, 16]]", "model.window=16", "telemetry.log_every=1",
                          budget="10 steps")
    run(config, tiny, tmp_path)
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert [(row["row"], row["layers"], row["window"]) for row in rows] == [(8, 1, 4)] * 5 + [(32, 2, 16)] * 5


def test_the_average_is_what_is_validated_and_loaded(tiny, small_config, tmp_path):
    from cram.checkpoint import load_model
    run(small_config("train.ema=0.9", budget="8 steps"), tiny, tmp_path)
    kept = state(tmp_path)
    loaded = load_model(tmp_path).state_dict()
    assert same(loaded, kept["ema"]["weights"]) and not same(loaded, kept["model"])


def test_a_teacher_is_paid_for_and_changes_what_is_learnt(tiny, small_config, tmp_path):
    run(small_config("seed=1", budget="20 steps"), tiny, tmp_path / "teacher")
    alone = run(small_config(budget="10 steps"), tiny, tmp_path / "alone")
    config = small_config(f"distill.teacher={tmp_path}/teacher", "train.checkpoint_every_steps=3", budget="30 steps")
    taught = run(config, tiny, tmp_path / "taught")
    ledger, bill = (read_ledger(tmp_path / name / "ledger.jsonl") for name in ("taught", "teacher"))
    assert ledger.steps == 30 and state(tmp_path / "taught")["at"]["step"] == 10
    assert ledger.account["teacher"] == bill.seconds and ledger.flops > bill.flops
    assert not same(alone, taught)
    progress = np.fromfile(tmp_path / "taught" / "progress.f64")
    assert progress == pytest.approx(np.fromfile(tmp_path / "alone" / "progress.f64"))  # schedules begin behind the teacher
    with pytest.raises(CramError, match="has cost 20 steps, which leaves nothing of budget=20 steps"):
        run(small_config(f"distill.teacher={tmp_path}/teacher", budget="20 steps"), tiny, tmp_path / "poor")
    assert not (tmp_path / "poor" / "ledger.jsonl").exists()
    with pytest.raises(CramError, match="was trained with objective.type=masked, this run is to be causal"):
        run(small_config(f"distill.teacher={tmp_path}/teacher", "objective.type=causal", budget="30 steps"), tiny,
            tmp_path / "other")


@pytest.fixture
def bad_text(monkeypatch):
    """``bad_text(160, 560)``: steps that read these rows of the run have a loss that is no number."""
    def spoil(low, high):
        real_step, real_forward, bad = cram.train.Batches.step, cram.learner.Loss.forward, []

        def step(batches, number, first_row, **more):
            bad[:] = [low <= first_row < high]
            return real_step(batches, number, first_row, **more)

        def forward(*arguments):
            total, nats = real_forward(*arguments)
            return (total * float("nan"), nats * float("nan")) if bad and bad[0] else (total, nats)
        monkeypatch.setattr(cram.train.Batches, "step", step)
        monkeypatch.setattr(cram.learner.Loss, "forward", forward)
    return spoil


def events(folder, kind):
    return [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "event" and row["event"] == kind]


def test_a_few_bad_steps_are_skipped_and_told(tiny, small_config, tmp_path, bad_text, stop_in_step):
    bad_text(160, 192)  # 16 rows a step: steps 11 and 12
    config = small_config("train.checkpoint_every_steps=4", "telemetry.log_every=1", budget="24 steps")
    interrupted_equals_straight(config, tiny, tmp_path, stop_in_step, 13)
    told, = events(tmp_path / "straight", "skipped")
    assert told["step"] == 20 and "2 of the last 10 steps" in told["told"]
    rows = {row["step"]: row for row in read_metrics(tmp_path / "straight" / "metrics.jsonl") if row["kind"] == "train"}
    assert rows[11]["loss"] is rows[12]["loss"] is rows[12]["grad_norm"] is None and rows[13]["loss"] > 0


def test_a_stretch_of_bad_text_is_rolled_back_over_deterministically_and_replays(tiny, small_config, tmp_path, bad_text,
                                                                                 stop_in_step):
    bad_text(160, 560)  # steps 11 to 35
    config = small_config("train.checkpoint_every_steps=4", "telemetry.log_every=1", budget="30 steps")
    said = []
    straight = run(config, tiny, tmp_path / "straight", said=said)
    assert sum("rolled back" in line for line in said) == 2  # to step 8, which leads back into bad text, and to step 4
    stop_in_step(24)  # after the roll-back
    stopped(config, tiny, tmp_path / "stopped")
    assert same(straight, run(config, tiny, tmp_path / "stopped"))
    kept = state(tmp_path / "straight")
    jumps = kept["at"]["jumps"]
    assert jumps == [[4, 512]] and kept["at"]["rollbacks"] == 2 and all(torch.isfinite(weight).all() for weight in straight.values())
    ledger = read_ledger(tmp_path / "straight" / "ledger.jsonl")
    assert ledger.account["lost"] > 0 and ledger.steps == 30 and any(row["kind"] == "rollback" for row in ledger.rows)
    steps = [row["step"] for row in read_metrics(tmp_path / "straight" / "metrics.jsonl") if row["kind"] == "train"]
    assert steps == list(range(1, 31))
    replay = small_config(f"train.replay={tmp_path}/straight/progress.f64", "telemetry.log_every=1", budget="30 steps")
    assert same(straight, run(replay, tiny, tmp_path / "replay"))
    assert len(np.fromfile(tmp_path / "straight" / "progress.f64")) == 30


def test_text_that_stays_bad_stops_the_run_with_advice(tiny, small_config, tmp_path, bad_text):
    bad_text(160, 10**9)
    with pytest.raises(CramError, match="the loss keeps exploding; lower optimizer.lr"):
        run(small_config("train.checkpoint_every_steps=4", budget="90 steps"), tiny, tmp_path)
    assert [row["step"] for row in events(tmp_path, "rolled back")] == [8, 4]
    left = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert any(name.endswith(".exploded") for name in left)


def test_out_of_memory_halves_the_micro_batch_and_nothing_else(tiny, small_config, tmp_path, monkeypatch):
    config = small_config("train.micro_batch_tokens=512", budget="6 steps")
    whole, said, real = run(config, tiny, tmp_path / "whole"), [], cram.learner.Loss.forward

    def small_card(loss, ids_N, *rest):
        if len(ids_N) > 128:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loss, ids_N, *rest)
    monkeypatch.setattr(cram.learner.Loss, "forward", small_card)
    parts = run(config, tiny, tmp_path / "parts", said=said)
    told = [line for line in said if "out of memory" in line]
    assert len(told) == 2 and "micro-batches of 128 tokens" in told[1]
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=2e-4)
    kept = state(tmp_path / "parts")["at"]
    assert kept["micro_tokens"] == 128 and kept["first_row"] == 6 * 16
    assert read_ledger(tmp_path / "parts" / "ledger.jsonl").tokens == 6 * 512
    monkeypatch.setattr(cram.learner.Loss, "forward", lambda *_: small_card(None, range(1000)))
    with pytest.raises(CramError, match="out of memory with micro-batches of 32 tokens"):
        run(config, tiny, tmp_path / "none")


def test_a_step_costs_what_its_own_shape_costs(tiny, small_config, tmp_path):
    """Also the one before which layers are stacked, rows lengthen and windows open: it is charged as the new shape."""
    config = small_config("train.layer_schedule=[[0, 1], [0.5, 2]]", "train.sequence_schedule=[[0, 8], [0.5, 32]]",
                          "objective.type=causal", "optimizer.type=adamw", "telemetry.log_every=1", budget="10 steps")
    run(config, tiny, tmp_path)
    from cram.checkpoint import load_model
    model = load_model(tmp_path)
    late = model.flops_per_token(32, 1.0)
    model.depth = 1
    early = model.flops_per_token(8, 1.0)
    assert read_ledger(tmp_path / "ledger.jsonl").flops == pytest.approx(5 * 512 * (early + late)) and late > 1.5 * early
