"""Choosing device, precision and micro-batch; compilation sees one graph whatever the documents."""

import itertools
import platform
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import cram.model
from cram import device, sizing
from cram.batches import document_bounds
from cram.errors import CramError
from cram.learner import Learner
from cram.model import build
from cram.objective import Loss
from cram.ops import Documents
from cram.parallel import World
from cram.schema import Config, Model, Objective, Optimizer, Train


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what is said where there is no card")
@pytest.mark.parametrize("changes, message", [
    ({"device": "cuda"}, "no CUDA card here.*train.device=cpu"), ({"precision": "fp16"}, "needs a CUDA card")])
def test_impossible_choices_are_refused(changes, message):
    with pytest.raises(CramError, match=message):
        device.choose_device(Train(**changes))


def test_the_cpu_is_plain_float32_unless_asked():
    chosen = device.choose_device(Train(device="cpu"))
    assert (chosen.kind, chosen.dtype, chosen.compile, chosen.scaled) == ("cpu", torch.float32, False, False)
    assert device.choose_device(Train(device="cpu", precision="bf16")).dtype is torch.bfloat16
    assert [device.choose_device(Train(device="cpu", compile=value)).compile for value in ("on", "off")] == [True, False]


@pytest.mark.parametrize("known, dtype", [
    ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"bf16": True}, torch.bfloat16),
    ({"avx512_f": True, "avx512_bf16": False}, torch.float32), ({}, torch.float32)])
def test_native_is_bf16_where_the_cpu_multiplies_it(monkeypatch, known, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert device.choose_device(Train(device="cpu", precision="native")).dtype is dtype
    assert device.choose_device(Train(device="cpu")).dtype is torch.float32


def test_native_is_float32_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert device.choose_device(Train(device="cpu", precision="native")).dtype is torch.float32


class FakeCard:
    """A card with room for ``limit`` tokens, standing in for torch.cuda."""

    def __init__(self, monkeypatch, limit):
        self.limit, self.reserved, self.tried = limit, 0, []
        for name in ("empty_cache", "reset_peak_memory_stats"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: self.reserved)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("P", (), {"total_memory": 1000}))

    def attempt(self, tokens):
        self.tried.append(tokens)
        if tokens > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.reserved = 1000 * tokens // self.limit


@pytest.mark.parametrize("limit, expected", [
    (10**6, 65536), (100_000, 65536), (65536, 32768), (20_000, 16384), (1000, 512), (300, 256), (280, 128)])
def test_micro_batch_is_the_largest_with_room_to_spare(monkeypatch, limit, expected):
    card = FakeCard(monkeypatch, limit)
    assert device.largest_micro_batch(card.attempt, row=128, batch=131072, keep_free=0) == expected
    assert card.tried == sorted(card.tried, reverse=True)


def test_optimizer_states_are_left_room(monkeypatch):
    assert device.largest_micro_batch(FakeCard(monkeypatch, 100_000).attempt, row=128, batch=131072, keep_free=500) == 32768


def test_a_card_too_small_for_one_row_is_refused(monkeypatch):
    with pytest.raises(CramError, match="not even one row.*train.sequence_length"):
        device.largest_micro_batch(FakeCard(monkeypatch, 10).attempt, row=128, batch=1024, keep_free=0)


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
@pytest.mark.parametrize("causal, graphs", [(False, 2), (True, 1)])
def test_one_graph_a_mask_rate_whatever_the_documents(causal, graphs, backend, monkeypatch):
    """torch.compile without breaks; changing documents never recompiles, a new number of predictions does once."""
    monkeypatch.setattr(cram.model, "attention_backend", lambda model, device: backend)  # triton: its twin on the CPU
    from torch._dynamo.utils import counters
    torch._dynamo.reset()
    counters.clear()
    model = build(Model(layers=2, width=32, heads=2), 64, causal, seed=0)
    loss = Loss(model, Objective(), chunked=False)
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    for seed in range(6):
        rng = np.random.default_rng(seed)
        ids = rng.integers(5, 64, (4, 32))
        ids[rng.random((4, 32)) < 0.1] = 2
        start, end = (torch.from_numpy(bound) for bound in document_bounds(ids, cls=2))
        ids, count = torch.from_numpy(ids.reshape(-1)), 20 if seed < 3 else 10
        arguments = (ids, Documents(start, end, 32), None if causal else torch.arange(0, 6 * count, 6),
                     ids if causal else ids[:count])
        torch.testing.assert_close(compiled(*arguments), loss(*arguments))
    assert counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("row, batch, expected", [
    (128, 4096, 4096), (128, 131072, 8192), (128, 12288, 6144), (16384, 32768, 16384), (2000, 14000, 2000)])
def test_on_the_cpu_a_micro_batch_is_an_equal_part_of_whole_rows(row, batch, expected):
    config = Config(train=Train(sequence_length=row, batch_tokens=batch))
    learner = SimpleNamespace(device=device.choose_device(Train(device="cpu")))
    assert sizing.choose_micro_batch(learner, config, 1) == expected
    config.train.micro_batch_tokens = row
    assert sizing.choose_micro_batch(learner, config, 1) == row


def test_processes_share_a_batch_in_whole_rows_or_not_at_all():
    config = Config(train=Train(sequence_length=128, batch_tokens=3072))
    learner = SimpleNamespace(device=device.choose_device(Train(device="cpu")))
    assert sizing.choose_micro_batch(learner, config, 3) == 1024
    with pytest.raises(CramError, match="cannot be divided among 5 processes.*nearest: 3200"):
        sizing.choose_micro_batch(learner, config, 5)
    config.train.micro_batch_tokens = 3072
    with pytest.raises(CramError, match="does not divide the 1536 tokens"):
        sizing.choose_micro_batch(learner, config, 2)


@pytest.mark.parametrize("objective, optimizer", [
    ("masked", Optimizer()), ("causal", Optimizer()), ("hybrid", Optimizer()),
    ("masked", Optimizer(type="adalomo", clip=None, fused_backward=True))])
def test_a_trial_leaves_no_trace(objective, optimizer):
    config = Config(model=Model(layers=1, width=32, heads=2), train=Train(sequence_length=16, deterministic=False),
                    objective=Objective(type=objective), optimizer=optimizer)
    learner = Learner(config, device.choose_device(Train(device="cpu")), World(), 64)
    model, generator = learner.model, torch.get_rng_state()
    before = [p.detach().clone() for p in model.parameters()]
    assert sizing.trial(learner, config, 64) > 0
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(model.parameters(), before))
    assert torch.equal(generator, torch.get_rng_state())


def test_the_first_step_is_estimated_from_a_second_trial_of_one_row(monkeypatch):
    times, tried = iter([100.0, 2.0]), []
    monkeypatch.setattr(sizing, "trial", lambda learner, config, tokens, shape: tried.append(tokens) or next(times))
    config, learner = Config(train=Train(sequence_length=128)), SimpleNamespace(device=device.choose_device(Train(device="cpu")))
    assert sizing.first_step_seconds(learner, config, 1024, 4096) == 2.0 * 32
    assert tried == [128, 128]


def test_a_trial_without_memory_leaves_the_first_step_to_find_out(monkeypatch):
    def trial(*_):
        raise torch.OutOfMemoryError
    monkeypatch.setattr(sizing, "trial", trial)
    learner = SimpleNamespace(device=device.choose_device(Train(device="cpu")))
    assert sizing.first_step_seconds(learner, Config(train=Train(sequence_length=128)), 1024, 4096) == 0.0


def test_the_throttle_waits_for_the_step_before(monkeypatch):
    """What it does with a card's events, in order; on the CPU there is nothing to wait for."""
    told, count = [], itertools.count()

    class Event:
        def __init__(self):
            self.number = next(count)

        def record(self):
            told.append(("record", self.number))

        def synchronize(self):
            told.append(("wait", self.number))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    throttle = device.Throttle("cpu")
    throttle.queued()
    assert throttle.ahead == 0 and not told
    throttle = device.Throttle("cuda")
    for _ in range(3):
        throttle.queued()
    assert throttle.ahead == 1
    assert told == [("record", 0), ("record", 1), ("wait", 0), ("record", 2), ("wait", 1)]


FAULTS = """
import resource, sys, torch
from cram.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(40):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16_000_000).fill_(1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's allocator")
def test_freed_memory_is_kept_so_that_steps_do_not_fault_pages_in_again():
    faults = {mode: int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout)
              for mode in ("default", "keep")}
    assert faults["keep"] < faults["default"] / 10
