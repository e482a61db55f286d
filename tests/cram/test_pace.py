"""The stop rule against machines that change their mind: simulated days with an injected clock."""

import random

import pytest

from cram.budget import Budget, Ledger, read_ledger
from cram.pace import Pace
from cram.schema import Train


class Machine:
    """A clock that only moves when work is done, and work that takes as long as the weather wants."""

    def __init__(self, seed, slowdown):
        self.now, self.rng, self.slowdown = 0.0, random.Random(seed), slowdown

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds * self.rng.uniform(1.0, self.slowdown)


def session(path, budget, machine, step, save, kill_at=None, progress=0.0, state=None):
    """One process: saves now and then; returns (progress, state) as of its last checkpoint."""
    ledger = Ledger(path, Budget.parse(budget), "run", heartbeat=2.0, clock=machine)
    pace = Pace(ledger, Train(checkpoint_every=10 * step, validation_tokens=16384), clock=machine)
    if state:
        pace.load_state_dict(state)
    number = state["number"] if state else 0
    ledger.resume(number)
    pace.expect(step, 16384)
    ledger.switch("steps")
    kept = (progress, {**pace.state_dict(), "number": number}) if state else (0.0, None)

    def checkpoint():
        nonlocal kept
        begun = machine.now
        ledger.checkpoint(number)
        machine.work(save)
        pace.saved(machine.now - begun)
        kept = (progress, {**pace.state_dict(), "number": number})
    if not state:
        checkpoint()
    while (following := pace.next_progress(0.0, progress)) is not None:
        begun = machine.now
        machine.work(step)
        pace.step_seconds.append(machine.now - begun)
        progress, number = following, number + 1
        ledger.count(steps=1)
        if kill_at is not None and ledger.seconds > kill_at:
            ledger._append("heartbeat")
            ledger._stop.set()
            return kept
        if pace.save_is_due(number) and pace.has_room(pace.save_seconds):
            checkpoint()
    checkpoint()
    ledger.close("finished")
    return progress, None


@pytest.mark.parametrize("slowdown, least", [(1.0, 0.97), (1.5, 0.96), (2.0, 0.94)])
@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_machine_uses_its_budget_and_never_exceeds_it(tmp_path, seed, slowdown, least):
    machine = Machine(seed, slowdown)
    progress, _ = session(tmp_path / "ledger.jsonl", "300s", machine, step=0.4, save=0.3)
    summary = read_ledger(tmp_path / "ledger.jsonl")
    assert least < summary.fraction <= 1.0 and progress == 1.0


@pytest.mark.parametrize("seed", range(10))
def test_crashes_never_lead_beyond_the_budget(tmp_path, seed):
    machine, rng, state, progress = Machine(seed, 1.5), random.Random(seed), None, 0.0
    for kill_at in sorted(rng.uniform(1, 295) for _ in range(8)):
        progress, state = session(tmp_path / "ledger.jsonl", "300s", machine, 0.4, 0.3, kill_at, progress, state)
        if state is None:
            break
    else:
        session(tmp_path / "ledger.jsonl", "300s", machine, 0.4, 0.3, None, progress, state)
    summary = read_ledger(tmp_path / "ledger.jsonl")
    assert summary.reason == "finished" and summary.fraction <= 1.0


def test_a_step_slower_than_ever_still_leaves_the_closing_step(tmp_path):
    machine = Machine(0, 1.0)
    ledger = Ledger(tmp_path / "ledger.jsonl", Budget.parse("100s"), "run", heartbeat=9, clock=machine)
    pace = Pace(ledger, Train(validation_tokens=1), clock=machine)
    pace.saved(0.1)
    pace.expect(0.1, 16384)
    machine.now = 90.0
    before = pace.next_progress(0.0, 0.0)
    machine.now = 99.0  # that step took nine seconds
    assert 0.9 < before < 1.0 and pace.next_progress(0.0, before) == 1.0
    pace.step_seconds.append(9.0)
    assert pace.next_progress(0.0, before) is None  # another such step would not fit: better end early
    ledger.close("finished")
