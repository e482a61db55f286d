"""cram bench overhead: every moment is charged once, to the innermost probe, and what the probes name is there."""

import json
import sys
import threading
import types

import pytest

from cram import schedule
from cram.bench import overhead
from cram.bench.overhead import DEVICE, LEDGER, PROBES, REST, STEP, Account, find, probed
from cram.cli import main
from cram.errors import CramError
from cram.ledger import Ledger


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_time_is_charged_to_the_innermost_and_once():
    clock = Clock()
    account = Account(clock)

    def spend(seconds):
        clock.now += seconds

    inner = account.twin(lambda: spend(3), LEDGER)

    def work():
        spend(1), inner(), spend(2)
        raise KeyError

    outer = account.twin(work, DEVICE, each_step=True)
    spend(5)
    with pytest.raises(KeyError):
        outer()
    spend(4)
    account.new_step()
    assert account.steps == [{REST: 5}, {DEVICE: 3, LEDGER: 3, REST: 4}] and clock.now == 15


def test_other_threads_are_not_charged():
    clock = Clock()
    account, results = Account(clock), []

    def beat():
        clock.now += 7
        results.append(1)

    thread = threading.Thread(target=account.twin(beat, LEDGER))
    thread.start()
    thread.join()
    account.new_step()
    assert results == [1] and account.steps == [{REST: 7}]


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe[1])
def test_every_probe_is_there(probe):
    owner, name, there = find(probe[1])
    assert callable(getattr(there, "fget", there)) and getattr(owner, name) is not None


@pytest.mark.parametrize("wrong", ["cram.train:Day.wander", "cram.nowhere:f", "cram.ledger:Lodger.count"])
def test_what_is_nowhere_is_named_and_nothing_is_exchanged(wrong):
    before = schedule.learning_rate
    with pytest.raises(CramError, match=f"{wrong}, which is not there; correct PROBES"):
        with probed(Account(), [(LEDGER, "cram.schedule:learning_rate"), (REST, wrong)]):
            pass
    assert schedule.learning_rate is before


def test_probes_reach_every_importer_and_are_taken_back(monkeypatch):
    clock = Clock()
    account = Account(clock)

    def function():
        clock.now += 2
        return "result"

    home, user = (types.ModuleType(f"cram.test_{name}") for name in ("home", "user"))
    home.function = user.borrowed = function
    for module in (home, user):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spent = Ledger.__dict__["spent"]
    with probed(account, [(LEDGER, "cram.test_home:function"), (DEVICE, "cram.ledger:Ledger.spent")]):
        assert user.borrowed() == home.function() == "result" and user.borrowed is not function
        assert isinstance(Ledger.__dict__["spent"], property) and Ledger.__dict__["spent"] is not spent
    assert user.borrowed is home.function is function and Ledger.__dict__["spent"] is spent
    assert account.seconds[LEDGER] == 4


def test_a_step_is_typical_whatever_held_up_one_of_ten():
    assert overhead.typical([1.0] * 9 + [11.0] + [2.0] * 10 + [1.0] * 9 + [500.0]) == 2.0


def test_the_least_of_the_runs_counts():
    rounds = [{"seconds": {DEVICE: 0.09, LEDGER: 0.02, REST: 0.001}, "charged": 0.9, "batch_tokens": 8},
              {"seconds": {DEVICE: 0.2, LEDGER: 0.004, REST: 0.001}, "charged": 0.8, "batch_tokens": 8}]
    rows = {row["category"]: row for row in overhead._rows("demo", rounds)}
    own = rows["the loop's own"]
    assert own["us"] == pytest.approx(5000) and own["step_ms"] == pytest.approx(95) and own["charged"] == pytest.approx(0.85)
    assert own["share"] == pytest.approx(5 / 95) and own["share_100"] == pytest.approx(0.05) and "share_100" not in rows[DEVICE]


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    from cram.train import Day

    before = Day.optimizer_step
    assert main(["bench", "overhead", "--quick", "--out", str(tmp_path)]) == 0
    assert Day.optimizer_step is before and STEP in {path for probe in PROBES for path in probe}
    rows = json.loads((tmp_path / "overhead_cpu.json").read_text())["rows"]
    assert {row["config"] for row in rows} == {"demo", "demo_gpt"} and not any("error" in row for row in rows)
    for config in ("demo", "demo_gpt"):
        us = {row["category"]: row["us"] for row in rows if row["config"] == config}
        own = us.pop("the loop's own")
        assert all(value > 0 for value in us.values()), "every category was met"
        assert sum(us.values()) == pytest.approx(own + us[DEVICE]) and us[DEVICE] > 1000
