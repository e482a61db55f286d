"""``Popen`` and ``run`` as those of subprocess, for Python programs that import torch and all of ours: processes of their own,
forked off one that has imported them, which takes a tenth of a second instead of four.

For tests of what happens to a process, not of how the interpreter starts: each has its pid, signals, streams, environment,
folder and session; PYTHONHASHSEED, OMP_NUM_THREADS and sitecustomize.py, which are read at the start, do nothing.
"""

import functools
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.reduction
import os
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ["torch._dynamo", "cram.pipeline", "cram.cli", "cram.train", "cram.evaluate.stage", "cram.after.quantize",
            "cram.report", "cram.insight.ablate.command", "data_prep.tokenizer", "data_prep.pack", "tests.cram.forked"]


class Popen:
    """``[sys.executable, "-m", module, ...]`` or ``[sys.executable, "-c", code, ...]``, started."""

    def __init__(self, command, *, stdout=None, stderr=None, text=False, env=None, cwd=None, start_new_session=False):
        interpreter, self.args, pipes = command[0], command, []
        assert interpreter == sys.executable and command[1] in ("-m", "-c"), command

        def opened(stream, standard):
            """(our end or None, a descriptor for the process, whether it is ours to close)"""
            if stream is PIPE:
                ours, theirs = os.pipe()
                return open(ours, "r" if text else "rb"), theirs, True
            if stream is DEVNULL:
                return None, os.open(os.devnull, os.O_WRONLY), True
            return None, standard if stream is None else stream.fileno(), False

        self.stdout, out, close = opened(stdout, 1)
        pipes += [out] * close
        if stderr is STDOUT:
            self.stderr, err = None, out
        else:
            self.stderr, err, close = opened(stderr, 2)
            pipes += [err] * close
        environment = {name: str(value) for name, value in (os.environ if env is None else env).items()}
        arguments = [str(argument) for argument in command[1:]]
        self._process = _server().Process(target=_become, args=(
            arguments, _Descriptor(out), _Descriptor(err), str(cwd or os.getcwd()), environment, start_new_session))
        self._process.start()
        self.pid = self._process.pid
        for pipe in pipes:
            os.close(pipe)

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout=None):
        """(all of stdout, all of stderr), None for what is no pipe."""
        read = [None, None]

        def fill(place, stream):
            read[place] = stream.read()

        threads = [threading.Thread(target=fill, args=(place, stream), daemon=True)
                   for place, stream in enumerate((self.stdout, self.stderr)) if stream]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        return tuple(read)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for stream in (self.stdout, self.stderr):
            if stream:
                stream.close()
        self.wait()


def run(command, *, capture_output=False, check=False, timeout=None, **options):
    """subprocess.run; after the timeout the process is killed."""
    if capture_output:
        options.update(stdout=PIPE, stderr=PIPE)
    with Popen(command, **options) as process:
        try:
            out, err = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


@functools.cache
def _server():
    """Starts the process that all others are forked off: one for each process of tests, ended with it."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    try:
        multiprocessing.forkserver.set_forkserver_preload(IMPORTED)
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if path is not None:
            os.environ["PYTHONPATH"] = path
    return multiprocessing.get_context("forkserver")


class _Descriptor:
    """A file descriptor on its way to a process that is being started."""

    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _arrived, (multiprocessing.reduction.DupFd(self.number),)


def _arrived(descriptor):
    return descriptor.detach()


def _become(arguments, out, err, cwd, environment, session):
    """What the interpreter does between its start and the program."""
    if session:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)    # whether or not the tests were started in the background
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, standard in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(ours, standard)
    for ours in {nothing, out, err}:
        os.close(ours)
    sys.stdout = open(1, "w", buffering=1 if environment.get("PYTHONUNBUFFERED") else -1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    how, what, *rest = arguments
    sys.argv = [how, *rest]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
