"""GLUE's metrics against their formulas written out, and against the evaluation harness."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.evaluate import glue_metrics as official

pytest.importorskip("sklearn")

binary = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)


def counts(pairs):
    """True positives, true negatives, false positives, false negatives."""
    return [sum(pair == which for pair in pairs) for which in ((1, 1), (0, 0), (0, 1), (1, 0))]


def apart(pairs):
    return np.array([label for label, _ in pairs]), np.array([prediction for _, prediction in pairs])


def f1_of(tp, fp, fn):
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


@settings(max_examples=50, deadline=None)
@given(binary)
def test_accuracy_f1_and_matthews_by_counting(pairs):
    tp, tn, fp, fn = counts(pairs)
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    expected = {"accuracy": (tp + tn) / len(pairs), "f1": f1_of(tp, fp, fn)}
    assert official.accuracy_and_f1(*apart(pairs)) == pytest.approx(expected)
    assert official.accuracy(*apart(pairs)) == {"accuracy": pytest.approx(expected["accuracy"])}
    mcc = (tp * tn - fp * fn) / math.sqrt(product) if product else 0.0
    assert official.matthews(*apart(pairs)) == {"mcc": pytest.approx(mcc, abs=1e-12)}


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def ranks(x):
    """1 for the smallest; equal values share the mean of their ranks."""
    return np.array([(np.sum(x < value) + np.sum(x <= value) + 1) / 2 for value in x])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(-50, 50)), min_size=3, max_size=40))
def test_correlations_by_their_definitions(pairs):
    labels, predictions = (np.array(side, dtype=np.float64) / 5 for side in zip(*pairs))
    found = official.correlations(labels, predictions)
    if len(set(labels)) == 1 or len(set(predictions)) == 1:
        assert found == {"pearson": 0.0, "spearman": 0.0}
    else:
        assert found["pearson"] == pytest.approx(pearson(labels, predictions), abs=1e-9)
        assert found["spearman"] == pytest.approx(pearson(ranks(labels), ranks(predictions)), abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_macro_f1_is_the_mean_over_classes_that_occur(pairs):
    labels, predictions = apart(pairs)
    f1 = [f1_of(sum((labels == k) & (predictions == k)), sum((labels != k) & (predictions == k)),
                sum((labels == k) & (predictions != k))) for k in set(labels) | set(predictions)]
    found = official.accuracy_and_macro_f1(labels, predictions)
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert found["mean"] == pytest.approx((np.mean(labels == predictions) + np.mean(f1)) / 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_multirc_counts_answers_and_whole_questions(rows):
    questions = [("p", question) for question, _, _ in rows]
    found = official.multirc(questions)(*apart([(label, prediction) for _, label, prediction in rows]))
    tp, _, fp, fn = counts([(label, prediction) for _, label, prediction in rows])
    by_question = {q: [label == prediction for other, label, prediction in rows if other == q] for q, _, _ in rows}
    em = np.mean([all(answers) for answers in by_question.values()])
    assert found == pytest.approx({"f1a": f1_of(tp, fp, fn), "em": em, "mean": (f1_of(tp, fp, fn) + em) / 2})


@pytest.mark.parametrize("guess", [0, 1])
def test_a_constant_guess_is_worth_nothing_and_is_a_number(guess):
    labels, guesses = np.array([0, 1, 1, 0, 1]), np.full(5, guess)
    assert official.matthews(labels, guesses)["mcc"] == 0
    assert official.correlations(labels.astype(float), guesses.astype(float)) == {"pearson": 0.0, "spearman": 0.0}
    assert official.accuracy_and_f1(labels, np.zeros(5))["f1"] == 0
    assert official.multirc([0, 0, 1, 1, 1])(labels, np.zeros(5)) == {"f1a": 0.0, "em": 0.0, "mean": 0.0}


def test_the_harness_says_the_same():
    """lm-evaluation-harness's aggregations of CoLA, MRPC and CB, and its all-answers accuracy of MultiRC."""
    metrics = pytest.importorskip("lm_eval.api.metrics")
    from lm_eval.tasks.super_glue.cb.aggregate import cb_multi_fi

    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    three, guesses = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    assert official.matthews(labels, predictions)["mcc"] == pytest.approx(
        metrics.matthews_corrcoef(list(zip(labels, predictions))))
    assert official.accuracy_and_f1(labels, predictions)["f1"] == pytest.approx(
        metrics.f1_score(list(zip(labels, predictions))))
    assert official.accuracy_and_macro_f1(three, guesses)["macro_f1"] == pytest.approx(cb_multi_fi(list(zip(guesses, three))))
    docs = [{"idx": {"paragraph": 0, "question": number // 3}, "label": label} for number, label in enumerate(labels)]
    em = metrics.acc_all(list(zip(predictions == 1, docs)))
    assert official.multirc([doc["idx"]["question"] for doc in docs])(labels, predictions)["em"] == pytest.approx(em)
