"""The stop rule against machines that change their mind: simulated days with an injected clock."""

import random

import pytest

from cram.audit import read_ledger
from cram.budget import Budget
from cram.ledger import Ledger
from cram.pace import Pace
from cram.schema import Train


class Machine:
    """A clock that only moves when work is done, and work that takes as long as the weather wants."""

    def __init__(self, seed, slowdown):
        self.now, self.rng, self.slowdown = 0.0, random.Random(seed), slowdown

    def __call__(self):
        return self.now

    def work(self, seconds, ledger=None):
        """Let time pass; ``ledger`` gets the rows that its thread would have written meanwhile."""
        end = self.now + seconds * self.rng.uniform(1.0, self.slowdown)
        while ledger and end > (beat := self.now + 1.0):
            self.now = beat
            ledger._append("heartbeat")
        self.now = end


def session(path, budget, machine, step, save, kill_at=None, progress=0.0, state=None):
    """One process: saves now and then; returns (progress, state) as of its last checkpoint."""
    ledger = Ledger(path, Budget.parse(budget), "run", heartbeat=2.0, clock=machine)
    pace = Pace(ledger, Train(checkpoint_every=10 * step, validation_tokens=16384), clock=machine)
    if state:
        pace.load_state_dict(state)
    number = state["number"] if state else 0
    ledger.resume(number)
    pace.expect(step, 16384, 16384)
    ledger.switch("steps")
    kept = (progress, {**pace.state_dict(), "number": number}) if state else (0.0, None)

    def checkpoint():
        nonlocal kept
        begun = machine.now
        ledger.checkpoint(number)
        machine.work(save, ledger)
        pace.saved(machine.now - begun)
        kept = (progress, {**pace.state_dict(), "number": number})
    if not state:
        checkpoint()
    while (following := pace.next_progress(0.0, progress)) is not None:
        begun = machine.now
        machine.work(step, ledger)
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
    pace.expect(0.1, 16384, 1)
    machine.now = 90.0
    before = pace.next_progress(0.0, 0.0)
    machine.now = 99.0  # that step took nine seconds
    assert 0.9 < before < 1.0 and pace.next_progress(0.0, before) == 1.0
    pace.step_seconds.append(9.0)
    assert pace.next_progress(0.0, before) is None  # another such step would not fit: better end early
    ledger.close("finished")


@pytest.fixture
def pace(tmp_path):
    """``pace("100s", reserve=3)``: a pace of settings on a clock at 0; ``pace.clock.now`` moves it."""
    ledgers = []

    def make(budget="100s", **train):
        machine = Machine(0, 1.0)
        ledgers.append(Ledger(tmp_path / f"{len(ledgers)}.jsonl", Budget.parse(budget), "run", heartbeat=99, clock=machine))
        return Pace(ledgers[-1], Train(**train), clock=machine)
    yield make
    for ledger in ledgers:
        ledger.close("finished")


def test_the_reserve_is_as_configured_or_measured(pace):
    fixed, measured = pace(reserve=3.0), pace()
    for each in (fixed, measured):
        each.saved(5.0), each.saved(1.0)  # the slowest counts
    assert fixed.reserve() == 3.0 and measured.reserve() == pytest.approx(2 * 5.0 + 0.6)
    assert pace("24h").reserve() == 10.0


def test_the_first_step_is_expected_three_times_as_slow_as_tried(pace):
    for left, progress in ((6.5, 6.0 / 100), (5.9, 1.0), (2.9, None)):
        fresh = pace(reserve=0.0)
        fresh.expect(1.0, 16384, 32768)
        fresh.clock.now = 100.0 - left
        got = fresh.next_progress(0.0, 0.0)
        assert got == progress if progress in (1.0, None) else 0.9 < got < 1.0


def test_a_validation_that_was_expected_to_be_dear_and_is_cheap_is_made_until_the_end(pace):
    fresh = pace(reserve=0.0)
    fresh.expect(0.5, 2048, 16384)      # eight steps of three times 0.5 s
    for spent, may in ((75.0, True), (77.0, False)):
        fresh.clock.now = spent
        assert fresh.may_validate() == may
    fresh.validated(1.0)
    assert fresh.may_validate()
    fresh.clock.now = 98.5
    assert not fresh.may_validate()
    again = pace(reserve=0.0)
    again.load_state_dict(fresh.state_dict() | {"step": 0.5})
    again.expect(0.5, 2048, 16384)
    again.clock.now = 90.0
    assert again.may_validate()         # the next session knows what it cost


def test_the_slowest_recent_step_decides(pace):
    slow = pace(reserve=0.0)
    slow.step_seconds.extend([10.0, 1.0, 1.0])
    slow.clock.now = 85.0
    assert slow.next_progress(0.0, 0.0) == 1.0
    slow.step_seconds.extend([1.0] * 16)  # long ago
    assert slow.next_progress(0.0, 0.0) < 1.0


def test_progress_never_falls(pace):
    late = pace(reserve=0.0)
    late.step_seconds.append(1.0)
    assert late.next_progress(0.0, 0.5) == 0.5


def test_nothing_follows_the_step_with_progress_one(pace):
    early = pace(reserve=0.0)
    early.step_seconds.append(1.0)
    assert early.next_progress(0.0, 1.0) is None
    assert pace("10 steps").next_progress(1, 1.0) is None


def test_a_closing_step_needs_room_for_the_last_save(pace):
    tight = pace()
    tight.saved(2.0)
    tight.step_seconds.append(1.0)
    for now, progress in ((95.9, 1.0), (96.1, None)):  # a step of 1 s and one and a half saves of 2 s
        tight.clock.now = now
        assert tight.next_progress(0.0, 0.5) == progress


def test_work_on_the_side_needs_twice_its_time(pace):
    busy = pace(reserve=10.0)
    for now, room in ((79.9, True), (80.1, False)):
        busy.clock.now = now
        assert busy.has_room(5.0) == room
    assert pace("10 steps").has_room(1e9)


@pytest.mark.parametrize("save, seconds", [(0.01, 10.0), (1.0, 100.0), (60.0, 600.0)])
def test_saving_costs_one_percent_at_most(pace, save, seconds):
    seldom = pace("24h")
    seldom.saved(save)
    for since, due in ((seconds - 0.1, False), (seconds + 0.1, True)):
        seldom.clock.now = since
        assert seldom.save_is_due(1) == due


def test_saving_is_due_as_configured(pace):
    by_time, by_steps = pace(checkpoint_every=7.0), pace(checkpoint_every_steps=4)
    by_time.clock.now = 7.5
    assert by_time.save_is_due(1) and [by_steps.save_is_due(step) for step in (3, 4, 5, 8)] == [False, True, False, True]


def test_costs_are_known_to_the_next_session(pace):
    first, second = pace(), pace()
    first.step_seconds.extend([1.0, 4.0, 2.0])
    first.saved(5.0), first.validated(6.0)
    second.load_state_dict(first.state_dict())
    assert (max(second.step_seconds), second.save_seconds, second.validation_seconds) == (4.0, 5.0, 6.0)
