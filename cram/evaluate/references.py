"""What others reached, to stand beside our scores. Scores in hundredths as published; each entry names where it is from.

Comparable only in part: other data, more compute, and where it says so another protocol.
"""

from __future__ import annotations

from typing import NamedTuple


class Reference(NamedTuple):
    model: str
    source: str
    scores: dict[str, float]


CRAMMING = "Geiping & Goldstein 2023; model card of JonasGeiping/crammed-bert: median of 5 fine-tunings, development sets"
REFERENCES = (
    Reference("crammed BERT, one A6000 day", CRAMMING, {
        "glue.mnli": 84.1, "glue.qqp": 87.5, "glue.qnli": 90.2, "glue.sst2": 92.0, "glue.cola": 53.3, "glue.stsb": 87.4,
        "glue.mrpc": 88.9, "glue.rte": 58.5}),
    Reference("BERT-base, cased", "transformers, examples/pytorch/text-classification/README.md: one run, development sets", {
        "glue.mnli": 83.91, "glue.qqp": 87.49, "glue.qnli": 90.66, "glue.sst2": 92.32, "glue.cola": 56.53, "glue.stsb": 88.64,
        "glue.mrpc": 88.85, "glue.rte": 65.70, "glue.wnli": 56.34}),
    Reference("GPT-2 large", "Warstadt et al. 2020, table 3", {"blimp": 83.0}),
    Reference("GPT-2, 345M", "Salazar et al. 2020; README of awslabs/mlm-scoring", {"blimp": 82.6}),
    Reference("RoBERTa-large", "Salazar et al. 2020; README of awslabs/mlm-scoring", {"blimp.original": 86.5}),
    Reference("LSTM", "Warstadt et al. 2020, table 3", {"blimp": 69.8}),
    Reference("5-gram", "Warstadt et al. 2020, table 3", {"blimp": 61.2}),
    Reference("people", "Warstadt et al. 2020, table 3", {"blimp": 88.6, "blimp.original": 88.6}),
    Reference("GPT-2, 124M", "lm-evaluation-harness, issue 2159", {"hellaswag": 31.14, "lambada": 32.56}),
)


def beside(task: str) -> list[tuple[str, float]]:
    """(model, score) of everybody who is known for a task, best first."""
    found = [(reference.model, reference.scores[task]) for reference in REFERENCES if task in reference.scores]
    return sorted(found, key=lambda pair: -pair[1])


def sources(tasks: list[str]) -> list[str]:
    """'source: models' for everything that stands beside any of the tasks."""
    found: dict[str, list[str]] = {}
    for reference in REFERENCES:
        if any(task in reference.scores for task in tasks):
            found.setdefault(reference.source, []).append(reference.model)
    return [f"{', '.join(models)}: {source}" for source, models in found.items()]
