"""The ledger: nothing spent is forgotten, under any crash schedule (edits: test_ledger_damage.py)."""

import errno
import json
import math
import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cram.ledger
from cram.audit import crash_charge, read_ledger
from cram.budget import Budget
from cram.ended import seconds_left
from cram.errors import CramError
from cram.ledger import CATEGORIES, Ledger
from tests.cram.ledgers import FakeClock, die


def test_every_second_belongs_to_one_category(tmp_path):
    clock = FakeClock()
    ledger = Ledger(tmp_path / "ledger.jsonl", Budget.parse("100s"), "run", clock=clock)
    clock.now += 3
    ledger.switch("steps")
    clock.now += 10
    with ledger.account("validation"):
        clock.now += 2
        with ledger.account("saving"):
            clock.now += 1
    clock.now += 4
    ledger.count(steps=7, tokens=70, flops=7e9)
    ledger.close("finished")
    summary = read_ledger(tmp_path / "ledger.jsonl")
    assert summary.account == {"setup": 3, "compile": 0, "steps": 14, "validation": 2, "saving": 1, "data_wait": 0, "teacher": 0,
                               "lost": 0}
    assert summary.seconds == summary.spent == 20 and summary.fraction == 0.2
    assert (summary.steps, summary.tokens, summary.flops) == (7, 70, 7e9)
    assert summary.closed and summary.reason == "finished"


def test_a_crash_costs_the_time_since_the_checkpoint_plus_one_heartbeat(tmp_path):
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=1000.0, clock=clock)
    ledger.resume(0)
    ledger.switch("steps")
    clock.now += 10
    ledger.count(steps=5, tokens=50)
    ledger.checkpoint(5)
    clock.now += 7
    ledger.count(steps=3, tokens=30)
    ledger._append("heartbeat")
    clock.now += 2  # never written down
    die(ledger)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["heartbeat"] == 1000.0
    clock.now += 5000  # the machine was off: not charged
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=5.0, clock=clock)
    # one interval would be 1000 s; a live session would have stopped at the end of the budget
    assert ledger.seconds == 100
    lost = ledger.resume(5)
    assert lost == pytest.approx(90)
    assert ledger.account_seconds["steps"] == 10 and ledger.account_seconds["lost"] == pytest.approx(90)
    ledger.close("finished")
    assert read_ledger(path).steps == 5


@pytest.mark.parametrize("gaps, world_size, charged", [
    ((2.5, 2.5), 1, 5.0),       # rows on time: one interval
    ((2.5, 4.0, 1.0), 1, 8.0),  # one came late, so the next may have been late too
    ((2.5, 4.0, 1.0), 2, 16.0),
    ((), 2, 10.0)])
def test_a_session_whose_rows_came_late_is_charged_more_when_it_dies(tmp_path, gaps, world_size, charged):
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=5.0, world_size=world_size, clock=clock)
    for gap in gaps:
        clock.now += gap
        ledger._append("heartbeat")
    die(ledger)
    dead = read_ledger(path)
    assert crash_charge(dead.rows) == charged and seconds_left(dead) == 100 - sum(gaps) * world_size - charged
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=5.0, clock=clock)
    assert ledger.account_seconds["lost"] == charged and ledger.seconds == sum(gaps) * world_size + charged
    ledger.close("stopped")
    assert crash_charge(read_ledger(path).rows) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["work", "beat", "save", "crash", "close"]), st.floats(0.0, 4.9)), max_size=40))
def test_charged_time_is_never_less_than_device_time_under_any_crash_schedule(tmp_path_factory, events):
    """Sessions whose rows come within an interval: charged >= truly used and not much more; categories sum to the total."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    clock, interval, used, step, saved, crashes = FakeClock(), 5.0, 0.0, 0, 0, 0
    budget = Budget.parse("1000h")

    def start():
        ledger = Ledger(path, budget, "run", heartbeat=interval, clock=clock)
        ledger.resume(saved)
        ledger.switch("steps")
        return ledger
    ledger, silent = start(), 0.0
    for event, seconds in events:
        if silent + seconds >= interval:
            ledger._append("heartbeat")
            silent = 0.0
        clock.now += seconds
        used += seconds
        silent += seconds
        if event == "beat":
            ledger._append("heartbeat")
            silent = 0.0
        elif event == "save":
            step += 1
            ledger.count(steps=1)
            ledger.checkpoint(step)
            saved, silent = step, 0.0
        elif event in ("crash", "close"):
            die(ledger) if event == "crash" else ledger.close("interrupted")
            crashes += event == "crash"
            clock.now += 1000.0  # nobody holds the device
            ledger, silent, step = start(), 0.0, saved
    assert used - 1e-3 <= ledger.seconds <= used + 2 * interval * crashes + 1e-3
    ledger.close("finished")
    summary = read_ledger(path)
    assert summary.seconds == pytest.approx(sum(summary.account.values()))
    assert summary.steps == saved if events and events[-1][0] in ("crash", "close") else summary.steps >= 0
    assert set(summary.account) == set(CATEGORIES)


def test_heartbeats_come_by_themselves(tmp_path):
    import time
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=0.02)
    time.sleep(0.5)
    ledger.close("interrupted")
    beats = [row for row in read_ledger(path).rows if row["kind"] == "heartbeat"]
    assert len(beats) >= 3 and not math.isnan(beats[-1]["seconds"])


def test_world_size_multiplies_time_and_energy_adds_up(tmp_path):
    path, clock, joules = tmp_path / "ledger.jsonl", FakeClock(), [50.0]
    for _ in range(2):
        ledger = Ledger(path, Budget.parse("100s"), "run", world_size=4, clock=clock)
        ledger.measure_energy(lambda: joules[0])
        ledger.resume(0)
        clock.now += 2
        joules[0] += 30.0
        ledger.close("interrupted")
        joules[0] += 1000.0  # somebody else used the card
    summary = read_ledger(path)
    assert summary.seconds == 16 and summary.energy_joules == 60.0


def test_a_checkpoint_that_the_ledger_does_not_know_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", Budget.parse("100s"), "run")
    with pytest.raises(CramError, match="knows no checkpoint of step 7"):
        ledger.resume(7)
    ledger.close("interrupted")


def test_a_step_saved_twice_counts_from_the_second_time(tmp_path):
    """After falling back from a damaged checkpoint the same step is reached, and saved, again."""
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    ledger = Ledger(path, Budget.parse("100s"), "run", clock=clock)
    for _ in range(2):
        ledger.switch("steps")
        clock.now += 10
        ledger.checkpoint(5)
        ledger.close("interrupted")
        ledger = Ledger(path, Budget.parse("100s"), "run", clock=clock)
        assert ledger.resume(5) == 0.0
    assert ledger.account_seconds["steps"] == 20
    ledger.close("interrupted")


def test_a_crash_on_several_devices_is_charged_for_each(tmp_path):
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    die(Ledger(path, Budget.parse("100s"), "run", heartbeat=2.0, world_size=4, clock=clock))
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=2.0, world_size=4, clock=clock)
    assert ledger.account_seconds["lost"] == 8.0
    ledger.close("interrupted")


def test_rolling_back_loses_what_came_since_and_nothing_else(tmp_path):
    clock = FakeClock()
    ledger = Ledger(tmp_path / "ledger.jsonl", Budget.parse("100s"), "run", clock=clock)
    ledger.resume(0)
    clock.now += 1  # setup
    ledger.switch("steps")
    clock.now += 10
    ledger.count(steps=5, tokens=50)
    ledger.checkpoint(5)
    clock.now += 7
    with ledger.account("validation"):
        clock.now += 2
    ledger.count(steps=3, tokens=30)
    assert ledger.roll_back(5) == pytest.approx(9)
    clock.now += 4
    ledger.count(steps=1, tokens=10)
    account = ledger.account_seconds
    assert (account["setup"], account["steps"], account["validation"], account["lost"]) == (1, 14, 0, 9)
    assert ledger.seconds == 24
    ledger.close("finished")
    summary = read_ledger(tmp_path / "ledger.jsonl")
    assert (summary.steps, summary.tokens, summary.seconds) == (6, 60, 24)


@pytest.mark.parametrize("budget, spent", [("100s", 12), ("1000 tokens", 70), ("9e9 flops", 7e9), ("70 steps", 7)])
def test_a_teacher_is_paid_once_in_every_unit_and_stays_paid(tmp_path, budget, spent):
    clock = FakeClock()
    teacher = Ledger(tmp_path / "teacher" / "ledger.jsonl", Budget.parse("20s"), "teacher", clock=clock)
    clock.now += 12
    teacher.count(steps=7, tokens=70, flops=7e9)
    teacher.close("finished")
    bill = read_ledger(tmp_path / "teacher" / "ledger.jsonl")
    for session in range(2):  # the second finds it paid
        ledger = Ledger(tmp_path / "ledger.jsonl", Budget.parse(budget), "run", heartbeat=100, clock=clock)
        ledger.pay_for_teacher(bill)
        ledger.resume(0)  # nothing was saved: all but the teacher starts anew
        assert ledger.spent == spent and ledger.account_seconds["teacher"] == 12
        ledger.close("interrupted")
    assert read_ledger(tmp_path / "ledger.jsonl").rows[1]["teacher"] == bill.head
    ledger = Ledger(tmp_path / "ledger.jsonl", Budget.parse(budget), "run", heartbeat=100, clock=clock)
    bill.head = "another"
    with pytest.raises(CramError, match="has paid for the teacher.*use that teacher"):
        ledger.pay_for_teacher(bill)
    ledger.close("interrupted")


@pytest.mark.parametrize("full", ["no row", "half a row", "no head"])
def test_a_full_disk_tears_nothing_and_the_time_is_told_later(tmp_path, monkeypatch, full):
    clock, path = FakeClock(), tmp_path / "ledger.jsonl"
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=0.01, clock=clock)
    real, replace = os.write, cram.ledger.replace_durably

    def write(descriptor, content):
        if full == "half a row":
            return real(descriptor, content[:50])
        raise OSError(errno.ENOSPC, "No space left on device")

    def no_head(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as disk:
        disk.setattr(cram.ledger, "replace_durably", no_head) if full == "no head" else disk.setattr(os, "write", write)
        clock.now += 7
        with pytest.raises(OSError, match="No space"):
            ledger.checkpoint(1)
        time.sleep(0.1)  # heartbeats fail
        with pytest.raises(CramError, match="cannot be written.*make room and run the same command again"):
            ledger.count(steps=1)
    assert cram.ledger.replace_durably is replace
    clock.now += 1
    size = path.stat().st_size
    time.sleep(0.05)
    assert path.stat().st_size > size  # and go on
    ledger.count(steps=1)
    ledger.close("finished")
    assert read_ledger(path).seconds == 8
