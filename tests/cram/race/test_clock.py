"""Processes against the clock."""

import os
import sys
import time

from cram.race.clock import Command, run, shared_environment


def python(code, **env):
    return Command([sys.executable, "-c", code], os.getcwd(), env)


def alone(command, limit=30.0, **more):
    return run(command, threads=1, limit=limit, pin=True, **more)


def test_the_whole_process_is_timed_and_every_line_kept_with_its_time(tmp_path):
    outcome = alone(python("import time; print('one'); time.sleep(0.5); print('two')"), log=tmp_path / "log.txt")
    assert outcome.failure is None and [line for _, line in outcome.lines] == ["one", "two"]
    assert outcome.lines[1][0] - outcome.lines[0][0] > 0.4 and outcome.seconds >= outcome.lines[1][0]
    assert "two" in (tmp_path / "log.txt").read_text()


def test_threads_are_the_same_for_all_and_no_torchrun_is_inherited(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("RANK", "3")
    environment = shared_environment(2)
    assert environment["OMP_NUM_THREADS"] == "2" and "RANK" not in environment
    outcome = alone(python("import os; print(os.environ['OMP_NUM_THREADS'], len(os.sched_getaffinity(0)), os.environ['MINE'])",
                           MINE="x"))
    assert outcome.lines[0][1] == "1 1 x"


def test_a_failure_keeps_its_last_words():
    outcome = alone(python("import sys; [print(n) for n in range(50)]; print('why', file=sys.stderr); sys.exit(7)"))
    assert outcome.failure.startswith("exit status 7") and outcome.failure.endswith("why")
    assert len(outcome.failure.splitlines()) == 21


def test_who_is_far_too_late_is_stopped_with_its_children(tmp_path):
    sign = tmp_path / "sign"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(sign)!r}).touch()"
    outcome = alone(python(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"), limit=0.7)
    assert outcome.late and "far over its budget" in outcome.failure and outcome.seconds < 3
    time.sleep(3 - 0.7 + 0.5)
    assert not sign.exists()


def test_what_cannot_be_started_is_a_failure_too():
    assert "/no/such/python" in alone(Command(["/no/such/python"], os.getcwd())).failure
    assert "could not be started" in alone(Command([sys.executable], "/no/such/folder")).failure
