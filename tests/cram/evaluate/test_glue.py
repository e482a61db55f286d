"""GLUE and SuperGLUE from a small mirror: rows to scores, averages, and rows that are wrong."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cram.errors import CramError
from cram.evaluate import glue, superglue
from cram.evaluate.task import Rows, Split
from cram.schema import Config
from data_prep.sources.rows import read_rows
from tests.cram.evaluate.test_finetune import make_subject

TASKS = {task.name: task for task in (*glue.TASKS, *superglue.TASKS)}
RECIPES = {name: task.score.args[0] for name, task in TASKS.items()}


def config(**settings):
    made = Config()
    for key, value in {"seeds": 1, "epochs": 1, "length": 32, "lr": 3e-3, **settings}.items():
        setattr(made.evaluate.finetune, key, value)
    return made


def made_up(name, n, seed):
    """Rows with the hub's columns; the right class is said by a word."""
    rng = np.random.default_rng(seed)

    def words(label=None):
        some = rng.choice([f"w{k}" for k in range(5, 30)], rng.integers(2, 6))
        return " ".join([*some, *([] if label is None else [f"w{label}"])])

    rows, classes = [], RECIPES[name].classes
    for number in range(n):
        label = int(rng.integers(classes or 6))
        row = {"idx": number, "label": label if classes else float(label)}
        if name == "superglue.copa":
            row |= {"premise": words(), "question": ("cause", "effect")[number % 2], "choice1": words(0 if label else 1),
                    "choice2": words(1 if label else 0)}
        elif name == "superglue.multirc":
            row |= {"paragraph": words(), "question": words(), "answer": words(label),
                    "idx": {"paragraph": 0, "question": number // 3, "answer": number}}
        elif name == "superglue.wic":
            row |= {"word": "w9", "sentence1": words(), "sentence2": words(label), "start1": 0, "end1": 1}
        elif name == "superglue.wsc":
            row |= {"text": words(), "span1_text": words(label), "span2_index": 1, "span2_text": "w7"}
        else:
            fields = RECIPES[name].read.keywords["fields"]
            row |= {field: words(label if field == fields[-1] else None) for field in fields}
        rows.append(row)
    return rows


def mirrored(folder, name, train=96, test=30):
    """{split: Rows} as the pipeline reads them from a mirror."""
    for number, split in enumerate(TASKS[name].reads):
        path = folder / split.dataset / (split.subset or "") / f"{split.split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = made_up(name, test if number else train, number)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: Rows(*read_rows(*split, str(folder))) for split in TASKS[name].reads}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_goes_from_rows_to_a_score(tmp_path, name):
    task, data = TASKS[name], mirrored(tmp_path, name)
    result = task.score(make_subject(), data, config(), lambda line: None)
    json.dumps(result, allow_nan=False)
    assert result["metric"] == task.metric and result["low"] == result["score"] == result["high"]  # one seed
    assert result["score"] == result["metrics"][task.metric]["median"] == result["runs"][0][task.metric]
    assert (result["train_examples"], result["examples"]) == (96, 60 if name == "glue.mnli" else 30)
    assert result["majority"].keys() == result["metrics"].keys() and "control" not in result


@pytest.mark.parametrize("name", ["glue.mnli", "superglue.copa"])
def test_what_is_planted_is_found_and_the_control_has_it_beside(tmp_path, name):
    data = mirrored(tmp_path, name, train=260, test=90)
    result = TASKS[name].score(make_subject(), data, config(epochs=5, control=True, max_examples=250), lambda line: None)
    assert result["score"] > 0.9 and result["train_examples"] == 250
    assert result["control"]["metrics"].keys() == result["metrics"].keys()
    assert result["majority"]["accuracy"] < 0.7
    if name == "glue.mnli":
        assert result["metrics"]["accuracy_mismatched"]["median"] > 0.9


def results(**numbers):
    """As the tasks give them: glue.cola with metrics mcc=0.5."""
    return {f"glue.{name}": {"metrics": {key: {"median": value} for key, value in metrics.items()}}
            for name, metrics in numbers.items()}


CRAMMED = results(mnli={"accuracy": .839, "accuracy_mismatched": .841}, sst2={"accuracy": .922},
                  stsb={"pearson": .846, "spearman": .84}, rte={"accuracy": .538}, qnli={"accuracy": .895},
                  qqp={"accuracy": .90, "f1": .873}, mrpc={"accuracy": .82, "f1": .875}, cola={"mcc": .445},
                  wnli={"accuracy": .1})


def test_the_papers_average_is_the_papers():
    """The crammed BERT of an A6000 day: 83.9/84.1, 92.2, 84.6, 53.8, 89.5, 87.3, 87.5, 44.5 -> 78.6."""
    value, missing = glue.paper_average(CRAMMED)
    assert round(100 * value, 1) == 78.6 and missing == []


def test_glues_average_counts_tasks():
    value, missing = glue.glue_average(CRAMMED)
    tasks = [.445, .922, (.82 + .875) / 2, (.846 + .84) / 2, (.90 + .873) / 2, (.839 + .841) / 2, .895, .538]
    assert value == pytest.approx(sum(tasks) / 8) and missing == []


def test_an_average_with_holes_is_none_and_names_them():
    some = {name: result for name, result in CRAMMED.items() if name not in ("glue.rte", "glue.mnli")}
    some["glue.stsb"] = {"skipped": "no such file"}
    assert glue.paper_average(some) == (None, ["glue.mnli accuracy", "glue.mnli accuracy_mismatched", "glue.stsb pearson",
                                               "glue.rte accuracy"])
    assert glue.glue_average(some) == (None, ["glue.stsb pearson", "glue.stsb spearman", "glue.mnli accuracy",
                                              "glue.mnli accuracy_mismatched", "glue.rte accuracy"])


def test_reads_the_hubs_names():
    assert glue.RECIPES["mnli"].reads == (Split("nyu-mll/glue", "mnli", "train"),
                                          Split("nyu-mll/glue", "mnli", "validation_matched"),
                                          Split("nyu-mll/glue", "mnli", "validation_mismatched"))
    assert TASKS["superglue.boolq"].reads[0] == Split("aps/super_glue", "boolq", "train")
    assert [task.name for task in glue.TASKS] == ["glue." + name for name in
                                                  "cola sst2 mrpc stsb qqp mnli qnli rte wnli".split()]


def test_superglue_sentences():
    rows = Rows("f", [{"text": "Ann told Sue that she won .", "span2_index": 4, "span1_text": "Ann", "label": 1, "word": "told",
                       "sentence1": "a", "sentence2": "b", "premise": "It rained .", "question": "effect", "choice1": "x",
                       "choice2": "y"}])
    assert superglue.wsc(rows, 0).texts == (("Ann told Sue that *she* won .", "Ann"),)
    assert superglue.wic(rows, 0).texts == (("told: a", "b"),)
    first, second = superglue.copa(rows, 0).texts
    assert first == ("It rained . What happened as a result?", "x") and second == (first[0], "y")


@pytest.mark.parametrize("name, change, message", [
    ("glue.cola", {"label": -1}, "label -1, as in the test splits"), ("glue.cola", {"label": 2}, "label 2 is none of 0 .. 1"),
    ("glue.cola", {"label": "yes"}, "label 'yes' is none of"), ("glue.mnli", {"label": 3}, "label 3 is none of 0 .. 2"),
    ("glue.cola", {"label": 0.5}, "label 0.5 is none of"), ("glue.stsb", {"label": 5.5}, "5.5 is no similarity from 0 to 5"),
    ("glue.stsb", {"label": -1}, "-1 is no similarity"), ("glue.stsb", {"label": float("nan")}, "nan is no similarity"),
    ("glue.mrpc", {"sentence2": None}, "sentence2 is None, not text"), ("superglue.wsc", {"span2_index": 99}, "span2_index 99"),
    ("superglue.copa", {"question": "why"}, "'why' is neither cause nor effect"),
    ("superglue.multirc", {"idx": 7}, "idx 7 does not say paragraph and question")])
def test_bad_rows_are_named(tmp_path, name, change, message):
    data = mirrored(tmp_path, name, train=5, test=5)
    split = list(data)[-1]
    data[split].rows[2].update(change)
    with pytest.raises(CramError, match=f"{Path(data[split].place).name}, row 3: .*{message}"):
        TASKS[name].score(make_subject(), data, config(), lambda line: None)


def test_missing_fields_empty_files_and_too_many_epochs(tmp_path):
    data, task = mirrored(tmp_path, "glue.rte", 5, 5), TASKS["glue.rte"]
    test = list(data)[-1]
    with pytest.raises(CramError, match="epochs=6: .*no more than 5"):
        task.score(make_subject(), data, config(epochs=6), print)
    with pytest.raises(CramError, match="validation.jsonl: has no rows"):
        task.score(make_subject(), data | {test: Rows(data[test].place, [])}, config(), print)
    del data[test].rows[1]["sentence2"]
    with pytest.raises(CramError, match="validation.jsonl, row 2: has no field sentence2"):
        task.score(make_subject(), data, config(), print)


def test_a_model_of_short_rows_says_that_it_reads_less(tmp_path):
    said, data = [], mirrored(tmp_path, "glue.rte", 20, 20)
    result = TASKS["glue.rte"].score(make_subject(row=9), data, config(), said.append)
    assert "fine-tuning on 9 tokens" in said[0] and result["cut"] > 0


@pytest.mark.skipif("CRAM_MIRROR" not in os.environ, reason="set CRAM_MIRROR to a folder with nyu-mll/glue to read real rows")
@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "rte", "wnli"])
def test_real_rows_become_examples(name):
    recipe = glue.RECIPES[name]
    for split in recipe.reads:
        rows = Rows(*read_rows(*split, os.environ["CRAM_MIRROR"]))
        examples = glue.read_examples(recipe, rows)
        assert len(examples) == len(rows.rows) and all(all(texts) for example in examples for texts in example.texts)
