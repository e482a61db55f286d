"""What was scored is kept under everything it depends on; what cannot be scored is said."""

import json
from types import SimpleNamespace

import pytest

from cram.config import load
from cram.errors import CramError
from cram.evaluate.benchmark_page import benchmark_lines, benchmark_table, draw, remarks
from cram.evaluate.results import score_tasks
from cram.evaluate.task import Rows, Split, Task


class Killed(BaseException):
    """As kill -9 would: nothing may catch it."""


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror" / "toy"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    return tmp_path / "mirror"


def subject(weights="w1", kind="causal"):
    return SimpleNamespace(kind=kind, row=32, identity={"weights": weights})


def counting(name="toy", calls=None, **more):
    def score(subject, data, config, say):
        calls.append(name)
        return {"metric": "accuracy", "score": 0.5, "low": 0.4, "high": 0.6, "examples": len(next(iter(data.values())).rows)}
    return Task(name, "a toy", "nobody", ("causal",), "accuracy", 0.25, (Split("toy", None, "test"),), score,
                keys=("evaluate.finetune.epochs",), **more)


@pytest.fixture
def score(tmp_path, mirror):
    said = []

    def run(tasks, who=None, *overrides):
        config = load("demo", [f"evaluate.mirror={mirror}", *overrides])
        return score_tasks(who or subject(), tasks, config, tmp_path / "store", said.append)
    run.said = said
    return run


def test_a_result_is_made_once_and_read_afterwards(score):
    calls = []
    first, again = score([counting(calls=calls)]), score([counting(calls=calls)])
    assert calls == ["toy"] and first == again
    assert first["toy"]["examples"] == 2 and first["toy"]["chance"] == 0.25


def test_whatever_a_score_depends_on_makes_it_anew(score, mirror):
    calls = []
    score([counting(calls=calls)])
    score([counting(calls=calls)], subject("w2"))
    score([counting(calls=calls)], None, "evaluate.finetune.epochs=2")
    score([counting(calls=calls, version=2)])
    with open(mirror / "toy" / "test.jsonl", "a") as file:
        file.write('{"text": "three"}\n')
    assert score([counting(calls=calls)])["toy"]["examples"] == 3
    assert len(calls) == 5
    score([counting(calls=calls)], None, "evaluate.finetune.seeds=2", "evaluate.sample_tokens=3")  # no part of this task
    assert len(calls) == 5


def test_a_killed_evaluation_goes_on_where_it_was(score):
    calls = []

    def killed(subject, data, config, say):
        raise Killed
    broken = Task("second", "", "", ("causal",), "accuracy", None, (Split("toy", None, "test"),), killed)
    with pytest.raises(Killed):
        score([counting("first", calls), broken, counting("third", calls)])
    assert calls == ["first"]
    results = score([counting("first", calls), counting("second", calls), counting("third", calls)])
    assert calls == ["first", "second", "third"] and list(results) == ["first", "second", "third"]


def test_what_cannot_be_scored_is_skipped_and_said(score):
    calls = []
    gone = Task("gone", "", "", ("causal",), "accuracy", None, (Split("elsewhere", None, "test"),), None)
    results = score([counting(calls=calls), gone], subject(kind="masked"))
    assert not calls and "for causal models, this one is masked" in results["toy"]["skipped"]
    results = score([gone])
    assert "has no elsewhere/test" in results["gone"]["skipped"] and "gone: skipped" in score.said[-1]


def test_a_damaged_score_is_named(score, tmp_path):
    score([counting(calls=[])])
    path, = (tmp_path / "store").glob("toy-*.json")
    path.write_text(path.read_text()[:40])
    assert "delete the file" in score([counting(calls=[])])["toy"]["skipped"]


def test_one_that_cannot_be_scored_does_not_cost_the_others(score):
    def fails(subject, data, config, say):
        raise CramError("file.jsonl, row 3: no label")
    broken = Task("broken", "", "", ("causal",), "accuracy", None, (Split("toy", None, "test"),), fails)
    results = score([broken, counting(calls=[])])
    assert results["broken"] == {"skipped": "file.jsonl, row 3: no label"} and results["toy"]["score"] == 0.5


def test_a_missing_field_names_place_row_and_fields():
    rows = Rows("file.jsonl", [{"a": 1}, {"b": 2}])
    assert rows.get(1, "a", "b") == 2
    with pytest.raises(CramError, match=r"file.jsonl, row 2: has no field a or c \(it has b\)"):
        rows.get(1, "a", "c")


RESULTS = {"blimp": {"metric": "accuracy", "score": 0.6123, "low": 0.609, "high": 0.616, "examples": 67000, "chance": 0.5,
                     "overlap": {"examples": 67000, "comparable": 6874, "found": 3}},
           "glue.mrpc": {"metric": "F1", "score": 0.8, "low": 0.79, "high": 0.82, "examples": 408, "chance": None, "control": {"score": 0.75},
                         "majority": {"F1": 0.81}},
           "probe.rte": {"metric": "accuracy", "score": 0.5, "low": 0.4, "high": 0.6, "examples": 277,
                         "control": {"skipped": "none"}, "details": {"note": "not comparable"}},
           "pairs:/a/long/way/mine.jsonl": {"metric": "accuracy", "score": 0.5, "low": 0.4, "high": 0.6, "examples": 2},
           "glue.qnli": {"skipped": "no training examples"}}


def test_the_table_shows_scores_beside_what_others_reached():
    header, rows = benchmark_table(RESULTS)
    blimp = dict(zip(header, rows[0]))
    assert blimp["score"] == "61.2" and blimp["in training text"] == "3 of 6,874" and "GPT-2 large 83.0" in blimp["others"]
    assert dict(zip(header, rows[1]))["random weights"] == "75.0"
    assert dict(zip(header, rows[1]))["one answer for all"] == "81.0" and rows[3][0] == "pairs:mine"
    assert len({len(line) for line in benchmark_lines(RESULTS)[:1]}) == 1 and "61.2" in benchmark_lines(RESULTS)[1]
    told = "\n".join(remarks(RESULTS))
    assert "skipped: glue.qnli: no training examples" in told and "Warstadt et al. 2020" in told
    assert "probe.rte: not comparable" in told
    assert "none without" in told  # an average of nine numbers is not given for one


def test_the_drawing_is_one_self_contained_svg():
    drawing = draw(RESULTS)
    assert drawing.count("<svg") == 1 and "glue.mrpc" in drawing and "glue.qnli" not in drawing
    assert json.dumps(drawing) and "http" not in drawing.split("<defs>")[-1].replace("http://www.w3.org", "")
