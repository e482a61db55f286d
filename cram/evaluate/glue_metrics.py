"""The official metrics of GLUE (Wang et al. 2019a) and SuperGLUE (Wang et al. 2019b), by scikit-learn and SciPy.

All take labels and predictions of B examples, and give fractions in [0, 1] or correlations in [-1, 1]. Where a constant
prediction leaves a metric undefined (0/0: F1 without a positive, a correlation without variance) it is 0, never NaN.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Callable, Hashable, Sequence

import numpy as np

from cram.errors import CramError

Metrics = dict[str, float]
NEEDS_EVAL = "GLUE's metrics need scikit-learn and SciPy: pip install scikit-learn scipy"


def _sklearn():
    try:
        from sklearn import metrics
    except ImportError as error:
        raise CramError(NEEDS_EVAL) from error
    return metrics


def accuracy(labels_B: np.ndarray, predictions_B: np.ndarray) -> Metrics:
    """SST-2, MNLI, QNLI, RTE, WNLI, BoolQ, COPA, WiC, WSC."""
    return {"accuracy": float(_sklearn().accuracy_score(labels_B, predictions_B))}


def accuracy_and_f1(labels_B: np.ndarray, predictions_B: np.ndarray) -> Metrics:
    """MRPC, QQP: accuracy, and F1 of class 1."""
    return accuracy(labels_B, predictions_B) | {"f1": float(_sklearn().f1_score(labels_B, predictions_B, zero_division=0.0))}


def matthews(labels_B: np.ndarray, predictions_B: np.ndarray) -> Metrics:
    """CoLA: Matthews' correlation."""
    if np.ptp(labels_B) == 0 or np.ptp(predictions_B) == 0:
        return {"mcc": 0.0}
    return {"mcc": float(_sklearn().matthews_corrcoef(labels_B, predictions_B))}


def correlations(labels_B: np.ndarray, predictions_B: np.ndarray) -> Metrics:
    """STS-B: Pearson's and Spearman's correlation."""
    try:
        from scipy import stats
    except ImportError as error:
        raise CramError(NEEDS_EVAL) from error
    if np.ptp(labels_B) == 0 or np.ptp(predictions_B) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {"pearson": float(stats.pearsonr(labels_B, predictions_B).statistic),
            "spearman": float(stats.spearmanr(labels_B, predictions_B).statistic)}


def accuracy_and_macro_f1(labels_B: np.ndarray, predictions_B: np.ndarray) -> Metrics:
    """CB: accuracy, the mean of the classes' F1, and the mean of the two, which counts."""
    both = accuracy(labels_B, predictions_B)
    both["macro_f1"] = float(_sklearn().f1_score(labels_B, predictions_B, average="macro", zero_division=0.0))
    return both | {"mean": (both["accuracy"] + both["macro_f1"]) / 2}


def multirc(questions_B: Sequence[Hashable]) -> Callable[[np.ndarray, np.ndarray], Metrics]:
    """MultiRC, whose answers belong to questions: F1 over all answers (F1a), the share of questions with all answers right
    (EM), and the mean of the two, which counts."""
    def metric(labels_B: np.ndarray, predictions_B: np.ndarray) -> Metrics:
        right: dict[Hashable, bool] = defaultdict(lambda: True)
        for question, label, prediction in zip(questions_B, labels_B, predictions_B, strict=True):
            right[question] &= bool(label == prediction)
        f1a, em = float(_sklearn().f1_score(labels_B, predictions_B, zero_division=0.0)), float(np.mean(list(right.values())))
        return {"f1a": f1a, "em": em, "mean": (f1a + em) / 2}
    return metric
