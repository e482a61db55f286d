"""A shell for lessons that need not import torch anew for every command: a process of its own each, forked off one that has."""

import os
import shlex
import sys

from cram.insight.lesson.console import bash
from tests.cram import forked

SHELL_ALONE = set("&;|<>$*")


def quick_shell(command, work, environment):
    """Exit code, and what was printed; what is more than a single command of ours goes to bash."""
    words = shlex.split(command)
    if words[0] != "cram" or SHELL_ALONE & set(command):
        return bash(command, work, environment)
    with open(work / ".printed", "w") as printed:
        done = forked.run([sys.executable, "-m", "cram", *words[1:]], cwd=work, env=os.environ | environment,
                          stdout=printed, stderr=forked.STDOUT)
    return done.returncode, (work / ".printed").read_text(errors="replace")
