"""The parts of the profiler on small things with known answers: bytes, storages, limits, advice."""

import gc
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from cram.config import load
from cram.insight.profile.advice import RECOMPUTATION, Candidate, advise, candidates, improvements
from cram.insight.profile.assemble import by_module, by_operation
from cram.insight.profile.machine import Machine, better, measure_machine
from cram.insight.profile.memory import Storages
from cram.insight.profile.operations import Cost, Key, Operations, extent, kind_of
from cram.insight.profile.step import prepared
from cram.insight.profile.watch import LOOKING, Label, Watch
from tests.cram.running import restore_torch  # noqa: F401

A, B = Label("forward", "norm", 0), Label("backward", "norm", 0)


def cost_of(function, *tensors):
    """What one call costs, of all its operations together."""
    total = Cost()
    with Operations(Watch(), Storages(tensors), "cpu") as seen:
        function(*tensors)
    seen.settle()
    for cost in seen.costs.values():
        total.add(cost)
    return total


x, y, w = torch.ones(6, 4), torch.ones(6, 4), torch.ones(4, 5)
table, ids = torch.ones(100, 8), torch.tensor([3, 1, 3])


@pytest.mark.parametrize("function, tensors, flops, elementwise, moved", [
    (lambda a, b: a @ b, (x, w), 2 * 6 * 4 * 5, 0, 4 * (24 + 20 + 30)),
    (lambda a, b: a + b, (x, y), 0, 24, 4 * 72),
    (lambda a, b: a.add_(b), (x.clone(), y), 0, 24, 4 * 72),             # read, read, written
    (lambda a, b: a.copy_(b), (x.clone(), y), 0, 0, 4 * 48),             # what is copied over is not read
    (lambda a, b: a + b, (x, torch.ones(4).expand(6, 4)), 0, 24, 4 * (24 + 4 + 24)),  # the broadcast axis once
    (lambda a: a.t().unflatten(0, (2, 2))[0].view(2, 6).detach(), (x,), 0, 0, 0),     # views
    (lambda a: torch.empty_like(a), (x,), 0, 0, 0),
    (lambda a: a.sum(), (x,), 0, 1, 4 * 25),
    (lambda t, i: F.embedding(i, t), (table, ids), 0, 0, 4 * 3 * 8 * 2 + 8 * 3),       # three rows, not a hundred
    (lambda t, i: t.index_select(0, i), (table, ids), 0, 0, 4 * 3 * 8 * 2 + 8 * 3),
    (lambda a, b: torch.cat((a, b)), (x, y), 0, 0, 4 * 96),
    (lambda a, b: torch._foreach_mul_([a, b], 2.0), (x.clone(), y.clone()), 0, 48, 4 * 96),
    (lambda a: torch.zeros(6, 4), (x,), 0, 0, 4 * 24)])
def test_bytes_and_flops_of_an_operation(function, tensors, flops, elementwise, moved):
    cost = cost_of(function, *tensors)
    assert (cost.flops, cost.elementwise, cost.bytes) == (flops, elementwise, moved)


def test_half_precision_moves_half():
    half = cost_of(lambda a, b: a + b, x.bfloat16(), y.bfloat16())
    assert half.bytes == cost_of(lambda a, b: a + b, x, y).bytes / 2


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4))
def test_extent_counts_distinct_numbers(shape, broadcast):
    wide = [size * 1 for size in shape]
    narrow = [1 if flag else size for size, flag in zip(shape, broadcast)]
    tensor = torch.arange(torch.Size(narrow).numel()).reshape(narrow).expand(wide)
    assert extent(tensor) == 8 * len(torch.unique(tensor))


@pytest.mark.parametrize("name, kind", [("mm", "matrix product"), ("addmm_", "matrix product"), ("mul", "elementwise"),
                                        ("_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
                                        ("embedding_dense_backward", "look-up"), ("new_zeros", "copy"), ("sum", "reduction"),
                                        ("_log_softmax_backward_data", "reduction"), ("_fused_adamw_", "elementwise")])
def test_kinds(name, kind):
    assert kind_of(name) == kind


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=30))
def test_storages_live_from_their_operation_until_nothing_holds_them(actions):
    held, expected, most = [], 0, 0
    storages = Storages([x])
    assert storages.rest == x.nbytes
    with Operations(watch := Watch(), storages, "cpu"):
        watch.turn(A)
        for free, size in actions:
            if free and held:
                expected -= held.pop(0).nbytes
            else:
                held.append(torch.ones(size))
                held[-1].view(1, -1)  # the same storage
                expected += 4 * size
            most = max(most, expected)
            assert storages.bytes - storages.rest == expected
    assert storages.peak.get("forward", storages.rest) - storages.rest == most


def test_what_the_forward_pass_keeps_is_noted_by_who_made_it():
    storages = Storages([])
    with Operations(watch := Watch(storages.switched), storages, "cpu"):
        watch.turn(A)
        kept = torch.ones(10)
        torch.ones(1000)
        watch.turn(Label("backward", "norm", 0))
        torch.ones(30)
        watch.turn(LOOKING)
    assert dict(storages.kept) == {A: kept.nbytes}
    assert (storages.peak["forward"], storages.peak["backward"]) == (4040, 160)


def test_the_peak_of_a_step_is_that_of_torchs_allocator():
    """Against the allocator's own events. It sees what operations take and give back inside themselves, so somewhat more."""
    from torch.profiler import ProfilerActivity, profile
    from cram.insight.profile.measure import operations

    torch.set_num_threads(1)
    with prepared(load("demo", ["model.width=64", "train.batch_tokens=2048", "tokenizer.vocab_size=2048", "train.threads=1"])
                  ) as step:
        *_, storages, _, _ = operations(step, looks=1)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            step(prefetch=False)
        now = peak = 0
        events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            peak = max(peak, now)
    assert max(storages.peak.values()) - storages.rest == pytest.approx(peak, rel=0.05) and peak > 1e7


MACHINE = Machine("float32", flops=1e12, bandwidth=1e11, cache_bandwidth=1e12, call_seconds=1e-6)


def test_the_roofline_names_what_limits_and_how_near_it_comes():
    assert MACHINE.floor(1e12, 1e10) == 1.0 and MACHINE.floor(1e10, 1e11) == 1.0
    assert [MACHINE.bound(1, *work) for work in ((1e9, 1e6), (1e6, 1e9), (10, 10))] == ["compute", "memory", "overhead"]
    rows = by_operation({Key(A, "matrix product", "mm"): Cost(2, 10**9, 0, 10**7, 4e-3),
                         Key(B, "attention", "attn"): Cost(1, 10**9, 0, 10**6, 1e-3),
                         Key(A, "elementwise", "add"): Cost(1, 0, 1000, 8 * 10**8, 8e-3)}, MACHINE, needed=0.5)
    assert [(row["kind"], row["bound"]) for row in rows] == [("elementwise", "memory"), ("matrix product", "compute"),
                                                             ("attention", "compute")]
    assert [row["attained"] for row in rows] == [1.0, 0.25, 0.5]  # of attention only what is needed counts
    assert [row["floor_ms"] for row in rows] == [8.0, 1.0, 0.5]
    assert rows[1]["intensity"] == 100 and rows[1]["flops_per_second"] == 2.5e11 and rows[0]["intensity"] == 1000 / 8e8


def test_limits_are_measured_and_the_better_of_two_counts(monkeypatch):
    monkeypatch.setattr("cram.insight.profile.machine.LEAST_SECONDS", 0.01)
    from cram.device import Device
    torch.set_num_threads(1)
    found = measure_machine(Device("cpu", "CPU", torch.float32, False, None), "cpu")
    assert 1e8 < found.flops < 1e14 and 1e8 < found.bandwidth < 1e13 and 1e-8 < found.call_seconds < 1e-3
    other = found._replace(flops=2 * found.flops, bandwidth=found.bandwidth / 2, call_seconds=found.call_seconds / 2)
    assert better(found, other) == better(other, found) == found._replace(flops=other.flops, call_seconds=other.call_seconds)


FACTS = {"device": "cpu", "loss": "plain", "recompute": "none", "vocabulary": 4096, "micro_tokens": 1024, "batch_tokens": 2048,
         "needed": 0.4, "masked": True, "compiled": False, "precision": "float32", "head_dim": 32}


def module(name, **ms):
    return {"module": name, "ms": ms, "total_ms": sum(ms.values())}


def operation(name, phase, kind, ms, floor_ms, bound):
    return {"module": name, "phase": phase, "kind": kind, "ms": ms, "floor_ms": floor_ms, "bound": bound}


def test_the_three_largest_things_come_first_with_what_they_could_gain():
    modules = [module("norm", forward=5.0, recompute=4.0), module("attention", forward=30.0), module("Muon", optimizer=20.0),
               module("head + loss", forward=50.0), module("mlp down", forward=41.0)]
    operations = [operation("attention", "forward", "attention", 30.0, 6.0, "compute"),
                  operation("head + loss", "forward", "reduction", 35.0, 5.0, "memory"),
                  operation("head + loss", "forward", "matrix product", 15.0, 14.0, "compute"),
                  operation("mlp down", "forward", "matrix product", 41.0, 40.0, "compute"),
                  operation("Muon", "optimizer", "matrix product", 12.0, 8.0, "compute"),
                  operation("norm", "forward", "elementwise", 4.0, 4.0, "memory"),
                  operation("norm", "recompute", "elementwise", 4.0, 4.0, "memory")]
    found = candidates(modules, operations, needed=0.4)
    gains = {each.module: each.gain_ms for each in found}
    assert gains == {"norm": 1.0, "attention": 24.0, "Muon": 12.0, "head + loss": 31.0, "mlp down": 1.0, RECOMPUTATION: 4.0}
    causes = {each.module: each.cause for each in found}
    assert causes == {"norm": "overhead", "attention": "unneeded", "Muon": "overhead", "head + loss": "memory",
                      "mlp down": "compute", RECOMPUTATION: "unneeded"}
    best = improvements(found, 150.0, FACTS)
    assert [(each["what"], each["gain_ms"]) for each in best] == [("head + loss", 31.0), ("attention", 24.0), ("Muon", 12.0)]
    assert best[0]["gain"] == pytest.approx(31 / 150) and "31.0 ms (21% of the step)" in best[0]["told"]
    assert [re.search(r"train\.loss=chunked|40% of the pairs|train\.batch_tokens", each["told"])[0] for each in best] == [
        "train.loss=chunked", "40% of the pairs", "train.batch_tokens"]


def test_what_gains_nothing_is_not_named():
    assert improvements([Candidate("norm", 1.0, 1.0), Candidate("Muon", 1.0, 2.0)], 10.0, FACTS) == []


@pytest.mark.parametrize("name, cause, changes, told", [
    (RECOMPUTATION, "unneeded", {"recompute": "full"}, "train.recompute=selective costs less"),
    ("attention", "compute", {}, "model.heads"),
    (RECOMPUTATION, "unneeded", {"recompute": "selective"}, "train.recompute=none"),
    ("head + loss", "memory", {"loss": "chunked"}, "tokenizer.vocab_size"),
    ("head + loss", "memory", {"masked": True}, "objective.mask_rate"),
    ("attention", "unneeded", {"device": "cuda"}, "model.attention=triton"),
    ("norm", "overhead", {}, "train.micro_batch_tokens than 1,024"),
    ("norm", "overhead", {"micro_tokens": 2048}, "train.compile=on"),
    ("norm", "memory", {}, "train.compile=on"), ("norm", "memory", {"compiled": True}, "train.precision"),
    ("mlp down", "compute", {"micro_tokens": 2048}, "train.batch_tokens"),
    ("mlp down", "compute", {"device": "cuda"}, "train.precision=bf16"), ("AdamW", "memory", {}, "train.batch_tokens"),
    ("batch", "overhead", {}, "cores")])
def test_advice_names_the_switch(name, cause, changes, told):
    assert told in advise(name, cause, FACTS | changes)


def test_rows_are_summed_over_blocks_and_stand_in_the_order_of_the_data():
    times = {Label("forward", "final norm"): 1.0, Label("forward", "norm", 1): 2.0, Label("backward", "norm", 0): 4.0,
             Label("forward", "embedding"): 8.0, Label("optimizer", "Muon"): 16.0, Label("forward", "mlp down", 0): 32.0}
    costs = {Key(Label("forward", "norm", 1), "elementwise", "mul"): Cost(1, 0, 5, 40, 0.1)}
    whole = by_module(times, costs, {Label("forward", "norm", 1): 7})
    assert [(row["module"], row["total_ms"]) for row in whole] == [
        ("embedding", 8e3), ("norm", 6e3), ("mlp down", 32e3), ("final norm", 1e3), ("Muon", 16e3)]
    assert whole[1]["bytes"] == {"forward": 40} and whole[1]["kept_bytes"] == 7
    assert [(row["module"], row["layer"]) for row in by_module(times, costs, {}, layers=True)] == [
        ("embedding", None), ("norm", 0), ("mlp down", 0), ("norm", 1), ("final norm", None), ("Muon", None)]
