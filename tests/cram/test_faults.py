"""Faults in processes of the command line (``cram bench faults``, short), and the judgement that finds the damage.

The processes are forked off one that has imported torch, but those that something else is done to before they start.
"""

import json
import random
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from cram import checkpoint
from cram.bench import fault_runs, faults, write
from cram.bench.fault_kinds import FAULTS
from cram.bench.fault_runs import Ground, Result, differing, state_bytes_lost
from cram.errors import CramError
from tests.cram import forked

SHORT = ("kill-saving", "kill-validating", "kill-preparing", "disk-before", "disk-during", "truncated", "shard-foreign",
         "two-processes", "clock", "nan", "explosion", "memory")


REAL = ("clock", "nan", "memory")   # what the interpreter imports first, or how much memory there is, is part of these


@pytest.fixture(scope="module")
def forking():
    """Processes of trials are forked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fault_runs, "subprocess", SimpleNamespace(Popen=forked.Popen, STDOUT=subprocess.STDOUT,
                                                                TimeoutExpired=subprocess.TimeoutExpired))
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory, forking):
    return Ground(tmp_path_factory.mktemp("faults"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_a_run_survives_bit_for_bit(ground, monkeypatch, name):
    if name in REAL:
        monkeypatch.setattr(fault_runs, "subprocess", subprocess)
    result = FAULTS[name].strike(ground, random.Random(name))
    assert not result.problems and result.bytes_lost == 0, result


@pytest.mark.slow
def test_a_run_killed_at_any_moment_stays_inside_its_time_and_replays_bit_for_bit(ground):
    result = faults.kill_anywhere(ground, "10s", 2, random.Random(0))
    assert not result.problems and result.tried > 0 and "% of the budget spent" in result.note, result


@pytest.fixture
def ended(ground):
    """(an uninterrupted run, a copy of it to be harmed)"""
    straight, copy = ground.straight("10 steps"), ground.trial("10 steps")
    shutil.rmtree(copy.out)
    shutil.copytree(straight.out, copy.out, symlinks=True)
    copy.processes = list(straight.processes)
    return straight, copy


def test_the_judge_finds_every_kind_of_damage(ended):
    straight, copy = ended
    assert copy.judge(straight) == Result([], pytest.approx(0, abs=0.01), 0)
    progress, metrics, ledger = (copy.run_dir / name for name in ("progress.f64", "metrics.jsonl", "ledger.jsonl"))
    shard = next((copy.out / "run" / "data").glob("train-*.bin"))
    lines = metrics.read_text().splitlines(keepends=True)
    row = next(number for number, line in enumerate(lines) if '"step": 7' in line)
    for path, content, problem in (
            (progress, progress.read_bytes()[:-3], "3 bytes of progress differ"),
            (shard, bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:], "1 bytes of data differ"),
            (metrics, "".join(lines[:row + 1] + lines[row:]).encode(), "train rows stand twice"),
            (metrics, "".join(lines[:row] + lines[row + 1:]).encode(), "train rows differ"),
            (copy.out / ".left.tmp", b"", "left behind: .left.tmp")):
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        assert any(problem in each for each in copy.judge(straight).problems), problem
        path.write_bytes(before) if before is not None else path.unlink()
    process, = copy.processes
    ended, process.ended = process.ended, process.began - 10
    assert any("but the processes lived for -10" in each for each in copy.judge(straight).problems)
    process.ended = ended + 10
    assert not copy.judge(straight).problems    # it closed its ledger: what came after is no matter
    *rows, _ = ledger.read_bytes().splitlines(keepends=True)     # as if it had been killed before
    ledger.write_bytes(b"".join(rows))
    last = json.loads(rows[-1])
    ledger.with_suffix(".head").write_text(json.dumps({"row": last["row"], "hash": last["hash"]}))
    problems = copy.judge(straight).problems
    assert "the ledger ends with ''" in problems and any("s used" in each for each in problems), problems
    process.ended = ended
    state = copy.state()
    next(iter(state["model"].values())).reshape(-1)[0] += 1
    newest = checkpoint.list_checkpoints(copy.run_dir / "checkpoints")[0]
    checkpoint.save(newest.parent, state, step=10, run_id="another", keep=1)
    result = copy.judge(straight)
    assert 1 <= result.bytes_lost <= 8 and "of state differ" in result.problems[-1]


def test_bytes_are_counted():
    assert differing(b"abc", b"abc") == 0 and differing(b"abc", b"abd") == 1 and differing(b"abc", b"ab") == 1
    assert differing(b"", b"abcd") == 4
    a = {"w": torch.tensor([1.0, float("nan")]), "list": [1, {"x": None}], "pace": 1, "flag": torch.tensor(True)}
    same = {"w": torch.tensor([1.0, float("nan")]), "list": [1, {"x": None}], "pace": 2, "flag": torch.tensor(True)}
    assert state_bytes_lost(a, same) == 0
    assert state_bytes_lost({**a, "guard": {"unread": torch.zeros(5)}}, {**same, "guard": {"unread": torch.zeros(0)}}) == 0
    assert state_bytes_lost(a, {**same, "w": torch.tensor([1.0, 2.0])}) in (1, 2, 3, 4)
    for change in ({"w": torch.tensor([1.0])}, {"list": [1]}, {"list": [1, {"x": 0}]}, {"flag": torch.tensor(False)},
                   {"more": 1}):
        assert state_bytes_lost(a, {**same, **change}) > 0, change
    assert state_bytes_lost(a, {name: value for name, value in same.items() if name != "w"}) > 0


def test_rows_add_trials_up_and_tell_failures(tmp_path):
    good, bad = Result([], 0.5, 0, "a note", 1.5), Result(["4 bytes of state differ"], 0.25, 4, "hidden", 0.5)
    rows = [faults.row("killed", "x", "fault x", [(good, None), (good, None)]),
            faults.row("killed", "y", "fault y", [(good, None), (bad, None)]),
            faults.row("disk", "z", "fault z", [(None, "it never ended")])]
    assert [(each["tried"], each["survived"], each["lost"], each["bytes"], each["exit"]) for each in rows] == [
        (2, 2, 1.0, 0, 1.5), (2, 1, 0.75, 4, 1.5), (1, 0, 0.0, None, None)]
    assert [each["remark"] for each in rows] == ["a note", "4 bytes of state differ", "it never ended"]
    assert faults.conclude(rows) == ["Verdict: 3 of 5 faults survived, 4 bytes lost."]
    environment = {"device": "cpu", "name": "a processor", "threads": 1, "commit": None, "date": "today"}
    path = write.save({"schema": 1, "what": "faults", "command": "cram bench faults", "complete": True, "repeats": 2,
                       "environment": environment, "notes": faults.NOTES, "view": faults.VIEW, "rows": rows}, tmp_path)
    page, drawing = write.render(path)
    told = page.read_text()
    assert "| fault y | 2 | 1 | 0.75 | 4 | 1.50 | 4 bytes of state differ |" in told and "tried 2 time(s)" in told
    assert drawing.stat().st_size > 1000


@pytest.mark.parametrize("kills, runs", [(140, 6), (5, 4)])
def test_random_kills_are_shared_out_over_the_budgets(tmp_path, monkeypatch, kills, runs):
    struck = []
    monkeypatch.setattr(faults, "Ground", lambda folder: folder)
    monkeypatch.setattr(faults, "kill_anywhere", lambda ground, budget, kills, rng: struck.append((budget, kills)) or
                        Result([], tried=kills))
    rows = [row for rows in faults.measure([], kills, 1, tmp_path, lambda line: None) for row in rows]
    assert sum(row["tried"] for row in rows) == kills == sum(share for _, share in struck)
    assert [row["fault"] for row in rows] == list(faults.BUDGETS) and len(struck) == runs
    assert not list(faults.measure([], 0, 1, tmp_path, lambda line: None))


def test_wrong_options_name_what_is_possible(cram):
    code, _, err = cram("bench", "faults", "--faults", "kill-training,flood")
    assert code == 2 and "no fault 'flood'; possible: kill-training, " in err
    assert "--kills is for cram bench faults" in cram("bench", "step", "--kills", "3").err
    assert faults.choose(None) == list(FAULTS) and faults.choose(None, quick=True) == list(faults.QUICK)
    with pytest.raises(CramError, match="no fault ''"):
        faults.choose([""])


def test_a_stopped_run_says_the_command_that_resumes_it(monkeypatch, capsys, tmp_path):
    from cram import cli
    from cram.interrupt import Interrupted

    def stop(*_):
        raise Interrupted
    monkeypatch.setattr(cli.Runner, "run", stop)
    with pytest.raises(SystemExit) as exit:
        cli.main(["pretrain", "demo", f"out={tmp_path}/my runs", "--force"])
    assert exit.value.code == 143
    assert f"resume with: cram pretrain demo 'out={tmp_path}/my runs'\n" in capsys.readouterr().out
