"""How each competitor is brought to the start: a module a program, with the functions of ``Adapter``.

A module of your own serves as well: write its dotted name behind ``adapter:`` in the race's file.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Optional, Protocol, Sequence

from cram.errors import CramError
from cram.race.clock import Command, Outcome
from cram.race.course import Course

BUILT_IN = ("autoresearch", "cram", "cramming", "modded", "nanogpt")


@dataclass(frozen=True)
class Job:
    """One run that is asked of a competitor.

    label: name of the run, for those who name runs; settings: of the race's file, with what tuning chose; layout: where
    ``lay_out`` put text and tokenizer; folder: its own, empty; amount: in ``unit``; checkout, python: where the program lies
    and what it is run with.
    """

    label: str
    settings: Mapping[str, str]
    course: Course
    layout: Path
    folder: Path
    seed: int
    amount: float
    unit: str
    device: str
    threads: int
    checkout: Optional[Path]
    python: str


class Adapter(Protocol):
    """What the referee asks about a program.

    SOURCE: where a checkout comes from, None for ours. KINDS: races it can run in. UNITS: what its length is told in, that
    of the race first; "steps" measures speed. FIRST: an amount of UNITS[0] that is over quickly.
    """

    SOURCE: Optional[str]
    KINDS: Sequence[str]
    UNITS: Sequence[str]
    FIRST: float

    def refuse(self, device: str, checkout: Optional[Path]) -> Optional[str]:
        """Why it cannot run here; None when it can."""

    def lay_out(self, course: Course, settings: Mapping[str, str], folder: Path, python: str, checkout: Optional[Path]) -> None:
        """Write text and tokenizer into ``folder`` as the program reads them. Exempt."""

    def context(self, settings: Mapping[str, str]) -> int:
        """Tokens of the rows it was made for."""

    def tokens_per_step(self, settings: Mapping[str, str]) -> int:
        """Tokens of one step."""

    def command(self, job: Job) -> Command:
        """What is started and timed."""

    def tokens(self, job: Job, outcome: Outcome) -> Optional[int]:
        """Tokens trained on; None where it does not tell."""

    def curve(self, job: Job, outcome: Outcome) -> list[tuple[float, float]]:
        """(seconds since the start of the process, training loss in nats), as the program itself says it."""

    def scorer(self, job: Job) -> tuple[Command, dict[str, Any]]:
        """The program that scores what the job left (programs/scoring_loop.py), and what it has to be told."""


def find(name: str) -> Adapter:
    """The adapter of a name. CramError when there is none."""
    if name not in BUILT_IN and "." not in name:
        raise CramError(f"adapter '{name}' is unknown; possible: {', '.join(BUILT_IN)}, or the dotted name of a module")
    try:
        module = importlib.import_module(f"cram.race.adapters.{name}" if name in BUILT_IN else name)
    except ModuleNotFoundError as error:
        raise CramError(f"adapter '{name}': {error}; give a module that Python finds") from error
    needed = ("SOURCE", "KINDS", "UNITS", "FIRST", *(each for each in vars(Adapter) if callable(vars(Adapter)[each])
                                                     and not each.startswith("_")))
    if missing := [each for each in needed if not hasattr(module, each)]:
        raise CramError(f"adapter '{name}': {module.__name__} has no {missing[0]}; see cram.race.adapters.Adapter")
    return module


def read_number(settings: Mapping[str, str], key: str, default: float) -> float:
    """A setting as a number. CramError when it is none."""
    try:
        return float(settings.get(key, default))
    except ValueError as error:
        raise CramError(f"{key}: expected a number, got '{settings[key]}'") from error
