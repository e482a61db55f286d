"""Multiple choice and the last word: lm-evaluation-harness with its own task files on the same rows, example by example."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cram.errors import CramError
from cram.evaluate.choices import arc, copa, hellaswag, last_words, piqa, score_choices, winogrande
from cram.evaluate.scoring import log_likelihoods
from cram.evaluate.task import Rows
from cram.evaluate.zero_shot import TASKS
from tests.cram.evaluate import reference_models as reference

BY_NAME = {task.name: task for task in TASKS}
ROWS = {
    "hellaswag": [
        {"activity_label": "Roof shingle removal", "ctx_a": "A man is sitting on a roof.", "ctx_b": "he", "ctx": "A man is he",
         "endings": ["is using wrap [step] twice.", "rips level tiles off [title] and on", "is holding a  cube.", "stands."],
         "label": "3"},
        {"activity_label": "Walking", "ctx_a": "The cats walk [header] slowly.", "ctx_b": "", "ctx": "The cats walk",
         "endings": ["to a café.", "towards the mountains", "twice!", "a"], "label": "0"}],
    "arc_easy": [
        {"question": "Which piece is clear?", "choices": {"text": ["a stone", "a dog", "mold spores", "cats"],
                                                          "label": ["A", "B", "C", "D"]}, "answerKey": "A"},
        {"question": "How many owners?", "choices": {"text": ["one", "twelve", "nobody"], "label": ["1", "2", "3"]},
         "answerKey": "3"}],
    "piqa": [
        {"goal": "Walk a dog", "sol1": "Walk slowly towards the mountains.", "sol2": "Bark.", "label": 0},
        {"goal": "Find a café", "sol1": "In my palm", "sol2": "Ask the owners twice", "label": 1}],
    "copa": [
        {"premise": "The dog barked.", "choice1": "The cats walked.", "choice2": "It was a stone.", "question": "cause",
         "label": 0, "idx": 0},
        {"premise": "I paid twice.", "choice1": "The owners sat inside.", "choice2": "A guardian angel came.",
         "question": "effect", "label": 1, "idx": 1}],
    "winogrande": [
        {"sentence": "The dog bit the cat because _ was angry at it.", "option1": "the dog", "option2": "the cat",
         "answer": "1"},
        {"sentence": "The owners paid the walkers and _ were happy.", "option1": "owners", "option2": "walkers",
         "answer": "2"}],
    "lambada": [
        {"text": "A guardian angel is in my palm. Inside it is a small clear stone"},
        {"text": "Nobody's dog barked; the cats walked towards the\n\nmountains and the café, twice, but the dog"}],
}
FILES = {"hellaswag": "hellaswag/hellaswag.yaml", "arc_easy": "arc/arc_easy.yaml", "piqa": "piqa/piqa.yaml",
         "copa": "super_glue/copa/default.yaml", "winogrande": "winogrande/default.yaml",
         "lambada": "lambada/lambada_openai.yaml"}


@pytest.fixture(scope="module")
def subject():
    return reference.subject_of(*reference.gpt2(row=96), "causal", 96)


def score(name, subject, rows, say=print):
    task = BY_NAME[name]
    return task.score(subject, {task.reads[0]: Rows("rows.jsonl", rows)}, None, say)


@pytest.mark.parametrize("name", FILES)
def test_equal_to_the_harness_with_its_own_task_file(name, subject, tmp_path):
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    from cram.after.harness import CramLM

    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / FILES[name])
    split = config.get("test_split") or config["validation_split"]
    config |= {"task": f"local_{name}", "dataset_path": "json", "dataset_name": None, "tag": None, "training_split": None,
               "dataset_kwargs": {"data_files": {split: str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")}}
    for part in ("validation_split", "test_split"):
        config[part] = split if config.get(part) == split else None
    theirs = lm_eval.simple_evaluate(CramLM(subject), tasks=[config], task_manager=TaskManager(include_defaults=False),
                                     log_samples=True, bootstrap_iters=0)
    ours, expected = score(name, subject, ROWS[name]), theirs["results"][f"local_{name}"]
    if name == "lambada":
        assert ours["details"]["perplexity"]["value"] == pytest.approx(expected["perplexity,none"], rel=1e-4)
        requests = last_words(Rows("rows.jsonl", ROWS[name]))
    else:
        questions = {"hellaswag": hellaswag, "arc_easy": arc, "piqa": piqa, "copa": copa, "winogrande": winogrande}[name](
            Rows("rows.jsonl", ROWS[name]))
        requests = [request for question in questions for request in question.requests]
    assert ours["details"]["acc"]["value"] == expected["acc,none"]
    if "acc_norm,none" in expected:
        assert ours["details"]["acc_norm"]["value"] == expected["acc_norm,none"]
    samples = sorted(theirs["samples"][f"local_{name}"], key=lambda sample: sample["doc_id"])
    asked = [tuple(argument.values()) if isinstance(argument, dict) else tuple(argument)
             for sample in samples for argument in (sample["arguments"].values() if isinstance(sample["arguments"], dict)
                                                    else sample["arguments"])]
    assert [request[:2] for request in asked] == requests
    found = [answer[0][0] for sample in samples for answer in sample["resps"]]
    assert log_likelihoods(subject, requests).log_p == pytest.approx(np.array(found, dtype=float), abs=1e-4)


def test_accuracies_and_bits_by_hand(subject):
    rows = ROWS["piqa"]
    result = score("piqa", subject, rows)
    hits, normal, bits = [], [], []
    for row in rows:
        context = f"Question: {row['goal']}\nAnswer:"
        pair = log_likelihoods(subject, [(context, f" {row['sol1']}"), (context, f" {row['sol2']}")]).log_p
        hits.append(pair.argmax() == row["label"])
        normal.append((pair / [len(row["sol1"]), len(row["sol2"])]).argmax() == row["label"])
        bits.append(-pair[row["label"]] / math.log(2) / len(row[f"sol{row['label'] + 1}"].encode()))
    assert result["details"]["acc"]["value"] == np.mean(hits)
    assert result["score"] == result["details"]["acc_norm"]["value"] == np.mean(normal)
    assert result["details"]["gold_bits_per_byte"]["value"] == pytest.approx(np.mean(bits))
    assert result["low"] <= result["score"] <= result["high"] and result["examples"] == 2


def test_prepared_copies_ask_the_same():
    """Columns as other copies have them, with the same content."""
    (question,) = arc(Rows("a", ROWS["arc_easy"][:1]))
    assert arc(Rows("b", [{"query": "Question: Which piece is clear?", "choices": ["a stone", "a dog", "mold spores", "cats"],
                           "gold": 0}])) == [question]
    whole = hellaswag(Rows("a", ROWS["hellaswag"][:1]))[0]
    context, endings = whole.requests[0][0], list(whole.choices)
    assert context == "Roof shingle removal: A man is sitting on a roof. He"
    assert hellaswag(Rows("b", [{"ctx": context, "endings": endings, "label": 3}])) == [whole]


def test_copa_without_connectors_says_so(subject):
    rows = [{"premise": "I slept.", "hypothesis": "I was tired.", "label": "entailment"},
            {"premise": "It rained.", "hypothesis": "It was dry.", "label": "not_entailment"},
            {"premise": "I slept.", "hypothesis": "I was a dog.", "label": "not_entailment"},
            {"premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment"}]
    said = []
    result = score("copa", subject, rows, said.append)
    assert result["examples"] == 2 and "not comparable" in result["details"]["note"] and len(said) == 1
    assert [question.gold for question in copa(Rows("x", rows))] == [0, 1]


def test_a_masked_model_chooses_by_pseudo_log_likelihood():
    subject = reference.subject_of(*reference.bert(row=64), "masked", 64)
    result = score("piqa", subject, ROWS["piqa"])
    assert result["details"]["scored_by"] == "within_word_l2r" and 0 <= result["score"] <= 1


@pytest.mark.parametrize("name, change, message", [
    ("hellaswag", {"label": ""}, "row 2: the answer '' is none of 0 to 3"),
    ("hellaswag", {"endings": "one"}, "row 2: needs two choices or more"),
    ("hellaswag", {"endings": ["one", 2]}, "row 2: needs two choices or more"),
    ("hellaswag", {"ctx_b": None}, "row 2: ctx_b is None, not text"),
    ("arc_easy", {"choices": ["a", "b"]}, "row 2: choices must have text and label"),
    ("lambada", {"text": 7}, "row 2: text is 7, not text"),
    ("arc_easy", {"answerKey": "E"}, "row 2: the answer 'E' is none of 0 to 2"),
    ("piqa", {"label": -1}, "row 2: the answer -1 is none of 0 to 1"),
    ("copa", {"question": "why"}, "row 2: question is 'why'"),
    ("winogrande", {"answer": ""}, "row 2: no blank in .* or the answer '' is not 1 or 2"),
    ("winogrande", {"sentence": "None."}, "row 2: no blank in 'None.'"),
    ("lambada", {"text": "word"}, "row 2: no last word")])
def test_bad_rows_are_named(name, change, message, subject):
    rows = [dict(row) for row in ROWS[name]]
    rows[1] |= change
    with pytest.raises(CramError, match=f"rows.jsonl, {message}"):
        score(name, subject, rows)


@pytest.mark.parametrize("name, field", [("hellaswag", "label"), ("arc_easy", "question"), ("piqa", "sol2"),
                                         ("winogrande", "option1"), ("lambada", "text")])
def test_missing_columns_are_named(name, field, subject):
    rows = [{key: value for key, value in row.items() if key != field} for row in ROWS[name]]
    with pytest.raises(CramError, match=f"rows.jsonl, row 1: has no field {field}"):
        score(name, subject, rows)


@pytest.mark.parametrize("name", [name for name in BY_NAME if not name.startswith("blimp")])
def test_no_rows_are_no_score(name, subject):
    with pytest.raises(CramError, match="rows.jsonl: holds no"):
        score(name, subject, [])
