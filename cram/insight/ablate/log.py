"""The log of all trials: every record in a folder, with its hypothesis, table and verdict, and what was made of it.

Trials of one question at several budgets stand under one heading, smallest first, since what a small budget says may shrink or
turn round at a larger one. What helped and what did not are shown alike.
"""

from __future__ import annotations

import os
import shlex
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

from cram.bench.paired import show_gain
from cram.errors import CramError
from cram.insight.ablate.answer import CANNOT_TELL, Answer, answers
from cram.insight.ablate.decisions import FILE, Decision, read_decisions
from cram.insight.ablate.metric import Metric
from cram.insight.ablate.page import notes, verdict_line, verdict_table, where
from cram.insight.ablate.record import read
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

NAME = "log.md"
NOTE = ("Difference: from the baseline with the same seed, with Student's 95% interval; a verdict is given only where that "
        "leaves out 0, so of twenty comparisons of equal things one is told apart by chance. Compute multiplier: so many times "
        "its budget would the baseline need. tokens/s: times the baseline's with the same seed, the median over seeds, the "
        "least and the most; where these lie far apart, the machine was busy, and they say nothing, nor do they of runs that "
        "were made at different hours (found again from another trial) on a machine whose speed moves.")
TOLD = {"better": "better", "worse": "worse", CANNOT_TELL: "cannot tell", "failed": "failed"}


@dataclass(frozen=True)
class Trial:
    """A record and what it says. flops: of a run of the baseline, by which budgets are ordered."""

    path: Path
    record: dict[str, Any]
    found: list[Answer]
    flops: float

    @property
    def name(self) -> str:
        return self.record["name"]

    @property
    def date(self) -> str:
        return self.record["environment"]["date"]

    @property
    def budget(self) -> str:
        """Budget and size, to tell the trials of a question apart."""
        size = self.record["size"]
        return self.record["budget"] + (f" ({size})" if size else "")

    @property
    def better(self) -> bool:
        return any(each.verdict == "better" for each in self.found)


@dataclass(frozen=True)
class Topic:
    """A question with all its trials, the smallest budget first. decision: None while there is none."""

    name: str
    trials: list[Trial]
    decision: Optional[Decision]

    @property
    def arms(self) -> list[str]:
        """The names of all arms, baselines first."""
        return list(dict.fromkeys(name for first in (True, False) for trial in self.trials
                                  for name in _names(trial.record)[:1 if first else None]))

    @property
    def changed(self) -> bool:
        """Whether something other than the baseline was kept."""
        return self.decision is not None and self.decision.kept is not None and not self.is_baseline(self.decision.kept)

    def is_baseline(self, arm: str) -> bool:
        """Of the largest budget."""
        return _names(self.trials[-1].record)[0] == arm

    def told(self, arm: str) -> list[str]:
        """What each trial says of an arm, where it took part other than as the baseline."""
        return [each.verdict for trial in self.trials for each in trial.found if each.arm == arm and each.verdict != "baseline"]


def write(folder: Path, out: Optional[Path] = None) -> tuple[Path, list[Topic]]:
    """Write the log of a folder's records (``*.json`` in it, ``ablation.json`` below it); returns the file and what it holds.
    out: .md or .html (default: ``log.md`` in the folder). CramError for a folder without records, or a damaged one."""
    out = out or folder / NAME
    if out.suffix not in (".md", ".html"):
        raise CramError(f"--out {out}: the log is one page; give a name that ends in .md or .html")
    topics = read_topics(folder)
    page = blocks(topics, out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(out, (to_markdown(page) if out.suffix == ".md" else to_html(page, "Recipe log")).encode())
    return out, topics


def read_topics(folder: Path) -> list[Topic]:
    """In the order of the log: by ``order:`` of the decisions, then by date of the first trial."""
    if not folder.is_dir():
        raise CramError(f"--log {folder}: no such folder; give one with records, such as runs/ablations")
    trials = [_trial(path) for path in sorted({*folder.glob("*.json"), *folder.rglob("ablation.json")})]
    if not trials:
        raise CramError(f"--log {folder}: no record of an ablation in it; cram ablate writes <question>/ablation.json")
    by_name: dict[str, list[Trial]] = {}
    for trial in _once(trials):
        by_name.setdefault(trial.name, []).append(trial)
    topics = {name: Topic(name, sorted(group, key=lambda trial: (trial.flops, trial.date)), None)
              for name, group in by_name.items()}
    labels = {trial.record["label"]: trial.name for trial in trials} | {name: name for name in topics}
    if (path := folder / FILE).exists():
        decisions = read_decisions(path, labels, {name: topic.arms for name, topic in topics.items()})
        topics = {name: Topic(name, topic.trials, decisions.get(name)) for name, topic in topics.items()}
    return sorted(topics.values(), key=_place)


def _place(topic: Topic) -> tuple[bool, float, str]:
    order = topic.decision.order if topic.decision else None
    return order is None, order or 0.0, min(trial.date for trial in topic.trials)


def _trial(path: Path) -> Trial:
    record = read(path)
    try:
        found = answers(record)
        base = [row["flops"] for row in record["rows"]
                if row["arm"] == found[0].arm and row["factor"] == 1 and "flops" in row]
        trial = Trial(path, record, found, statistics.mean(base) if base else 0.0)
        _section(trial, path.parent)    # what is missing shows here, not halfway through the page
        return trial
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise CramError(f"{path}: damaged or not a whole record ({type(error).__name__}: {error}); run the ablation again, "
                        "finished runs are found") from error


def _once(trials: Sequence[Trial]) -> list[Trial]:
    """Without copies: two files with the same ledgers are one trial."""
    kept: dict[Any, Trial] = {}
    for trial in trials:
        heads = tuple(row.get("head") for row in trial.record["rows"])
        kept.setdefault((trial.name, heads) if any(heads) else trial.path, trial)
    return list(kept.values())


def _names(record: dict[str, Any]) -> list[str]:
    return [arm["name"] for arm in record["arms"]]


# ---- the page


def blocks(topics: Sequence[Topic], beside: Path) -> list[tuple]:
    """The log as blocks (``cram.report_page``). beside: the folder that links start from."""
    trials = [trial for topic in topics for trial in topic.trials]
    undecided = sum(topic.decision is None for topic in topics)
    negative = [trial for trial in trials if not trial.better]
    single = sum(trial.record["seeds"] == 1 for trial in negative)
    page: list[tuple] = [
        ("title", "Recipe log"),
        ("text", "Every recorded trial, whatever it said: what was asked and expected, what came out, what was made of it."),
        ("facts", [(str(len(trials)), "trials", f"of {len(topics)} questions"),
                   (str(sum(topic.changed for topic in topics)), "changes kept", "questions that changed the recipe"),
                   (str(len(negative)), "negative", "trials in which nothing was told to be better"
                    + f"; {single} of them with one seed, which can tell nothing" * bool(single)),
                   (str(undecided), "not decided", f"questions that {FILE} does not name")])]
    page += [("section", "Recipe so far"), *_recipe(topics)]
    for topic in topics:
        page += [("section", f"{topic.name}: {topic.trials[-1].record['question']}"), *_topic(topic, beside)]
    return page + [("section", "How to read it"), ("text", NOTE)]


def _recipe(topics: Sequence[Topic]) -> list[tuple]:
    """The chain of what was kept, and all of it as one command."""
    rows: list[list[str]] = []
    recipes: dict[tuple[str, ...], tuple[list[str], dict[str, str]]] = {}     # by what they change: names, settings
    for topic in topics:
        if topic.decision is None or topic.decision.kept is None:
            continue
        arm = next(arm for trial in reversed(topic.trials) for arm in trial.record["arms"]
                   if arm["name"] == topic.decision.kept)
        names, settings = recipes.setdefault(tuple(topic.trials[-1].record["configs"]), ([], {}))
        for text in arm["settings"]:
            key, equals, value = text.partition("=")
            settings.update({key: value} if equals else {})
            names += [] if equals or text in names else [text]
        rows.append([str(len(rows) + 1), topic.name, arm["name"], " ".join(arm["settings"]) or "as it was",
                     _holds(topic, arm["name"]), topic.decision.why])
    if not rows:
        return [("text", f"Nothing was kept yet. {FILE} beside the records says what is: 'question: {{kept: arm, why: text, "
                         "order: 1}'.")]
    made: list[tuple] = [("table", ["", "question", "kept", "settings", "at the larger budget", "why"], rows)]
    for configs, (names, settings) in recipes.items():
        if settings or names:
            made += [("text", f"All that was kept over {' + '.join(configs)}, the later over the earlier:"),
                     ("code", shlex.join([*names, *(f"{key}={value}" for key, value in settings.items())]))]
        else:
            made.append(("text", f"Over {' + '.join(configs)} nothing was kept but what was there."))
    return made


def _topic(topic: Topic, beside: Path) -> list[tuple]:
    last, decision = topic.trials[-1].record, topic.decision
    made: list[tuple] = [("text", f"Expected: {last['expect']}"), ("text", f"Source of the claim: {last['source']}")]
    if decision is None:
        made.append(("verdict", "unsure", "Not decided."))
    else:
        kept = "nothing" if decision.kept is None else decision.kept
        if decision.kept is not None and not topic.changed:
            kept += ", the baseline"
        why = f" Why: {decision.why.rstrip('.')}." if decision.why else ""
        made.append(("verdict", "good" if topic.changed else "bad", f"Kept: {kept}.{why}"))
    if len(topic.trials) > 1:
        made += _side_by_side(topic)
    for trial in topic.trials:
        made += _section(trial, beside)
    return made


def _side_by_side(topic: Topic) -> list[tuple]:
    """The verdicts of all budgets in one table: does what the smaller one says hold at the larger?"""
    arms = [arm for arm in topic.arms if topic.told(arm)]
    rows = []
    for arm in arms:
        cells = []
        for trial in topic.trials:
            each = next((each for each in trial.found if each.arm == arm), None)
            sign = -1 if Metric(**trial.record["metric"]).less else 1
            cells.append("–" if each is None else each.verdict if not each.gains else
                         f"{TOLD[each.verdict]}, {show_gain([sign * gain for gain in each.gains])}")
        rows.append([arm, *cells, _holds(topic, arm)])
    return [("text", "Does it hold at the larger budget?"),
            ("table", ["arm", *(trial.budget for trial in topic.trials), "so it"], rows)]


def _holds(topic: Topic, arm: str) -> str:
    """Whether the verdict of the smallest budget is that of the largest."""
    told = topic.told(arm)
    if not told:
        return "is the baseline"
    if len(told) < 2:
        return "one budget only"
    first, last = told[0], told[-1]
    if "failed" in (first, last):
        return "cannot be said: a trial failed"
    if first == last:
        return "says as little" if first == CANNOT_TELL else "holds"
    if last == CANNOT_TELL:
        return "is not confirmed"
    return f"shows only there ({last})" if first == CANNOT_TELL else "turns round"


def _section(trial: Trial, beside: Path) -> list[tuple]:
    """One trial: what was run, its table, its verdict."""
    record, metric = trial.record, Metric(**trial.record["metric"])
    common = f", with {' '.join(record['common'])}" if record["common"] else ""
    header, rows = verdict_table(trial.found, metric, record)
    speeds = [_speed(record, each.arm) for each in trial.found]
    told = {arm["name"]: arm["told"] for arm in record["arms"]}
    table = ("table", [*header, "tokens/s", "settings"],
             [[*row, speed, told[row[0]]] for row, speed in zip(rows, speeds)])
    seeds = f"{record['seeds']} seed{'s' * (record['seeds'] > 1)}"
    made = [("text", f"{trial.budget} a run, {seeds}; {' + '.join(record['configs'])}{common}; {where(record['environment'])}"),
            table, ("text", verdict_line(trial.found, metric, record)
                    + ("" if record["complete"] else " Not complete: some runs are still to come."))]
    made += [("text", note) for note in notes(trial.found, metric, record) if note.startswith("Failed: ")]
    pages = [path for path in (trial.path.with_suffix(end) for end in (".md", ".html")) if path.is_file()]
    if pages:
        made.append(("links", [(page.name, os.path.relpath(page, beside).replace(os.sep, "/")) for page in pages]))
    return made


def _speed(record: dict[str, Any], arm: str) -> str:
    """The arm's tokens a second, times the baseline's with the same seed: the median, and least and most of several."""
    def speeds(name: str) -> dict[int, float]:
        factor = next(each["factor"] for each in record["arms"] if each["name"] == name)
        return {row["seed"]: row["tokens"] / row["training_seconds"] for row in record["rows"]
                if row["arm"] == name and row["factor"] == factor and row.get("training_seconds") and "value" in row}
    base, own = speeds(_names(record)[0]), speeds(arm)
    ratios = [own[seed] / base[seed] for seed in own if seed in base]
    if not ratios or arm == _names(record)[0]:
        return "1" if ratios else "–"
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"
