"""A question as a file: what is asked, what is changed, under which budget, and what to expect.

    question: Which optimizer learns most from the same FLOPs?
    source: who says what (paper, section)
    baseline: [demo_gpt, ablations/sizes/minutes]     # configurations laid one over the other
    settings: {model.layers: 2}                       # of every arm
    variants:                                         # arms; the one without settings is the baseline
      muon: {}
      adamw: {optimizer.type: adamw, optimizer.lr: 0.01}
    budget: 3e11 flops        # a run; a variant may have its own: ``budget: 2`` is twice this
    seeds: 3
    metric: loss              # metric.py, or a benchmark among evaluate.tasks
    ladder: [0.5, 1, 2]       # budgets of the baseline, as factors: what a compute multiplier is read from
    expect: what to expect, and why
    tiny: {budget: ...}       # for --tiny and --card: what they name replaces the above; settings are laid over it
    card: {budget: ...}

``corpus: clean`` or ``web`` makes text files before the first run (corpus.py). Every refusal names file and line.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

import yaml

from cram import config as configs
from cram.budget import Budget
from cram.config import COMMAND_LINE, SHIPPED, lookup
from cram.errors import CramError
from cram.explain import differences, show
from cram.insight.ablate.arms import Arm, read_arms
from cram.insight.ablate.metric import Metric, find, incomparable
from cram.insight.ablate.nodes import (
    Node, joined, read_budget, read_mapping, read_number, read_settings, read_text, read_texts, shown, typed)

REQUIRED = ("question", "source", "baseline", "variants", "budget", "metric", "expect")
SIZES = ("tiny", "card")
REPLACED = ("baseline", "settings", "variants", "budget", "seeds", "ladder", "metric", "corpus", "expect")  # in a size
KEYS = (*REQUIRED, "settings", "seeds", "ladder", "corpus", *SIZES)
CORPORA = ("clean", "web")
# Settings that every run gets from the question or the command, so that one given beside would be lost, and the remedy.
OWN = {"seed": "seeds: (or --seeds) says how many there are, from 0 on", "budget": "write budget: (or --budget)",
       "name": "runs are named after their arms; leave it out", "out": "write --out"}
TAKEN = ("artifacts", "corpora")     # folders beside those of the questions
SEEDS, LADDER = 3, (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Question:
    """A file, read and proved. size: "", "tiny" or "card"; arms: the baseline first; common: ``key=value`` of all arms."""

    name: str
    path: Path
    size: str
    question: str
    source: str
    expect: str
    configs: tuple[str, ...]
    common: tuple[str, ...]
    arms: tuple[Arm, ...]
    budget: Budget
    seeds: int
    metric: Metric
    ladder: tuple[float, ...]
    corpus: Optional[str]

    @property
    def baseline(self) -> Arm:
        return self.arms[0]

    @property
    def label(self) -> str:
        """Name of the folder of its results: ``optimizer-tiny``."""
        return self.name + (f"-{self.size}" if self.size else "")


def shipped() -> list[Path]:
    """The files of all questions that come with cram."""
    return sorted((SHIPPED / "ablations").glob("*.yaml"))


def of_recipes() -> list[Path]:
    """The files by which the shipped recipes are searched, on a text that is given; not among the questions of a course."""
    return sorted((SHIPPED / "recipe").glob("*.yaml"))


def locate(name: str) -> Path:
    """The file of a path or of a shipped question's name. CramError with a suggestion."""
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return Path(name)
    known = {path.stem: path for path in (*of_recipes(), *shipped())}
    wanted = Path(name).as_posix().removesuffix(".yaml").removeprefix("configs/").removeprefix("ablations/")
    wanted = wanted.removeprefix("recipe/")
    if wanted in known:
        path = known[wanted]
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    near = difflib.get_close_matches(wanted, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "'cram ablate' lists those that are shipped; or give a .yaml file"
    raise CramError(f"{name}: no such question; {hint}")


def read(path: Path, size: str = "", budget: Optional[str] = None, seeds: Optional[int] = None,
         overrides: Sequence[str] = ()) -> Question:
    """Read a file and prove it. size: "tiny" or "card" for that section; budget, seeds: in place of the file's; overrides:
    ``key=value`` for all arms. Raises CramError naming file, line and remedy."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", path.stem) or path.stem in TAKEN:
        raise CramError(f"{path}: the file's name becomes a folder's; rename it, with letters, digits, '-' and '_' "
                        f"(not {' or '.join(TAKEN)})")
    entries = _entries(path, size)
    names = tuple(read_texts(*entries["baseline"], "baseline"))
    common = [*read_settings(*entries.get("settings", (None, "")), path), *(typed(text) for text in overrides)]
    for key, _, place in common:
        if key in OWN:
            raise CramError(f"{place}: {key}: cannot be a setting of all arms; {OWN[key]}")
    node, place = entries["budget"]
    amount = read_budget(read_text(node, place, "budget"), place) if budget is None else read_budget(budget, COMMAND_LINE)
    count = SEEDS if "seeds" not in entries else int(read_number(*entries["seeds"], "seeds", whole=True))
    count = count if seeds is None else seeds
    if count < 1:
        place = COMMAND_LINE if seeds is not None else entries["seeds"][1]
        raise CramError(f"{place}: seeds must be at least 1; three or more say how sure a difference is")
    corpus = read_text(*entries["corpus"], "corpus") if "corpus" in entries else None
    if corpus not in (None, *CORPORA):
        raise CramError(f"{entries['corpus'][1]}: corpus: expected one of {', '.join(CORPORA)}, got '{corpus}'")
    ladder = _ladder(entries.get("ladder"))
    arms = read_arms(path, names, common, entries["variants"], amount, corpus)
    try:
        metric = find(read_text(*entries["metric"], "metric"), arms[0][0].config.evaluate.tasks)
    except CramError as error:
        raise CramError(f"{entries['metric'][1]}: {error}") from error
    for arm, place in arms:
        if reason := incomparable(metric, arms[0][0].config, arm.config):
            raise CramError(f"{place}: variant '{arm.name}': metric {reason}")
    return Question(path.stem, path, size, *(" ".join(read_text(*entries[name], name).split()) for name in (
        "question", "source", "expect")), names, tuple(map(shown, common)),
        tuple(arm for arm, _ in arms), amount, count, metric, ladder if metric.learns else (), corpus)


def _entries(path: Path, size: str) -> dict[str, Node]:
    """Key -> (node, place), with what the size replaces replaced."""
    entries = {key: (node, place) for key, node, place in configs._read(path)}
    sized = {}
    for key, (node, place) in entries.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            raise CramError(f"{place}: unknown key '{key}'; "
                            + (f"did you mean '{near[0]}'?" if near else f"a question has: {', '.join(KEYS)}"))
        if key in SIZES:
            for name, (inner, where) in read_mapping(node, place, key, path).items():
                if name not in REPLACED:
                    raise CramError(f"{where}: {key}.{name}: cannot be set for a size; possible: {', '.join(REPLACED)}")
                if key == size:
                    sized[name] = inner, where
    for key in REQUIRED:
        if key not in entries:
            raise CramError(f"{path}:1: '{key}:' is missing; a question has: {', '.join(REQUIRED)}")
    if size and size not in entries:
        raise CramError(f"{path}: has no section '{size}:'; add one, or leave --{size} out")
    if "settings" in entries and "settings" in sized:
        sized["settings"] = joined(entries["settings"][0], sized["settings"][0]), sized["settings"][1]
    return {**entries, **sized}


def _ladder(entry: Optional[Node]) -> tuple[float, ...]:
    """Factors in rising order, 1 among them; () without."""
    if entry is None:
        return LADDER
    node, place = entry
    if isinstance(node, yaml.SequenceNode) and not node.value:
        return ()
    factors = sorted({1.0, *(float(read_number(each, place, "ladder")) for each in (
        node.value if isinstance(node, yaml.SequenceNode) else [node]))})
    if factors[0] <= 0 or len(factors) < 2:
        raise CramError(f"{place}: ladder: expected factors of the budget above 0, such as [0.5, 1, 2]; [] for none")
    return tuple(factors)


def plain_dict(question: Question) -> dict[str, Any]:
    """What a record keeps of a question: JSON-ready."""
    told = ("name", "label", "size", "question", "source", "expect", "seeds", "corpus")
    kept = {name: getattr(question, name) for name in told}
    base = question.baseline.config
    differing = sorted({key for arm in question.arms for key, *_ in differences(base, arm.config)} - {"budget"})
    return kept | {
        "configs": list(question.configs), "common": list(question.common), "budget": question.budget.text,
        "kind": question.budget.kind, "amount": question.budget.amount, "ladder": list(question.ladder),
        "metric": dataclasses.asdict(question.metric),
        "arms": [{"name": arm.name, "settings": list(arm.settings), "budget": arm.budget.text, "factor": arm.factor,
                  "told": arm.told, "values": {key: show(lookup(arm.config, key)) for key in differing}}
                 for arm in question.arms]}
