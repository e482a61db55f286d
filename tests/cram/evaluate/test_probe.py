"""Linear probes: features against a loop over sentences, and words that are there to be found."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cram.errors import CramError
from cram.evaluate import probe
from cram.evaluate.reading import encode
from cram.evaluate.task import Rows
from cram.ops import Documents
from tests.cram.evaluate.test_finetune import make_subject, planted
from tests.cram.evaluate.test_glue import config

pytest.importorskip("sklearn")
TASKS = {task.name: task for task in probe.TASKS}


@pytest.mark.parametrize("kind", ["masked", "causal", "hybrid"])
def test_means_are_those_of_each_sentence_alone(kind):
    subject = make_subject(kind, document_mask=False)
    data = encode(subject, probe.apart(planted(30, 0, pairs=True)), 32)
    assert len(data) == 60 and data.ways == 1
    found = probe.means(probe.learner(subject, 0), data, kind, "cpu", print)
    for number, ids in enumerate(data.sequences):
        with torch.no_grad():
            alone = Documents.from_lengths([len(ids)])
            hidden = subject.model(torch.from_numpy(ids), alone, False if kind == "hybrid" else None)
        assert found[number] == pytest.approx(hidden.mean(0).numpy(), abs=1e-5)


def test_features_of_pairs():
    means = np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert probe.features(means, 2).tolist() == [[1, 2, 3, -1, 2, 3, 3, -2], [0, 0, 1, 1, 1, 1, 0, 0]]
    assert probe.features(means, 1) is means


def rows_of(task, n, shuffled=False):
    """Rows of probe.sst2 or probe.mrpc in which the word w0 decides."""
    fields, rng = ("sentence",) if task == "probe.sst2" else ("sentence1", "sentence2"), np.random.default_rng(9)
    data = {}
    for number, split in enumerate(TASKS[task].reads):
        examples = planted(n, number, pairs=len(fields) == 2)
        labels = rng.integers(0, 2, n).tolist() if shuffled else [example.label for example in examples]
        data[split] = Rows(str(split), [dict(zip(fields, example.texts[0]), label=label)
                                        for example, label in zip(examples, labels)])
    return data


@pytest.mark.parametrize("task", ["probe.sst2", "probe.mrpc"])
def test_a_planted_word_is_found_and_shuffled_labels_are_not(task):
    result = TASKS[task].score(make_subject(), rows_of(task, 400), config(), print)
    json.dumps(result, allow_nan=False)
    assert result["score"] > 0.9 and result["control"]["score"] > 0.5
    if task == "probe.sst2":
        assert result["low"] < result["score"] <= result["high"]
    chance = TASKS[task].score(make_subject(), rows_of(task, 400, shuffled=True), config(), print)
    assert abs(chance["metrics"]["accuracy"] - 0.5) < 0.12


def test_same_numbers_again_and_the_model_is_left_alone():
    subject, data = make_subject(), rows_of("probe.sst2", 120)
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    first, again = (TASKS["probe.sst2"].score(subject, data, config(max_examples=90), print) for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0} and first["train_examples"] == 90
    assert all(torch.equal(value, before[name]) for name, value in subject.model.state_dict().items())


def test_the_control_of_a_foreign_model_is_said_to_be_missing():
    subject, data = replace(make_subject(), config=None), rows_of("probe.sst2", 60)
    assert "random weights" in TASKS["probe.sst2"].score(subject, data, config(), print)["control"]["skipped"]


def test_too_few_examples_of_a_class():
    with pytest.raises(CramError, match="the rarest 1 times.*evaluate.finetune.max_examples"):
        probe.fit(np.zeros((5, 2)), np.array([0, 0, 0, 0, 1]))
    with pytest.raises(CramError, match="have 1 classes"):
        probe.fit(np.zeros((5, 2)), np.zeros(5))
