"""Micro-batches side by side: the bits of one after the other, whoever is first; what one raises comes out of the step."""

import threading
import time

import pytest
import torch

import cram.learner
from cram.config import load
from cram.device import Device
from cram.errors import CramError
from cram.learner import Learner
from cram.parallel import World
from cram.side_by_side import Workers, add_gradients, worker_count
from cram.sizing import choose_micro_batch
from tests.cram.running import restore_torch, run, same, stop_in_step, stopped  # noqa: F401 (fixtures)

CPU = Device("cpu", "CPU", torch.float32, False, None)


@pytest.mark.parametrize("overrides", [
    (), ("objective.type=causal", "train.loss=chunked"), ("objective.type=hybrid",), ("train.recompute=full",),
    ("train.precision=bf16", "optimizer.type=adamw"),
    ("objective.type=causal", "model.value_embeddings=true", "model.bigram_rows=64")])
def test_the_bits_are_those_of_one_worker(tiny, small_config, tmp_path, overrides):
    """Four micro-batches a step by one, two and four workers."""
    weights = [run(small_config(*overrides, "train.micro_batch_tokens=128", f"train.workers={workers}"), tiny,
                   tmp_path / str(workers)) for workers in (1, 2, 4)]
    assert same(weights[0], weights[1]) and same(weights[0], weights[2])


def test_interrupted_equals_uninterrupted(tiny, small_config, tmp_path, stop_in_step):
    config = small_config("train.workers=2", "train.checkpoint_every_steps=3")
    straight = run(config, tiny, tmp_path / "straight")
    stop_in_step(8)
    stopped(config, tiny, tmp_path / "stopped")
    assert same(straight, run(config, tiny, tmp_path / "stopped"))


def test_two_are_at_work_at_once():
    both = threading.Barrier(2, timeout=30)
    assert list(Workers(2).map(lambda item: (both.wait(), item)[1], [1, 2, 3, 4])) == [1, 2, 3, 4]


def test_results_come_in_order_whoever_is_first():
    assert list(Workers(3).map(lambda item: (time.sleep(0.05 * (item % 3 == 0)), item)[1], range(7))) == [*range(7)]


def test_each_has_its_share_of_the_threads(restore_torch):  # noqa: F811
    torch.set_num_threads(4)
    assert list(Workers(2).map(lambda item: torch.get_num_threads(), [0, 1])) == [2, 2]
    assert torch.get_num_threads() == 4


def test_what_one_raises_is_raised_when_none_is_at_work_any_more():
    finished = []

    def work(item):
        if item == 0:
            raise RuntimeError("the first")
        time.sleep(0.2)
        finished.append(item)

    with pytest.raises(RuntimeError, match="the first"):
        list(Workers(2).map(work, [0, 1, 2, 3]))
    assert finished == [1]


def test_out_of_memory_in_a_worker_makes_the_micro_batches_smaller(tiny, small_config, tmp_path, monkeypatch):
    real, full = cram.learner.Learner.forward, []

    def forward(self, micro):
        if len(micro.ids_N) > 128:
            full.append(len(micro.ids_N))
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(self, micro)

    monkeypatch.setattr(cram.learner.Learner, "forward", forward)
    said = []
    weights = run(small_config("train.workers=2"), tiny, tmp_path / "short", said=said)
    assert set(full) == {256} and any("micro-batches of 128 tokens from now on" in line for line in said)
    assert same(weights, run(small_config("train.micro_batch_tokens=128"), tiny, tmp_path / "plain"))


@pytest.mark.parametrize("overrides, device, count", [
    ((), CPU, 1), (("train.workers=null",), CPU, 4), (("train.workers=null", "train.batch_tokens=384"), CPU, 4),
    (("train.workers=null", "train.batch_tokens=352"), CPU, 1), (("train.workers=null", "train.batch_tokens=192"), CPU, 3),
    (("train.workers=null", "train.batch_ramp=0.5", "train.batch_start_tokens=64"), CPU, 2),
    (("train.workers=2",), CPU, 2), (("train.workers=null", "train.parallel=ddp"), CPU, 1),
    (("train.workers=null", "optimizer.type=adalomo", "optimizer.clip=null", "optimizer.fused_backward=true"), CPU, 1),
    (("train.workers=2",), Device("cuda", "card", torch.float32, False, None), 1),
    (("train.workers=null",), Device("cpu", "CPU", torch.float32, True, None), 1)])
def test_how_many(restore_torch, overrides, device, count):  # noqa: F811
    torch.set_num_threads(4)
    config = load("demo", ["train.sequence_length=32", "train.batch_tokens=512", *overrides])
    assert worker_count(config, device) == count


@pytest.mark.parametrize("batch, row, workers, micro", [
    (2048, 128, 2, 1024), (2048, 128, 4, 512), (65536, 128, 2, 8192), (49152, 128, 3, 8192), (1024, 512, 2, 512)])
def test_the_batch_is_divided_among_them(batch, row, workers, micro):
    config = load("demo", ["model.width=32", "model.heads=2", f"train.batch_tokens={batch}", f"train.sequence_length={row}",
                           f"train.workers={workers}"])
    learner = Learner(config, CPU, World(), 300)
    assert learner.workers.count == workers and choose_micro_batch(learner, config, 1) == micro
    assert batch // micro % workers == 0


def test_workers_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(CramError, match="train.workers 3 do not divide the 16 rows of train.batch_tokens 2048; use a divisor"):
        load("demo", ["train.workers=3"])


def test_gradients_are_added_to_what_is_there():
    used, new, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    used.grad = torch.ones(2)
    add_gradients([used, new, none], [torch.full((2,), 2.0), torch.full((2,), 5.0), None])
    assert used.grad.tolist() == [3.0, 3.0] and new.grad.tolist() == [5.0, 5.0] and none.grad is None
