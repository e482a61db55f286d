"""Profiling a step: nothing of it changes, nothing stays behind, and FLOPs are those of torch's own counter."""

import gc
import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cram.config import load
from cram.insight.profile.assemble import LINEAR
from cram.insight.profile.clock import Tape, fastest, time_steps, watching
from cram.insight.profile.measure import flops_of, operations
from cram.insight.profile.step import prepared
from cram.insight.profile.watch import LOOKING, PHASES, Label
from cram.layers import View
from tests.cram.running import restore_torch  # noqa: F401

aten = torch.ops.aten
ATTENTION = {  # what torch's counter does not know; it is handed shapes
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *rest, out_shape, **options: sdpa_flop_count(q, k, v),
    aten._scaled_dot_product_flash_attention_for_cpu_backward:
        lambda do, q, k, v, *rest, out_shape, **options: sdpa_backward_flop_count(do, q, k, v)}


@pytest.fixture
def small():
    """``with small("objective.type=causal") as step``: a step of a few thousand tokens of a tiny model, on one thread."""
    torch.set_num_threads(1)

    def make(*overrides):
        return prepared(load("demo", ["model.width=32", "model.heads=2", "train.sequence_length=32", "train.batch_tokens=512",
                                      "tokenizer.vocab_size=300", "train.threads=1", "train.deterministic=false", *overrides]))
    return make


def gradients(step, watched):
    """Of the model's parameters, after one step that stops before its update."""
    step.number, found = 0, []
    def keep(loss):
        found.extend(p.grad.clone() for p in step.learner.model.parameters())
        step.learner.optimizers.zero_grad()
    step.learner.update = keep
    try:
        if watched:
            with watching(step, lambda label: None) as watch:
                watch.turn(Label("forward", "rest"))
                step(prefetch=False)
        else:
            step(prefetch=False)
    finally:
        del step.learner.update
    return found


VARIANTS = {"masked": (), "causal": ("objective.type=causal",),
            "hybrid": ("objective.type=hybrid", "train.micro_batch_tokens=128"), "untied": ("model.tied=false",),
            "chunked": ("train.loss=chunked",), "selective": ("train.recompute=selective",),
            "full": ("train.recompute=full",), "adamw": ("optimizer.type=adamw",), "window": ("model.window=8",),
            "extras": ("model.value_embeddings=true", "model.residual_scalars=true", "train.ema=0.9", "model.qk_norm=true",
                       "model.position=scaled_sinusoidal")}


@pytest.mark.parametrize("name", VARIANTS)
def test_looking_changes_no_bit_of_the_gradient(small, name):
    with small(*VARIANTS[name]) as step:
        assert all(map(torch.equal, gradients(step, False), gradients(step, True)))


@pytest.mark.parametrize("fault", [False, True])
def test_nothing_of_the_watch_stays_behind(small, fault):
    backward, attend, tape = Tensor.backward, View.attend, Tape("cpu")
    with small("train.recompute=full") as step:
        owners = (*step.learner.model.modules(), step.learner, step.batches)
        before = {id(owner): set(vars(owner)) for owner in owners}
        if fault:
            step.learner.guard.judge = lambda *arguments: 1 / 0
        try:
            with watching(step, tape.mark) as watch:
                watch.turn(Label("forward", "rest"))
                step()
        except ZeroDivisionError:
            assert fault
        step.learner.guard.__dict__.pop("judge", None)
        assert (Tensor.backward, View.attend) == (backward, attend)
        assert all(set(vars(owner)) == before[id(owner)] for owner in owners)
        marks = len(tape.marks)
        step()
        assert len(tape.marks) == marks and marks > 50
        gc.collect()


def totals(costs, phase=None, module=None):
    return sum(cost.flops for key, cost in costs.items()
               if phase in (None, key.label.phase) and module in (None, key.label.module))


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "chunked"])
def test_flops_are_those_of_torchs_counter(small, name):
    with small(*VARIANTS[name]) as step:
        step.number = 2
        costs, *_ = operations(step, looks=1)
        step.number = 2
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            step(prefetch=False)
        assert totals(costs) == pytest.approx(counter.get_total_flops(), rel=0.01) and totals(costs) > 0


def test_the_chunked_loss_computes_what_the_plain_one_does(small):
    with small("train.loss=chunked") as step, small() as plain:
        costs, *_ = operations(step, looks=1)
        with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
            plain(prefetch=False)
        assert totals(costs) == counter.get_total_flops()
        assert totals(costs, "backward", "head + loss") == 0 < totals(costs, "forward", "head + loss")


def test_attention_on_the_cpu_counts_as_plain_products_do(small):
    """Its forward pass like two products; its backward pass makes the scores again, a fifth product beside four."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with small() as step:
        costs, *_ = operations(step, looks=1)
        with sdpa_kernel(SDPBackend.MATH):
            products, *_ = operations(step, looks=1)
    assert totals(costs, "forward", "attention") == totals(products, "forward", "attention") > 0
    assert totals(costs, "backward", "attention") / totals(products, "backward", "attention") == pytest.approx(5 / 4)


@pytest.mark.parametrize("name", ["masked", "causal", "hybrid", "untied", "full", "window"])
def test_each_linear_layer_costs_twice_as_much_backward_as_forward(small, name):
    with small(*VARIANTS[name]) as step:
        costs, *_ = operations(step, looks=1)
        labels = {key.label for key in costs if key.label.module in (*LINEAR, "head + loss") and key.label.phase == "forward"}
        assert {label.layer for label in labels} == {None, 0, 1}
        for label in labels:
            there, back, again = (sum(cost.flops for key, cost in costs.items() if key.label == label._replace(phase=phase))
                                  for phase in ("forward", "backward", "recompute"))
            assert back == 2 * there > 0
            assert again in ((there, 0) if name == "full" else (0,))  # recomputation stops once it has all that it needs
        if name == "full":
            assert totals(costs, "recompute", "qkv projection") == totals(costs, "forward", "qkv projection")


def test_the_account_of_flops_agrees_with_the_formula_where_both_count(small):
    with small("objective.type=causal", "model.document_mask=false") as step:
        costs, _, micro_batches, _ = operations(step, looks=1)
        parts = {part["part"]: part for part in flops_of(step, costs, step.needed_pairs(micro_batches))}
        for part in ("linear layers", "head"):
            assert parts[part]["counted"] == pytest.approx(parts[part]["formula"])
        rows, row = 512 // 32, 32
        assert step.needed_pairs(micro_batches) == rows * row * (row + 1) // 2
        assert parts["attention"]["needed"] == 12 * 2 * 32 * rows * row * (row + 1) // 2
        assert parts["attention"]["counted"] / parts["attention"]["formula"] == pytest.approx(14 / 6)  # 2 + 5 products, whole
        assert parts["step"]["counted"] == totals(costs) and parts["other"]["counted"] == 0
        assert parts["step"]["formula"] == step.learner.flops(step.shape, step.kinds)


def phases(small, *overrides):
    tape = Tape("cpu")
    with small(*overrides) as step, watching(step, tape.mark) as watch:
        watch.turn(Label("forward", "rest"))
        step()
        watch.turn(LOOKING)
    return tape.seconds()


def test_every_part_of_a_step_has_its_turn(small):
    labels = phases(small, "train.ema=0.9")
    assert {label.phase for label in labels} == {"data", "forward", "backward", "optimizer"}
    parts = {"mask, positions", "embedding", "embedding norm", "norm", "qkv projection", "attention", "output projection",
             "mlp up, gate", "activation", "mlp down", "residual", "final norm", "head + loss"}
    assert parts <= {label.module for label in labels if label.phase == "forward"}
    assert parts - {"mask, positions"} <= {label.module for label in labels if label.phase == "backward"}
    assert {"gradient clip", "guard, averages", "Muon", "AdamW"} <= {x.module for x in labels if x.phase == "optimizer"}
    assert {x.layer for x in labels if x.module == "mlp down"} == {0, 1}
    assert {x.layer for x in labels if x.module == "Muon"} == {None}


@pytest.mark.parametrize("mode, again", [("none", False), ("selective", True), ("full", True)])
def test_recomputation_is_told_apart(small, mode, again):
    found = {label.module for label in phases(small, f"train.recompute={mode}") if label.phase == "recompute"}
    assert ("norm" in found) == ("activation" in found) == again


def test_updates_within_the_backward_pass_are_the_optimizers(small):
    labels = phases(small, "optimizer.type=adalomo", "optimizer.fused_backward=true", "optimizer.clip=null")
    assert labels[Label("optimizer", "AdaLomo", 0)] > 0 and "gradient clip" not in {label.module for label in labels}


def test_time_is_charged_to_turns_and_not_to_the_profiler():
    tape, (a, b) = Tape("cpu"), (Label("forward", "norm", 0), Label("backward", "norm", 0))
    tape.marks = [(a, 1.0), (b, 3.0), (LOOKING, 4.0), (a, 10.0), (LOOKING, 10.5)]
    assert tape.seconds() == {a: 2.5, b: 1.0}


def test_the_fastest_steps_count_and_their_parts_add_up():
    a, b = Label("forward", "norm"), Label("backward", "norm")
    looked_at = [{a: 1.0, b: 3.0}, {a: 9.0, b: 9.0}, {a: 2.0, b: 1.0}, {a: 8.0, b: 9.0}]
    plain, times = fastest([5.0, 30.0, 4.0, 9.0], looked_at)
    assert (plain, times) == (4.5, {a: 1.5, b: 2.0})


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(), ("objective.type=causal", "train.recompute=full", "train.micro_batch_tokens=1024")])
def test_modules_add_up_to_the_step_that_nobody_looks_at(overrides):
    torch.set_num_threads(1)
    with prepared(load("demo", ["train.threads=1", *overrides]), clock="thread") as step:
        for _ in range(5):  # neighbours may come between, but hardly five times
            plain, times = fastest(*time_steps(step, 6))
            if math.isclose(sum(times.values()), plain, rel_tol=0.05):
                break
        else:
            pytest.fail(f"modules: {sum(times.values()):.4f} s, step: {plain:.4f} s")
        assert {label.phase for label in times} <= set(PHASES)


@pytest.mark.gpu
def test_a_step_on_a_card_adds_up_and_peaks_below_its_allocator():
    from cram.insight.profile.measure import look

    with prepared(load("demo", ["train.device=cuda", "train.batch_tokens=65536", "train.micro_batch_tokens=32768"])) as step:
        for _ in range(3):
            record = look(step, 8)
            if abs(record["step"]["looking"]) < 0.05:
                break
        assert abs(record["step"]["looking"]) < 0.05
        assert 0 < record["memory"]["peak"]["backward"] <= record["memory"]["allocator_peak"]
        attention = next(part for part in record["flops"] if part["part"] == "attention")
        assert attention["counted"] > 0
