"""The list of benchmarks, and BLiMP as a task: how its numbers hang together."""

import json
import os

import numpy as np
import pytest

from cram.errors import CramError
from data_prep.errors import DataError
from cram.evaluate.minimal_pairs import pair_scores, pairs_task, sample_pairs, wilson
from cram.evaluate.task import Rows
from cram.evaluate.zero_shot import TASKS
from data_prep.sources.rows import read_rows
from tests.cram.evaluate import reference_models as reference

BY_NAME = {task.name: task for task in TASKS}
MODELS = {"causal": lambda: reference.subject_of(*reference.gpt2(), "causal", 48),
          "masked": lambda: reference.subject_of(*reference.bert(), "masked", 64)}


def pair(good, bad, term, field):
    return {"sentence_good": good, "sentence_bad": bad, "linguistics_term": term, "field": field}


def blimp_rows():
    """Every paradigm with one or two pairs of random words."""
    rng, words = np.random.default_rng(0), "the cats dog walks walk barked slowly unhappy owners paid a".split()
    rows = {}
    for number, split in enumerate(BY_NAME["blimp"].reads):
        rows[split] = Rows(str(split), [
            pair(*(" ".join(rng.choice(words, rng.integers(2, 6))) for _ in range(2)), f"term {number % 5}",
                 "syntax/semantics" if number % 2 else "syntax_semantics") for _ in range(1 + number % 2)])
    return rows


def test_names_and_what_they_read():
    assert len(BY_NAME) == len(TASKS) and len(set(BY_NAME["blimp"].reads)) == 67
    assert BY_NAME["blimp"].reads == BY_NAME["blimp.original"].reads
    assert BY_NAME["lambada"].kinds == ("causal", "hybrid")
    for task in TASKS:
        assert set(task.kinds) <= {"masked", "causal", "hybrid"} and task.reads and task.source and task.version == 1


@pytest.mark.parametrize("kind, name", [("causal", "blimp"), ("masked", "blimp"), ("masked", "blimp.original")])
def test_blimp_in_all_its_groups(kind, name):
    subject, rows, task = MODELS[kind](), blimp_rows(), BY_NAME[name]
    result = task.score(subject, rows, None, print)
    variant = "original" if name.endswith("original") else None
    examples = [(split, row) for split, found in rows.items() for row in found.rows]
    pairs = [{"good": row["sentence_good"], "bad": row["sentence_bad"]} for _, row in examples]
    scores_P2 = pair_scores(subject, pairs, variant="original" if name.endswith("original") else None)
    hits, by_split, terms = (scores_P2[:, 0] > scores_P2[:, 1]).tolist(), {}, {}
    for (split, row), hit in zip(examples, hits):
        by_split.setdefault(split.subset, []).append(hit)
        terms.setdefault(row["linguistics_term"], []).append(hit)
    share = {subset: np.mean(found) for subset, found in by_split.items()}
    assert {subset: part["accuracy"] for subset, part in result["details"]["paradigm"].items()} == pytest.approx(share)
    assert result["score"] == pytest.approx(np.mean(list(share.values())))
    assert result["low"] <= result["score"] <= result["high"] and result["examples"] == len(hits)
    assert result["details"]["all"]["accuracy"] == pytest.approx(np.mean(hits))
    assert (result["details"]["all"]["low"], result["details"]["all"]["high"]) == wilson(sum(hits), len(hits))
    assert {term: part["accuracy"] for term, part in result["details"]["phenomenon"].items()} == {
        term: np.mean(found) for term, found in terms.items()}
    assert list(result["details"]["field"]) == ["syntax_semantics"]  # one name for both spellings
    assert json.loads(json.dumps(result)) == result


def test_the_variants_of_a_masked_model_are_different_tasks():
    subject = MODELS["masked"]()
    pairs = [{"good": "The unhappy walkers were walking", "bad": "The unwalkable mountains were walking"}]
    assert abs(pair_scores(subject, pairs) - pair_scores(subject, pairs, variant="original")).max() > 1e-3


def test_a_tie_is_wrong_and_counted():
    rows = {BY_NAME["blimp"].reads[0]: Rows("x", [pair("the cats", "the cats", "t", "f"), pair("a dog", "a dog", "t", "f")])}
    result = BY_NAME["blimp"].score(MODELS["causal"](), rows, None, print)
    assert (result["score"], result["details"]["ties"]) == (0.0, 2)


def score(task, subject):
    return task.score(subject, {split: split.read(None) for split in task.reads}, None, print)


def test_any_file_of_pairs(tmp_path):
    subject, path = MODELS["causal"](), tmp_path / "mine.jsonl"
    rows = [{"sentence_good": "The cats walk.", "sentence_bad": "The cats walks.", "phenomenon": "agreement"},
            {"sentence_good": "A dog barked.", "sentence_bad": "Dog a barked."}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = pairs_task(str(path))
    result = score(task, subject)
    scores_P2 = pair_scores(subject, [{"good": row["sentence_good"], "bad": row["sentence_bad"]} for row in rows])
    hits = {"agreement": scores_P2[0, 0] > scores_P2[0, 1], "mine": scores_P2[1, 0] > scores_P2[1, 1]}
    assert {name: part["accuracy"] for name, part in result["details"]["phenomenon"].items()} == hits
    assert task.name == f"pairs:{path}" and str(task.reads[0]) == str(path)
    for content, message in [("", "holds no pair"), ('{"sentence_good": "a"}\n', "row 1: has no field sentence_bad"),
                             ('{"sentence_good": "a", "sentence_bad": ""}\n', "row 1: .* must be sentences")]:
        path.write_text(content)
        with pytest.raises(CramError, match=message):
            score(task, subject)
    for missing in (tmp_path / "no.jsonl", tmp_path / "no.txt", tmp_path):
        with pytest.raises(DataError, match="no such file"):
            score(pairs_task(str(missing)), subject)


def test_a_sample_is_spread_evenly_and_the_same_for_a_seed(tmp_path):
    for number in range(7):
        folder = tmp_path / "nyu-mll" / "blimp" / f"paradigm_{number}"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text("".join(json.dumps(pair(f"good {number} {row}", "bad", "t", "f")) + "\n"
                                                    for row in range(30)))
    pairs = sample_pairs(tmp_path, 24, 5)
    counts = [sum(found["paradigm"] == f"paradigm_{number}" for found in pairs) for number in range(7)]
    assert sum(counts) == 24 and set(counts) == {3, 4}
    assert len({found["good"] for found in pairs}) == 24
    assert pairs == sample_pairs(tmp_path, 24, 5) != sample_pairs(tmp_path, 24, 6)
    assert len(sample_pairs(tmp_path, 1000, 5)) == 210 and sample_pairs(tmp_path / "no", 24, 5) == []


@pytest.mark.skipif("CRAM_MIRROR" not in os.environ, reason="set CRAM_MIRROR to a folder with nyu-mll/blimp and others")
@pytest.mark.parametrize("name", ["blimp", "hellaswag", "arc_easy", "copa", "lambada"])
def test_real_rows_are_understood(name):
    task = BY_NAME[name]
    found = {split: read_rows(*split, os.environ["CRAM_MIRROR"]) for split in task.reads}
    rows = {split: Rows(place, examples if name == "copa" else examples[:2]) for split, (place, examples) in found.items()}
    result = task.score(MODELS["causal"](), rows, None, print)
    assert 0 <= result["low"] <= result["score"] <= result["high"] <= 1
