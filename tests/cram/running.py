"""Runs of a tiny model inside the test process: started, stopped in the middle of a step, compared."""

import gc
import itertools

import pytest
import torch

import cram.train
from cram import checkpoint
from cram.train import pretrain


def run(config, tiny, folder, run_id="run", said=None):
    """Train to the end (or resume); returns the weights of the newest checkpoint."""
    pretrain(config, tiny["data"], tiny["tokenizer"], folder, run_id, (said if said is not None else []).append)
    return weights(folder)


def state(folder):
    return checkpoint.load_newest(folder / "checkpoints", "run", print)


def weights(folder):
    return state(folder)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stop(Exception):
    """Thrown into the middle of a step."""


@pytest.fixture
def stop_in_step(monkeypatch):
    """``stop_in_step(7)``: of the steps to come, number 7 (from 0) raises Stop; those after it are left alone."""
    def arm(number):
        real, count = cram.train.schedule.learning_rate, itertools.count()

        def learning_rate(p, schedule):
            if next(count) == number:
                raise Stop
            return real(p, schedule)
        monkeypatch.setattr(cram.train.schedule, "learning_rate", learning_rate)
    return arm


def stopped(config, tiny, folder):
    with pytest.raises(Stop):
        run(config, tiny, folder)
    gc.collect()  # closes its files


@pytest.fixture(autouse=True)
def restore_torch():
    """What training sets in torch is put back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
