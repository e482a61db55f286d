"""What the checks of exercises are made of: an answer, where the student's runs lie, and a verdict."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple, Optional

from cram.errors import CramError
from cram.insight.run import Run, open_run


class Verdict(NamedTuple):
    """right, and why; why never tells the answer to somebody who has not got it."""

    right: bool
    why: str


class Asked(NamedTuple):
    """answer: as typed, '' when none was given. runs: the folder of the student's runs, runs/lessons."""

    answer: str
    runs: Path

    def number(self) -> float:
        """The answer as a number: 12, 1,024, 3.5%, 2e5. CramError for 44,7: taken as 447 it would be judged as another."""
        if "," in self.answer and not re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?%?", self.answer.strip()):
            raise CramError(f"the answer is a number with a point before its fraction, such as 44.7, not {self.answer!r}")
        try:
            value = float(self.answer.replace(",", "").replace("_", "").removesuffix("%"))
        except ValueError:
            raise CramError(f"the answer is a number, such as 12.5, not {self.answer!r}") from None
        if not math.isfinite(value):
            raise CramError(f"the answer is a number, not {self.answer}")
        return value

    def word(self) -> str:
        if not self.answer:
            raise CramError("the answer is a word: give it after the number of the exercise")
        return self.answer.strip().lower()

    def folder(self) -> Path:
        """The answer as a folder: a path, or the name of a run beside those of the lesson."""
        if not self.answer:
            raise CramError("the answer is a run: give its folder, such as runs/lessons/mine")
        return path if (path := Path(self.answer)).is_dir() else self.made(self.answer)

    def run(self) -> Run:
        """The answer as a run that has finished its budget."""
        run = open_run(self.folder())
        if not run.finished:
            raise CramError(f"{run.folder}: has not finished; the command that made it resumes it")
        return run

    def made(self, name: str) -> Path:
        """The folder of a run that the lesson or the exercise makes. CramError when it is not there."""
        if not (self.runs / name).is_dir():
            raise CramError(f"{self.runs / name}: not there; run the commands of the lesson and of the exercise first, in this "
                            "folder or in the one named by --out")
        return self.runs / name


def number(asked: Asked, right: float, how: str, tolerance: float = 0.02) -> Verdict:
    """Judge a number: how says where it comes from."""
    answer = asked.number()
    if abs(answer - right) <= tolerance * max(abs(right), 1e-12):
        return Verdict(True, how)
    return Verdict(False, f"{asked.answer} is too {'much' if answer > right else 'little'}: {how}")


def yes_no(asked: Asked, right: bool, how: str) -> Verdict:
    if (word := asked.word()) not in ("yes", "no"):
        raise CramError(f"the answer is yes or no, not {asked.answer!r}")
    return Verdict((word == "yes") == right, how)


def compared(good: bool, reason: str, otherwise: str) -> Verdict:
    return Verdict(good, reason if good else otherwise)


def read(path: Path) -> Any:
    """A JSON file of a run. CramError when the stage that writes it has not run."""
    if not path.is_file():
        raise CramError(f"{path}: not there; run the commands of the lesson first")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CramError(f"{path}: not JSON ({error}); run the stage that writes it again with --force") from None


def only_differs(run: Run, other: Run, keys: tuple[str, ...]) -> Optional[str]:
    """The first key but these (and names and folders) in which two runs differ; None when there is none."""
    from cram.explain import differences

    allowed = (*keys, "name", "out")
    return next((key for key, _, _ in differences(run.config, other.config) if not key.startswith(allowed)), None)
