"""The lessons as files: ``configs/lessons/3_packing.md`` is lesson 3, ``lab1_kill.md`` the first failure lab.

The file is what one reads on a web page; this module finds in it what can be run. A fenced block of ``console`` holds commands,
each on a line of its own after ``$ ``, and below each what it prints, shortened by lines of ``...``. A comment before the
block says how far its numbers may lie from a run elsewhere: ``<!-- tolerance: 5% -->``; nothing said: 2%.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cram.config import SHIPPED
from cram.errors import CramError

FOLDER = SHIPPED / "lessons"
TOLERANCE = 0.02
FILE = re.compile(r"(?P<number>\d+|lab\d+)_(?P<name>[a-z_]+)\.md")
TOLERANCE_LINE = re.compile(r"<!-- tolerance: ([\d.]+)% -->")
EXERCISE = re.compile(r"^(\d+)\. ", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    """A command and what the lesson says that it prints. lines: where those stand in the file, from 0, the end excluded."""

    command: str
    expected: tuple[str, ...]
    lines: tuple[int, int]
    tolerance: float


@dataclass(frozen=True)
class Lesson:
    """number: '3' or 'lab1'. minutes: what it takes a student, text and exercises."""

    number: str
    name: str
    title: str
    minutes: int
    text: str
    steps: tuple[Step, ...]
    path: Path

    @property
    def folder(self) -> str:
        return f"{self.number}_{self.name}"

    @property
    def exercises(self) -> list[str]:
        """The numbers of its exercises."""
        return EXERCISE.findall(self.text.partition("\n## Exercises\n")[2].partition("\n## ")[0])


def lessons(folder: Path = FOLDER) -> list[Lesson]:
    """All, in the order of the course: lessons, then labs."""
    found = [read_lesson(path) for path in folder.glob("*_*.md") if FILE.fullmatch(path.name)]
    return sorted(found, key=lambda lesson: (lesson.number.startswith("lab"), int(lesson.number.removeprefix("lab"))))


def find_lesson(wanted: str) -> Lesson:
    """By number, name or both: 3, packing, 3_packing, lab1, kill. CramError for another."""
    found = lessons()
    for lesson in found:
        if wanted in (lesson.number, lesson.name, lesson.folder):
            return lesson
    raise CramError(f"lesson {wanted!r}: there is none; possible: {', '.join(lesson.folder for lesson in found)}")


def read_lesson(path: Path) -> Lesson:
    """CramError, with file and line, where the file is not written as a lesson is."""
    text, named = path.read_text(encoding="utf-8"), FILE.fullmatch(path.name)
    title, minutes = re.match(r"# (.+)\n", text), re.search(r"<!-- minutes: (\d+) -->", text)
    if not named or not title or not minutes:
        raise CramError(f"{path}:1: a lesson is a file such as 3_packing.md, begins with '# title' and has a line "
                        "'<!-- minutes: 25 -->'; add what is missing")
    return Lesson(named["number"], named["name"], title[1], int(minutes[1]), text, tuple(_steps(path, text.split("\n"))), path)


def _steps(path: Path, lines: list[str]) -> list[Step]:
    steps: list[Step] = []
    tolerance, number = TOLERANCE, 0
    while number < len(lines):
        if stated := TOLERANCE_LINE.fullmatch(lines[number]):
            tolerance = float(stated[1]) / 100
        if lines[number] == "```console":
            if "```" not in lines[number:]:
                raise CramError(f"{path}:{number + 1}: the block is never closed; end it with a line of ```")
            end = lines.index("```", number)
            starts = [place for place in range(number + 1, end) if lines[place].startswith("$ ")]
            if not starts or starts[0] != number + 1:
                raise CramError(f"{path}:{number + 2}: a block of console begins with a command: '$ cram ...'")
            for place, following in zip(starts, [*starts[1:], end]):
                steps.append(Step(lines[place][2:], tuple(lines[place + 1:following]), (place + 1, following), tolerance))
            tolerance, number = TOLERANCE, end
        number += 1
    return steps


def plain(text: str) -> str:
    """A lesson for a terminal: without comments, fences and the marks of links; what is typed stands indented."""
    lines, code = [], False
    for line in re.sub(r"<!--.*?-->\n?", "", text).split("\n"):
        if line.startswith("```"):
            code = not code
        else:
            words = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", line).replace("`", "")
            lines.append(f"    {line}" if code else words)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
