"""Run the commands of a lesson as they stand there, in a shell, in a folder of their own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import cram
from cram.errors import CramError
from cram.insight.lesson.compare import differences, rewritten
from cram.insight.lesson.course import Lesson, Step
from cram.insight.lesson.text import FOLDER, write_text
from data_prep.files import replace_durably


Shell = Callable[[str, Path, dict[str, str]], tuple[int, str]]


class Outcome(NamedTuple):
    """A command of a lesson, and the lines that it printed; a line '[exit code 2]' at the end where it failed."""

    step: Step
    printed: list[str]


def prepare(lesson: Lesson, work: Path) -> None:
    """The folder with the course's text. CramError where an earlier run lies: what is there would not be made again, so nothing
    could be compared."""
    runs = [path.name for path in (work / FOLDER.parent).glob("*") if path.name != FOLDER.name]
    if runs:
        raise CramError(f"{work}: an earlier run is there ({FOLDER.parent / runs[0]}), and would not be made again; remove the "
                        f"folder, or give another one: cram lesson {lesson.number} --run --out DIR")
    write_text(work / FOLDER)


def bash(command: str, work: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command as it would be typed: exit code, and all that it printed."""
    done = subprocess.run(["bash", "-c", command], cwd=work, env=environment, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, errors="replace", check=False)
    return done.returncode, done.stdout


def run(lesson: Lesson, work: Path, shell: Shell = bash) -> Iterator[Outcome]:
    """Run its commands in turn, in ``work``. They find ``cram`` by a small script, which is this very program."""
    commands = (work / ".bin").absolute()
    commands.mkdir(parents=True, exist_ok=True)
    script = commands / "cram"
    replace_durably(script, f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cram \"$@\"\n".encode())
    script.chmod(0o755)
    root = str(Path(cram.__file__).absolute().parents[1])
    environment = os.environ | {"PATH": os.pathsep.join((str(commands), os.environ.get("PATH", ""))), "PYTHONUNBUFFERED": "1",
                                "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    for step in lesson.steps:
        code, printed = shell(step.command, work, environment)
        yield Outcome(step, [line.rstrip() for line in printed.splitlines()] + ([f"[exit code {code}]"] if code else []))


def run_and_compare(lesson: Lesson, work: Path, say: Callable[[str], None], shell: Shell = bash) -> int:
    """Say each command, what it printed where the lesson shows it, and each line that differs. Returns how many differ."""
    prepare(lesson, work)
    count = 0
    for step, printed in run(lesson, work, shell):
        say(f"$ {step.command}")
        for line in printed:
            say(f"  {line}")
        for expected, found in differences(step.expected, printed, step.tolerance):
            count += 1
            say(f"differs beyond {step.tolerance:.1%}: the lesson says  {expected or '(no more lines)'}")
            say(f"{'this run printed':>35}  {found if found is not None else '(nothing like it)'}")
    say(f"lesson {lesson.number}: " + ("all as the lesson says" if not count else f"{count} lines differ from the lesson"))
    return count


def update(lesson: Lesson, work: Path, say: Callable[[str], None]) -> int:
    """Rewrite the lesson's excerpts from a run; for those who keep the course. Returns how many lines found no successor."""
    prepare(lesson, work)
    lines, lost_lines = lesson.text.split("\n"), 0
    for step, printed in reversed(list(run(lesson, work))):
        new, lost = rewritten(step.expected, printed)
        lines[step.lines[0]:step.lines[1]] = new
        lost_lines += len(lost)
        for line in lost:
            say(f"{lesson.path}: $ {step.command}: nothing printed resembles '{line}'; edit it by hand")
    replace_durably(lesson.path, "\n".join(lines).encode())
    say(f"{lesson.path}: written")
    return lost_lines
