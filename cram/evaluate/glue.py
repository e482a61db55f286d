"""GLUE (Wang et al. 2019): nine tasks of one or two sentences, each fine-tuned from the same model by the same settings.

Scores are on the official validation splits. Two averages are in use, and both are here: ``paper_average`` and
``glue_average``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

import numpy as np

from cram.errors import CramError
from cram.evaluate import glue_metrics as official
from cram.evaluate.finetune import choose_examples, over_seeds, refuse
from cram.evaluate.reading import Example, encode
from cram.evaluate.subject import Subject
from cram.evaluate.task import Rows, Split, Task

KINDS = ("masked", "causal", "hybrid")
HUB = "nyu-mll/glue"

# The mean of nine numbers that Geiping & Goldstein (2023) call GLUE in their tables: their rows (BERT-base: 83.2/83.4, 91.9,
# 86.7, 59.2, 90.6, 87.7, 89.3, 56.5 -> 80.9) are the plain mean of nine, no WNLI. Their code names STS-B's Pearson and QQP's
# F1 as targets (config/eval/tasks); MRPC's 89.3 is F1, as BERT-base's accuracy there is near 84.
PAPER_NINE = (("glue.mnli", "accuracy"), ("glue.mnli", "accuracy_mismatched"), ("glue.sst2", "accuracy"),
              ("glue.stsb", "pearson"), ("glue.rte", "accuracy"), ("glue.qnli", "accuracy"), ("glue.qqp", "f1"),
              ("glue.mrpc", "f1"), ("glue.cola", "mcc"))

# GLUE's own: the metrics of a task are averaged first, then the tasks; WNLI left out, as by most since Devlin et al. 2019.
GLUE_EIGHT = {"glue.cola": ("mcc",), "glue.sst2": ("accuracy",), "glue.mrpc": ("accuracy", "f1"),
              "glue.stsb": ("pearson", "spearman"), "glue.qqp": ("accuracy", "f1"),
              "glue.mnli": ("accuracy", "accuracy_mismatched"), "glue.qnli": ("accuracy",), "glue.rte": ("accuracy",)}


@dataclass(frozen=True)
class Recipe:
    """How the rows of a dataset become a problem to learn, and its predictions a score.

    train: what is learned from. tests: what is predicted, by what their metrics' names end in ("" or "_mismatched").
    read: (rows, number) to an example. classes: 0 where a number is predicted, and where one of several sequences is chosen
    how many. metrics: rows of a test to the function (labels, predictions) -> metrics. headline: the metric that counts.
    """

    train: Split
    tests: dict[str, Split]
    read: Callable[[Rows, int], Example]
    classes: int
    metrics: Callable[[Rows], Callable[[np.ndarray, np.ndarray], official.Metrics]]
    headline: str

    @property
    def reads(self) -> tuple[Split, ...]:
        return (self.train, *self.tests.values())


def text(rows: Rows, number: int, *fields: str) -> str:
    """A text of a row; CramError when it is none."""
    value = rows.get(number, *fields)
    if not isinstance(value, str):
        raise CramError(f"{rows.place}, row {number + 1}: {fields[0]} is {value!r}, not text; fetch the file again")
    return value


def class_of(rows: Rows, number: int, classes: int) -> int:
    """The label of a row, 0 .. classes - 1; CramError for another, above all for the -1 of the test splits."""
    label = rows.get(number, "label")
    if label == -1:
        raise CramError(f"{rows.place}, row {number + 1}: label -1, as in the test splits, whose labels are secret; give the "
                        "train and validation splits")
    if not isinstance(label, int) or not 0 <= label < classes:
        raise CramError(f"{rows.place}, row {number + 1}: label {label!r} is none of 0 .. {classes - 1}; fetch the file again")
    return int(label)


def similarity(rows: Rows, number: int) -> float:
    """STS-B's label, a number from 0 to 5."""
    label = rows.get(number, "label")
    if isinstance(label, bool) or not isinstance(label, (int, float)) or not 0 <= label <= 5:
        raise CramError(f"{rows.place}, row {number + 1}: label {label!r} is no similarity from 0 to 5; give the train and "
                        "validation splits, or fetch the file again")
    return float(label)


def sentences(rows: Rows, number: int, *, fields: tuple[str, ...], classes: int) -> Example:
    """One or two sentences and their label; classes 0 for STS-B's numbers."""
    label = class_of(rows, number, classes) if classes else similarity(rows, number)
    return Example((tuple(text(rows, number, field) for field in fields),), label)


def read_examples(recipe: Recipe, rows: Rows) -> list[Example]:
    """All examples of a split; CramError when there is none."""
    if not rows.rows:
        raise CramError(f"{rows.place}: has no rows; fetch the file again")
    return [recipe.read(rows, number) for number in range(len(rows.rows))]


def measure(recipe: Recipe, tests: dict[str, Rows], labels: dict[str, np.ndarray], predictions: dict[str, np.ndarray]) -> dict:
    """The metrics of every test split under one roof: ``accuracy``, ``accuracy_mismatched``."""
    return {name + suffix: value for suffix, rows in tests.items()
            for name, value in recipe.metrics(rows)(labels[suffix], predictions[suffix]).items()}


def constant_guess(recipe: Recipe, labels_B: np.ndarray) -> float:
    """The most common label of the training set, or its mean where a number is predicted."""
    return float(labels_B.mean()) if recipe.classes == 0 else int(np.bincount(labels_B.astype(int)).argmax())


def score(recipe: Recipe, subject: Subject, data: dict[Split, Rows], config: Any, say: Callable[[str], None]) -> dict:
    """Fine-tune and score, as ``Task.score`` says, and besides what ``over_seeds`` gives:

    "train_examples"; "cut": sequences that lost tokens to ``length``; "majority": the metrics of always predicting the most
    common training label (STS-B: their mean, so 0); "control", when asked for: the same from random weights.
    """
    settings = config.evaluate.finetune
    refuse(settings)
    length = min(settings.length, subject.row)
    if length < settings.length:
        say(f"fine-tuning on {length} tokens an example, the longest that this model knows, not {settings.length}")
    examples = read_examples(recipe, data[recipe.train])
    chosen = choose_examples(len(examples), settings.max_examples)
    train = encode(subject, [examples[number] for number in chosen], length)
    test_rows = {suffix: data[split] for suffix, split in recipe.tests.items()}
    tests = {suffix: encode(subject, read_examples(recipe, rows), length) for suffix, rows in test_rows.items()}
    labels = {suffix: encoded.labels_B for suffix, encoded in tests.items()}
    judge = partial(measure, recipe, test_rows, labels)
    ask = (subject, recipe.classes, train, tests, settings, judge, recipe.headline, say)
    result = over_seeds(*ask)
    guess = constant_guess(recipe, train.labels_B)
    result |= {"examples": sum(map(len, tests.values())), "train_examples": len(train),
               "cut": train.cut + sum(encoded.cut for encoded in tests.values()),
               "majority": judge({suffix: np.full(len(found), guess) for suffix, found in labels.items()})}
    if settings.control and subject.config is None:
        return result | {"control": {"skipped": "only a run can be built again with random weights"}}
    return result | ({"control": over_seeds(*ask, random_init=True)} if settings.control else {})


def task(name: str, what: str, source: str, recipe: Recipe, chance: Optional[float]) -> Task:
    return Task(name, what, source, KINDS, recipe.headline, chance, recipe.reads, partial(score, recipe),
                keys=("evaluate.finetune",))


def recipe_of(subset: str, fields: tuple[str, ...], classes: int, metric: Callable, headline: str) -> Recipe:
    """A task of GLUE by its name on the hub."""
    tests = {"": "validation"} if subset != "mnli" else {"": "validation_matched", "_mismatched": "validation_mismatched"}
    return Recipe(Split(HUB, subset, "train"), {suffix: Split(HUB, subset, split) for suffix, split in tests.items()},
                  partial(sentences, fields=fields, classes=classes), classes, lambda rows: metric, headline)


_PAIR = ("sentence1", "sentence2")
RECIPES = {
    "cola": recipe_of("cola", ("sentence",), 2, official.matthews, "mcc"),
    "sst2": recipe_of("sst2", ("sentence",), 2, official.accuracy, "accuracy"),
    "mrpc": recipe_of("mrpc", _PAIR, 2, official.accuracy_and_f1, "f1"),
    "stsb": recipe_of("stsb", _PAIR, 0, official.correlations, "pearson"),
    "qqp": recipe_of("qqp", ("question1", "question2"), 2, official.accuracy_and_f1, "f1"),
    "mnli": recipe_of("mnli", ("premise", "hypothesis"), 3, official.accuracy, "accuracy"),
    "qnli": recipe_of("qnli", ("question", "sentence"), 2, official.accuracy, "accuracy"),
    "rte": recipe_of("rte", _PAIR, 2, official.accuracy, "accuracy"),
    "wnli": recipe_of("wnli", _PAIR, 2, official.accuracy, "accuracy"),
}

# name: what, source, score of guessing (F1 has none: it depends on how often one guesses 1)
_ABOUT = {
    "cola": ("is the sentence acceptable English?", "Warstadt et al. 2019", 0.0),
    "sst2": ("is the film review positive?", "Socher et al. 2013", 0.5),
    "mrpc": ("do the two sentences say the same?", "Dolan & Brockett 2005", None),
    "stsb": ("how similar are the two sentences, 0 to 5?", "Cer et al. 2017", 0.0),
    "qqp": ("do the two questions ask the same?", "Quora 2017", None),
    "mnli": ("does the premise entail, contradict or leave open the hypothesis? matched genres count, the others beside",
             "Williams et al. 2018", 1 / 3),
    "qnli": ("does the sentence answer the question?", "Rajpurkar et al. 2016; Wang et al. 2019", 0.5),
    "rte": ("does the first sentence entail the second?", "Dagan et al. 2006 and later", 0.5),
    "wnli": ("does the sentence with the pronoun replaced follow? in no average: its validation set is adversarial to its "
             "training set", "Levesque et al. 2012; Wang et al. 2019", 0.5),
}
TASKS: tuple[Task, ...] = tuple(task(f"glue.{name}", what, source, RECIPES[name], chance)
                                for name, (what, source, chance) in _ABOUT.items())


def _number(results: dict[str, dict], name: str, metric: str) -> Optional[float]:
    """The median of a metric of a task; None when it was not scored."""
    return results.get(name, {}).get("metrics", {}).get(metric, {}).get("median")


def paper_average(results: dict[str, dict]) -> tuple[Optional[float], list[str]]:
    """(mean of the nine numbers of Geiping & Goldstein 2023, those that are missing): MNLI matched and mismatched, SST-2, RTE
    and QNLI accuracy, STS-B Pearson, QQP and MRPC F1, CoLA Matthews; each the median over seeds. None unless all are there.

    results: by task name, as ``Task.score`` gave them.
    """
    numbers = {f"{name} {metric}": _number(results, name, metric) for name, metric in PAPER_NINE}
    missing = [name for name, value in numbers.items() if value is None]
    return (None if missing else float(np.mean(list(numbers.values())))), missing


def glue_average(results: dict[str, dict]) -> tuple[Optional[float], list[str]]:
    """(GLUE's own score of eight tasks, those that are missing): the mean of tasks, where MRPC and QQP count with the mean of
    accuracy and F1, STS-B with that of Pearson and Spearman, MNLI with that of its two sets; without WNLI."""
    means, missing = [], []
    for name, metrics in GLUE_EIGHT.items():
        values = [_number(results, name, metric) for metric in metrics]
        missing += [f"{name} {metric}" for metric, value in zip(metrics, values) if value is None]
        means.append(np.mean([value for value in values if value is not None] or [np.nan]))
    return (None if missing else float(np.mean(means))), missing
