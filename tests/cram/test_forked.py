"""The forked processes of the tests are like those of subprocess: streams, exit codes, signals, environment, sessions."""

import os
import signal
import subprocess
import sys

import pytest

from tests.cram import forked

PROGRAMS = [
    "import os, sys; print(os.getcwd(), os.environ['MINE'], sys.argv[1:], __name__); print('no', file=sys.stderr); sys.exit(7)",
    "print('lost when buffered'); import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "print('seen', flush=True); import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "import sys; sys.exit('a last word')", "import os; print(os.getsid(0) == os.getpid())",
    "raise ValueError('wrong')", "import sys; print(repr(sys.stdin.read()))"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("session, unbuffered", [(False, ""), (True, "1")])
def test_like_those_of_subprocess(tmp_path, program, session, unbuffered):
    command = [sys.executable, "-c", program, "one", "two"]
    environment = {**os.environ, "MINE": "yes", "PYTHONUNBUFFERED": unbuffered}
    real, ours = (module.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment,
                             start_new_session=session, **options)
                  for module, options in ((subprocess, {"stdin": subprocess.DEVNULL}), (forked, {})))
    assert (ours.returncode, ours.stdout) == (real.returncode, real.stdout)
    assert ours.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_a_module_is_run_and_streams_may_be_one(tmp_path):
    (tmp_path / "mine.py").write_text("import sys\nprint(__name__, sys.argv[1:])\nprint('too', file=sys.stderr)\n")
    with open(tmp_path / "log", "w") as log:
        done = forked.run([sys.executable, "-m", "mine", "x"], stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    assert done.returncode == 0
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["__main__ ['x']", "too"]


def test_it_is_watched_signalled_and_waited_for():
    process = forked.Popen([sys.executable, "-c", "import sys, time, torch; print('here', flush=True); time.sleep(60)"],
                           stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n" and process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.05)
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2, capture_output=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) != 0 and process.communicate() == ("", None)


def test_the_environment_of_the_tests_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    forked._server.__wrapped__()
    assert os.environ["PYTHONPATH"] == "elsewhere"
    monkeypatch.delenv("PYTHONPATH")
    forked._server.__wrapped__()
    assert "PYTHONPATH" not in os.environ
