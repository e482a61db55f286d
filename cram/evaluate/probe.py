"""Linear probes: what a frozen model's hidden states say of a sentence, read off by logistic regression.

A sentence is the mean of its tokens' last hidden states, [CLS] and [SEP] among them: the same for masked and causal models. Of
a pair each sentence is read by itself, and the features are [u, v, |u - v|, u v] (Conneau et al. 2017, section 3.2). Features
are standardised on the training set; scikit-learn's logistic regression, its C chosen by cross-validation there. Beside each
score stands the control: the same model with random weights, which words alone take a long way (Wieting & Kiela 2019).

Axes: S sentences, D width, B examples, F features.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Callable, Optional

import numpy as np
import torch

from cram.errors import CramError
from cram.evaluate import glue_metrics as official
from cram.evaluate.finetune import choose_examples, learner, refuse
from cram.evaluate.glue import KINDS, RECIPES, Recipe, measure, read_examples, sentences
from cram.evaluate.heldout import evaluating
from cram.evaluate.minimal_pairs import wilson
from cram.evaluate.reading import PASS_TOKENS, READINGS, Encoded, Example, encode, halving, passes_of_one_size, pool
from cram.evaluate.subject import Subject
from cram.evaluate.task import Rows, Split, Task

FOLDS, STRENGTHS = 3, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the cross-validation, and the values of C that it tries
ITERATIONS = 500


def means(model: Any, data: Encoded, kind: str, device: str, say: Callable[[str], None]) -> np.ndarray:
    """The mean hidden state of every sequence, float32 [S, D]. data: sequences that are examples of their own (ways 1)."""
    def attempt(tokens: int) -> np.ndarray:
        found, order = [], []
        for which in passes_of_one_size(data, tokens):
            found.append(pool(model, [data.sequences[number] for number in which], READINGS[kind], device).cpu().numpy())
            order.append(which)
        return np.concatenate(found)[np.argsort(np.concatenate(order))]

    longest = max(len(ids) for ids in data.sequences)
    with evaluating(model), torch.no_grad():
        return halving(attempt, PASS_TOKENS[torch.device(device).type], longest, say)[0].astype(np.float32)


def apart(examples: list[Example]) -> list[Example]:
    """Every text of every example by itself."""
    return [Example(((text,),), example.label) for example in examples for texts in example.texts for text in texts]


def features(means_SD: np.ndarray, sentences_each: int) -> np.ndarray:
    """Features [B, F] from the means of sentences: themselves, or [u, v, |u - v|, u v] of pairs."""
    if sentences_each == 1:
        return means_SD
    u_BD, v_BD = means_SD[::2], means_SD[1::2]
    return np.concatenate((u_BD, v_BD, np.abs(u_BD - v_BD), u_BD * v_BD), axis=1)


def fit(features_BF: np.ndarray, labels_B: np.ndarray) -> Any:
    """Standardised logistic regression, C by cross-validation. CramError when a class is too rare for that."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise CramError(official.NEEDS_EVAL) from error
    _, counts = np.unique(labels_B, return_counts=True)
    if len(counts) < 2 or counts.min() < FOLDS:
        raise CramError(f"probe: the training examples used have {len(counts)} classes, the rarest {counts.min()} times; there "
                        f"must be two or more, each {FOLDS} times: raise evaluate.finetune.max_examples")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=ITERATIONS))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    search = GridSearchCV(pipeline, {"logisticregression__C": list(STRENGTHS)}, cv=folds)
    return search.fit(features_BF, labels_B)


def probe(model: Any, kind: str, device: str, train: Encoded, tests: dict[str, Encoded], sentences_each: int,
          say: Callable[[str], None]) -> tuple[dict[str, np.ndarray], float]:
    """Predictions for each of ``tests``, and the C that was chosen. The model is not changed."""
    see = partial(means, model, kind=kind, device=device, say=say)
    found = fit(features(see(train), sentences_each), train.labels_B[::sentences_each].astype(int))
    predictions = {name: found.predict(features(see(data), sentences_each)) for name, data in tests.items()}
    return predictions, found.best_params_["logisticregression__C"]


def score(recipe: Recipe, subject: Subject, data: dict[Split, Rows], config: Any, say: Callable[[str], None]) -> dict:
    """As ``Task.score`` says; low, high: 95% Wilson interval where the metric is an accuracy. "C", "metrics",
    "train_examples"; "control": the same of random weights, or why there is none."""
    settings, started = config.evaluate.finetune, time.perf_counter()
    refuse(settings)
    length = min(settings.length, subject.row)
    examples = read_examples(recipe, data[recipe.train])
    chosen = [examples[number] for number in choose_examples(len(examples), settings.max_examples)]
    each = len(chosen[0].texts[0])
    train = encode(subject, apart(chosen), length)
    rows = {suffix: data[split] for suffix, split in recipe.tests.items()}
    tests = {suffix: encode(subject, apart(read_examples(recipe, found)), length) for suffix, found in rows.items()}
    labels = {suffix: encoded.labels_B[::each] for suffix, encoded in tests.items()}

    def judge(model: Any, who: str) -> dict:
        predictions, strength = probe(model, subject.kind, subject.device, train, tests, each, say)
        metrics = measure(recipe, rows, labels, predictions)
        say(f"{who}: {recipe.headline} {metrics[recipe.headline]:.4f}")
        return {"metrics": metrics, "score": metrics[recipe.headline], "C": strength} | interval(metrics)

    def interval(metrics: dict) -> dict:
        if recipe.headline != "accuracy":
            return {"low": None, "high": None}
        n = len(labels[""])
        return dict(zip(("low", "high"), wilson(round(metrics["accuracy"] * n), n)))

    result = {"metric": recipe.headline, "examples": sum(map(len, labels.values())), "train_examples": len(chosen)}
    result |= judge(learner(subject, 0), "frozen model")
    if subject.config is None:
        result["control"] = {"skipped": "only a run can be built again with random weights"}
    else:
        result["control"] = judge(learner(subject, 0, random_init=True), "random weights")
    return result | {"seconds": round(time.perf_counter() - started, 3)}


IMDB = Recipe(Split("stanfordnlp/imdb", None, "train"), {"": Split("stanfordnlp/imdb", None, "test")},
              partial(sentences, fields=("text",), classes=2), 2, lambda rows: official.accuracy, "accuracy")


def task(name: str, what: str, source: str, recipe: Recipe, chance: Optional[float]) -> Task:
    return Task(f"probe.{name}", what, source, KINDS, recipe.headline, chance, recipe.reads, partial(score, recipe),
                keys=("evaluate.finetune.length", "evaluate.finetune.max_examples"))


# of GLUE without STS-B, which has no classes, and WNLI, which words cannot solve
TASKS: tuple[Task, ...] = (
    task("cola", "is the sentence acceptable English?", "Warstadt et al. 2019", RECIPES["cola"], 0.0),
    task("sst2", "is the film review positive?", "Socher et al. 2013", RECIPES["sst2"], 0.5),
    task("mrpc", "do the two sentences say the same?", "Dolan & Brockett 2005", RECIPES["mrpc"], None),
    task("qqp", "do the two questions ask the same?", "Quora 2017", RECIPES["qqp"], None),
    task("mnli", "does the premise entail, contradict or leave open the hypothesis?", "Williams et al. 2018", RECIPES["mnli"],
         1 / 3),
    task("qnli", "does the sentence answer the question?", "Rajpurkar et al. 2016", RECIPES["qnli"], 0.5),
    task("rte", "does the first sentence entail the second?", "Dagan et al. 2006 and later", RECIPES["rte"], 0.5),
    task("imdb", "is the film review positive?", "Maas et al. 2011", IMDB, 0.5),
)
