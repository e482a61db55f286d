"""The course as files: lessons that parse, a text that never changes, and the comparison of what was printed."""

import hashlib
import json
import re

import pytest
from hypothesis import given, strategies as st

from cram.config import load
from cram.errors import CramError
from cram.insight.lesson import course, text
from cram.insight.lesson.compare import agrees, differences, rewritten
from cram.insight.lesson.judge import Asked, number, yes_no
from cram.insight.lesson import exercises_labs, exercises_scale, exercises_text, exercises_train

LESSONS = {lesson.number: lesson for lesson in course.lessons()}
CHECKS = {**exercises_text.CHECKS, **exercises_train.CHECKS, **exercises_scale.CHECKS, **exercises_labs.CHECKS}


def test_eight_lessons_and_four_labs_in_order():
    assert list(LESSONS) == [*"12345678", "lab1", "lab2", "lab3", "lab4"]


@pytest.mark.parametrize("lesson", LESSONS.values(), ids=lambda lesson: lesson.folder)
def test_a_lesson_is_whole(lesson):
    assert lesson.exercises == ["1", "2", "3"] and 15 <= lesson.minutes <= 60
    assert {exercise for number, exercise in CHECKS if number == lesson.number} == set(lesson.exercises)
    assert lesson.steps and any(len(step.expected) > 1 for step in lesson.steps)
    for heading in ("Do", "Look at", "Exercises", "On a card, for a day", "For the teacher", "Read on"):
        assert f"\n## {heading}\n" in lesson.text
    for exercise in lesson.exercises:
        assert f"cram lesson {lesson.number} --check {exercise} " in " ".join(lesson.text.split())
    assert "arxiv.org" in lesson.text or "reports/" in lesson.text or "OSDI" in lesson.text


@pytest.mark.parametrize("path", sorted(course.FOLDER.glob("*.md")), ids=lambda path: path.name)
def test_links_lead_somewhere(path, root):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert target.startswith("https://") or (root / "configs" / "lessons" / target).exists(), target


@pytest.mark.parametrize("name", sorted(path.stem for path in course.FOLDER.glob("*.yaml")))
def test_configurations_of_lessons_load(name):
    config = load(f"lessons/{name}")
    assert (config.name, config.out, config.budget) == (name, "runs/lessons", "100 steps")


def test_what_is_printed_has_no_marks_left():
    shown = course.plain(LESSONS["3"].text)
    assert "```" not in shown and "<!--" not in shown and "](" not in shown and "    $ cram run lessons/packing\n" in shown


@pytest.mark.parametrize("content, complaint", [
    ("# T\n\n```console\n$ cram\n```\n", ":1: a lesson"), ("# T\n<!-- minutes: 5 -->\n```console\nhm\n```\n", ":4: a block"),
    ("# T\n<!-- minutes: 5 -->\n```console\n$ cram\n", ":3: the block is never closed")])
def test_a_lesson_written_wrongly_is_named(tmp_path, content, complaint):
    (tmp_path / "9_new.md").write_text(content)
    with pytest.raises(CramError, match=complaint):
        course.read_lesson(tmp_path / "9_new.md")


# ---- the text


def test_the_text_is_the_same_everywhere(tmp_path):
    """Bytes that any Python gives; should a change be meant, the excerpts must be written again: cram lesson N --update."""
    text.write_text(tmp_path)
    digest = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in tmp_path.iterdir()}
    assert digest == {"clean.jsonl": "dacd64474b3a206a", "web.jsonl": "376b72e294e0044d", "pairs.jsonl": "5462762bd620f487"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    text.write_text(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_pairs_differ_in_their_verb_which_agrees_with_the_first_noun():
    singular = {"is", *(one for one, _ in text.VERBS)}
    plural = {"are", *(many for _, many in text.VERBS)}
    for pair in text.pairs(300, seed=9):
        good, bad = pair["sentence_good"].split(), pair["sentence_bad"].split()
        assert [a == b for a, b in zip(good, bad)].count(False) == 1 and len(good) == len(bad)
        subject, verb = good[1], good[5]
        assert verb in (plural if subject.endswith("s") else singular)
        assert bad[5] in singular | plural and bad[5] != verb


def test_the_web_text_holds_what_it_says():
    rows = text.web(100, seed=5)
    documents = {row["text"] for row in rows if row["kind"] == "document"}
    assert {kind: sum(row["kind"] == kind for row in rows) for kind in text.WEB_SHARES} == \
        {kind: round(100 * share) for kind, share in text.WEB_SHARES.items()}
    assert all((row["text"] in documents) == (row["kind"] in ("document", "exact copy")) for row in rows)


# ---- comparing


LINE = st.lists(st.one_of(st.sampled_from(["loss", "steps of", "tokens", "spent"]), st.integers(1, 10 ** 6).map(str),
                          st.floats(0.01, 1e4).map(lambda x: f"{x:.4f}")), min_size=1, max_size=6).map(" ".join)


@given(st.lists(LINE, min_size=1, max_size=8), st.data())
def test_a_run_agrees_with_itself_however_it_is_shortened(printed, data):
    shown = data.draw(st.lists(st.booleans(), min_size=len(printed), max_size=len(printed)))
    expected = []
    for line, keep in zip(printed, shown):
        if keep:
            expected.append(line)
        elif expected[-1:] != ["..."]:
            expected.append("...")
    assert differences(expected, printed, 0.0) == []


@given(st.floats(1.0, 1e5), st.floats(-0.5, 0.5), st.floats(0.0, 0.2))
def test_a_number_may_differ_by_the_tolerance_and_no_more(value, change, tolerance):
    other = value * (1 + change)
    gap, allowed = abs(value - other), tolerance * max(value, other)
    if abs(gap - allowed) > 0.02:   # not where rounding decides
        assert agrees(f"loss {value:.4f} nats", f"loss {other:.4f} nats", tolerance) == (gap < allowed)


@pytest.mark.parametrize("expected, printed, count", [
    (["a", "b"], ["a", "b"], 0), (["a"], ["a", "b"], 1), (["a", "..."], ["a", "b"], 0), (["...", "b"], ["a", "b"], 0),
    (["a", "b"], ["a"], 1), (["...", "c"], ["a", "b"], 1), (["a", "...", "a"], ["a"], 1), ([], [], 0), (["a"], [], 1),
    (["...", "b", "c"], ["a", "b", "x", "c"], 1),
    (["...", "b", "..."], ["a", "a"], 1), (["...", "a", "b", "...", "a"], ["a", "c", "a", "b", "c", "a"], 0),
    (["1,024 tokens"], ["1,024 tokens"], 0), (["1,024 tokens"], ["2,024 tokens"], 1), (["loss nan"], ["loss 1.0"], 1),
    (["done in 3.1 s"], ["done in 97.0 s"], 0), (["  steps   5.0 s  63.9%"], ["  steps   50.0 s   90.1%"], 0),
    (["80 left, 31,865 tokens/s, ETA 6s"], ["80 left, 65 tokens/s, ETA 1m 47s"], 0),
    (["80 left, 31,865 tokens/s, ETA 6s"], ["60 left, 65 tokens/s, ETA 6s"], 1),
    (["error: runs/a-.../step-25: full (...); remove it"], ["error: runs/a-12/step-25: full (x y 7); remove it"], 0),
    (["error: runs/a-.../step-25: full (...); remove it"], ["error: runs/a-12/step-25: full (x y 7); keep it"], 1),
    (["head 04d68f146462"], ["head ffd68f146462"], 0), (["spent (99.0%)"], ["spent (50.0%)"], 1)])
def test_lines(expected, printed, count):
    assert len(differences(expected, printed, 0.02)) == count


@given(st.lists(LINE, min_size=1, max_size=6, unique_by=lambda line: re.sub(r"[\d.]+", "0", line)), st.integers(0, 5))
def test_rewriting_gives_the_numbers_of_the_run(printed, place):
    expected = ["...", re.sub(r"\d", "7", printed[place % len(printed)]), "..."]
    new, lost = rewritten(expected, printed)
    assert not lost and new == ["...", printed[place % len(printed)], "..."]
    assert rewritten([], printed) == (printed, [])
    assert rewritten(["...", "no such line"], printed)[1] == ["no such line"]


# ---- judging


@given(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-3), st.floats(0.001, 0.1))
def test_numbers_are_judged_by_their_tolerance(right, tolerance):
    def verdict(share):
        return number(Asked(repr(right * share), None), right, "how", tolerance).right
    assert verdict(1.0) and verdict(1 + 0.9 * tolerance)
    assert not verdict(1 + 1.1 * tolerance) and not verdict(1 - 1.1 * tolerance)


def test_answers_that_are_none_are_refused():
    for answer in ("", "many", "nan", "inf"):
        with pytest.raises(CramError, match="a number"):
            Asked(answer, None).number()
    with pytest.raises(CramError, match="yes or no"):
        yes_no(Asked("perhaps", None), True, "how")
    for answer in ("44,7", "0,135", "1,5%"):  # a comma before the fraction, as half of the world writes it
        with pytest.raises(CramError, match="a point before its fraction"):
            Asked(answer, None).number()
    assert Asked("1,024", None).number() == 1024 and Asked("12.5%", None).number() == 12.5
    assert yes_no(Asked("No", None), False, "how").right and not yes_no(Asked("yes", None), False, "how").right


# ---- the command


def test_the_contents_name_every_lesson(cram):
    listed = cram("lesson").out
    assert all(lesson.title in listed for lesson in LESSONS.values())
    assert f"{sum(lesson.minutes for lesson in LESSONS.values())} minutes" in listed
    assert cram("lesson", "packing").out == cram("lesson", "3").out == cram("lesson", "3_packing").out


@pytest.mark.parametrize("arguments, complaint", [
    (["99"], "there is none; possible: 1_tokenizer"), (["1", "--check", "7", "3"], "no exercise '7'; possible: 1, 2, 3"),
    (["4", "--check", "1"], "the answer is a number"), (["4", "--check", "1", "2", "3"], "one answer"),
    (["1", "--check", "1", "5"], "runs/lessons/tiny: not there; run the commands"), (["--run"], "which lesson?"),
    (["3", "--run", "--update"], "one at a time"), (["all"], "with --run alone"),
    (["kinds"], "of which run?"), (["kinds", "nowhere"], "no text there"),
    (["tiles", "--documents", "a"], "lengths in tokens"), (["tiles", "--tile", "20"], "a tile is 16"),
    (["5", "--check", "3", "nowhere"], "not there")])
def test_what_is_wrong_is_said_in_a_line(cram, tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    done = cram("lesson", *arguments)
    assert done.code == 2 and complaint in done.err and done.err.count("\n") == 1


def test_a_folder_with_an_earlier_run_is_refused(cram, tmp_path):
    (tmp_path / "runs/lessons/tiny").mkdir(parents=True)
    done = cram("lesson", "1", "--run", "--out", tmp_path)
    assert done.code == 2 and "an earlier run is there" in done.err


def test_all_lessons_at_once_name_those_that_differ(cram, monkeypatch, tmp_path):
    from cram.insight.lesson import console

    folders = []
    monkeypatch.setattr(console, "run_and_compare", lambda lesson, work, say: folders.append(work) or lesson.number == "lab2")
    done = cram("lesson", "all", "--run", "--out", tmp_path)
    assert done.code == 1 and "11 of 12 lessons as they say; not: lab2" in done.out
    assert folders == [tmp_path / lesson.folder for lesson in LESSONS.values()]


@pytest.mark.parametrize("lesson, exercise, right, wrong", [
    ("3", "3", 4 * 528 / 8256 * 100, 50), ("4", "1", 1.5, 3), ("4", "2", 0.1353, 7.389), ("6", "3", 1 / 16, 1 / 8),
    ("8", "1", 288.7, 57.7), ("8", "2", 1.9366, 1.69)])
def test_exercises_from_first_principles(cram, lesson, exercise, right, wrong):
    assert cram("lesson", lesson, "--check", exercise, right).code == 0
    assert cram("lesson", lesson, "--check", exercise, wrong).code == 1


LAW = [1.0, 8.0, 30.0, 0.5, 0.5, 1.0]
STUDY = {"what": "scale", "recipe": {"a": 1}, "fit": {"law": LAW, "draws": [LAW], "residuals": [0.0]},
         "rows": [{"size": "1x32", "n": 64, "tokens": 900, "loss": 4.0},
                  {"size": "1x64", "n": 256, "tokens": 900, "loss": 2.5}]}


@pytest.mark.parametrize("numbers", [6, 5])     # five: of before the law had gamma
def test_the_law_of_ones_own_grid_is_solved_for_tokens(cram, monkeypatch, tmp_path, numbers):
    """1 + 8 / 8 + 30 / sqrt(D) = 2.5 at D = 3600."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "runs/lessons/scaling/tiny.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(STUDY | {"fit": STUDY["fit"] | {"law": LAW[:numbers]}}))
    assert cram("lesson", "8", "--check", "3", 3600).code == 0
    assert cram("lesson", "8", "--check", "3", 900).code == cram("lesson", "8", "--check", "3", "never").code == 1
    for damaged in ([], {}, STUDY | {"fit": {}}, STUDY | {"rows": []}):
        file.write_text(json.dumps(damaged))
        found = cram("lesson", "8", "--check", "3", 3600)
        assert found.code == 2 and "tiny.json: not a scaling study" in found.err
