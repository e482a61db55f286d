"""A shell for lessons that need not import torch anew for every command: a process of its own each, forked off one that has."""

import multiprocessing
import os
import shlex
import sys

from cram.insight.lesson.console import bash

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["cram.train", "cram.evaluate.stage", "cram.report", "cram.cli"])
SHELL_ALONE = set("&;|<>$*")


def quick_shell(command, work, environment):
    """Exit code, and what was printed; what is more than a single command of ours goes to bash."""
    words = shlex.split(command)
    if words[0] != "cram" or SHELL_ALONE & set(command):
        return bash(command, work, environment)
    printed = work / ".printed"
    process = FORKED.Process(target=_typed, args=(words[1:], work, printed, environment))
    process.start()
    process.join()
    return process.exitcode, printed.read_text(errors="replace")


def _typed(arguments, work, printed, environment):
    os.chdir(work)
    os.environ.update(environment)
    with open(os.devnull) as nothing, open(printed, "w", buffering=1) as file:
        os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        from cram.cli import main
        sys.exit(main(arguments))
