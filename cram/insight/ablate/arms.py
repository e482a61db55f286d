"""The arms of a question: each one's configuration loads, and no two are the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional, Sequence

from cram.budget import Budget
from cram.config import COMMAND_LINE, load
from cram.errors import CramError
from cram.insight.ablate.nodes import NAMED, Node, Setting, read_budget, read_mapping, read_settings, shown, typed
from cram.schema import Config


@dataclass(frozen=True)
class Arm:
    """One way to run. settings: ``key=value`` and names of configurations, over those of all arms; budget: of a run; factor:
    times the question's."""

    name: str
    settings: tuple[str, ...]
    budget: Budget
    factor: float
    config: Config

    @property
    def told(self) -> str:
        """Its settings in one line."""
        own = [f"budget={self.budget.text}"] if self.factor != 1 else []
        return " ".join([*self.settings, *own]) or "as it is"


def read_arms(path: Path, names: tuple[str, ...], common: list[Setting], variants: Node, amount: Budget,
              corpus: Optional[str]) -> list[tuple[Arm, str]]:
    """The arms with their places, the baseline first; each one's configuration loads, and no two are the same."""
    made: list[tuple[Arm, str]] = []
    taken = {key: place for key, _, place in common if place == COMMAND_LINE}
    for name, (node, place) in read_mapping(*variants, "variants", path).items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
            raise CramError(f"{place}: variant '{name}' becomes a folder's name; use letters, digits, '-', '_', '.' and '+'")
        settings = read_settings(node, place, path)
        if clash := [key for key, _, _ in settings if key in taken]:
            raise CramError(f"{COMMAND_LINE}: {clash[0]} is what variant '{name}' sets ({place}); leave it out, or write a "
                            "file of your own")
        own, factor = amount, 1.0
        for key, value, where in settings:
            if key in ("name", "out", "seed"):
                raise CramError(f"{where}: variant '{name}': {key} is set by the command for all arms; leave it out")
            if key == "budget":
                own, factor = _own_budget(value, amount, where)
        settings = [each for each in settings if each[0] != "budget"]
        config = _load(names, [*common, *_placeholders(corpus)], settings, name, place, own)
        made.append((Arm(name, tuple(map(shown, settings)), own, factor, config), place))
    plain = [pair for pair in made if not pair[0].settings and pair[0].factor == 1.0]
    if len(plain) != 1:
        raise CramError(f"{variants[1]}: variants: one arm, and only one, must be the baseline and have no settings, such as "
                        f"'plain: {{}}'; here {', '.join(pair[0].name for pair in plain) or 'none'} has none")
    if len(made) < 2:
        raise CramError(f"{variants[1]}: variants: there is nothing to compare; add an arm with settings")
    made.sort(key=lambda pair: pair is not plain[0])
    for number, (arm, place) in enumerate(made):
        for other, _ in made[:number]:
            if arm.config == other.config and arm.factor == other.factor:
                raise CramError(f"{place}: variant '{arm.name}' is the same as "
                                f"{'the baseline' if other is plain[0][0] else 'variant'} '{other.name}': its settings change "
                                "nothing; change or remove it")
    return made


def _own_budget(value: str, amount: Budget, place: str) -> tuple[Budget, float]:
    """A variant's budget: a factor of the question's, or a budget of the same kind."""
    if re.fullmatch(r"\d+(\.\d*)?", value):
        factor = float(value)
        if factor <= 0:
            raise CramError(f"{place}: budget: a factor must be more than 0, got {value}")
        return times(amount, factor), factor
    own = read_budget(value, place)
    if own.kind != amount.kind:
        raise CramError(f"{place}: budget: '{value}' is not of the kind of the question's budget '{amount.text}'; use "
                        f"{amount.kind}")
    return own, own.amount / amount.amount


def times(budget: Budget, factor: float) -> Budget:
    """The budget times a factor, as text that can be typed (steps are whole numbers)."""
    amount = budget.amount * factor
    if budget.kind == "time":
        return Budget.parse(f"{amount:.6g}s")
    short = re.sub(r"\.?0*e\+0*", "e", f"{amount:.9e}")       # 1.2e12
    return Budget.parse(f"{max(1, round(amount))} steps" if budget.kind == "steps" else f"{short} {budget.kind}")


def _placeholders(corpus: Optional[str]) -> list[Setting]:
    """What a made corpus will set, so that everything can be proved before it is made."""
    return [(*typed(text)[:2], "corpus") for text in corpus_settings(Path("made"), corpus)] if corpus else []


def corpus_settings(folder: Path, corpus: str) -> tuple[str, ...]:
    """The settings by which a run reads a made corpus."""
    return ("data.source=files", f"data.files=['{folder / corpus}.jsonl']",
            f"data.validation_files=['{folder / 'held_out'}.jsonl']", "data.validation_max_bytes=1000000000",
            "evaluate.tokens=1000000000")


def _load(names: Sequence[str], common: list[Setting], settings: list[Setting], variant: str, place: str,
          own: Budget) -> Config:
    """The configuration of an arm; a refusal names the line of the file whose setting is at fault."""
    everything = [*common, *settings]
    try:
        return load([*names, *(key for key, value, _ in everything if value == NAMED)],
                    [*(shown(each) for each in everything if each[1] != NAMED), f"budget={own.text}"])
    except CramError as error:
        told = str(error)
        if not told.startswith(f"{COMMAND_LINE}: "):
            raise CramError(f"{place}: variant '{variant}': {told}") from error
        places: Mapping[str, str] = {key: where for key, _, where in everything}
        fault = [where for key, _, where in reversed(everything) if re.search(rf"{re.escape(key)}(?![\w.])", told)]
        where = fault[0] if fault else next(iter(places.values()), place)
        raise CramError(f"{where}: variant '{variant}': {told.removeprefix(COMMAND_LINE + ': ')}") from error
