"""The log of trials: counts, order, what was kept, whether it holds at a larger budget; and what cannot be logged."""

import json
import re

import pytest

from cram.cli import main
from cram.errors import CramError
from cram.insight.ablate.log import read_topics, write

LOSS = {"name": "loss", "label": "loss, nats", "less": True, "learns": True}
BETTER, WORSE, SAME = [-0.11, -0.1, -0.09], [0.09, 0.1, 0.11], [0.1, -0.1, 0.01]


def record(name, arms, *, budget="1e12 flops", date="2026-01-01", size="", speeds=None, settings=None, metric=LOSS):
    """arms: name -> what each seed's loss is above the baseline's, whose are 3.0, 3.1, 3.2; the first is the baseline."""
    rows = []
    for arm, above in arms.items():
        for seed, each in enumerate(above):
            speed = (speeds or {}).get(arm, [1.0] * 3)[seed]
            rows.append({"arm": arm, "seed": seed, "factor": 1.0, "budget": budget, "value": 3.0 + 0.1 * seed + each,
                         "steps": 10, "tokens": 1000, "seconds": 2.0, "training_seconds": 1.0 / speed,
                         "flops": float(budget.split()[0]), "head": f"{name}{budget}{arm}{seed}", "curve": []})
    told = {arm: list((settings or {}).get(arm, [f"x.{arm}=1"])) if number else [] for number, arm in enumerate(arms)}
    return {"schema": 1, "name": name, "label": name + (f"-{size}" if size else ""), "size": size,
            "question": f"What of {name}?", "source": f"source of {name}", "expect": f"expected of {name}", "seeds": 3,
            "ladder": [], "metric": metric,
            "arms": [{"name": arm, "settings": told[arm], "budget": budget, "factor": 1.0,
                      "told": " ".join(told[arm]) or "as it is", "values": {}} for arm in arms],
            "rows": rows, "budget": budget, "kind": "flops", "amount": 1e12, "configs": ["demo"], "common": [], "corpus": None,
            "complete": True, "command": f"cram ablate {name}",
            "environment": {"name": "a CPU", "torch": "2", "python": "3", "commit": None, "changed": False, "date": date}}


def put(folder, made, stem=None):
    path = folder / f"{stem}.json" if stem else folder / made["label"] / "ablation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three questions; ``rate`` at two budgets, where ``low`` helps at both, ``high`` only at the small one."""
    put(tmp_path, record("mask", {"plain": [0, 0, 0], "more": WORSE}, date="2026-01-03"))
    put(tmp_path, record("rate", {"plain": [0, 0, 0], "low": BETTER, "high": BETTER, "odd": SAME}, date="2026-01-02"))
    put(tmp_path / "long", record("rate", {"plain": [0, 0, 0], "low": BETTER, "high": WORSE, "odd": BETTER},
                                  budget="1e13 flops", date="2026-01-05"))
    put(tmp_path, record("width", {"plain": [0, 0, 0], "wide": SAME}, date="2026-01-01"), stem="width")
    return tmp_path


def page(folder):
    path, _ = write(folder)
    return path.read_text().replace("\\", "")


def cells(text, first):
    """The cells of every row of a table that begins with this cell."""
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()
            if line.startswith(f"| {first} |")]


def test_every_trial_is_there_with_its_hypothesis_verdict_and_place(folder):
    text = page(folder)
    for name in ("mask", "rate", "width"):
        assert f"## {name}: What of {name}?" in text and f"expected of {name}" in text and f"source of {name}" in text
    assert "plain" in text and "a CPU" in text and "2026-01-05" in text and "1e13 flops a run, 3 seeds" in text
    assert "more: worse than plain" in text and "wide: cannot be told from plain" in text       # negatives like the rest
    assert "- **4** trials (of 3 questions)" in text and "- **2** negative" in text
    assert "- **0** changes kept" in text and "- **3** not decided" in text and text.count("Not decided.") == 3


def test_the_numbers_are_those_of_the_record(folder):
    row = cells(page(folder), "more")[0]
    assert row[:4] == ["more", "worse", "3.2000 ± 0.1100", "+0.1000 ± 0.0248"]      # t(2) = 4.303, 0.01 / sqrt(3)


def test_without_decisions_the_order_is_that_of_dates(folder):
    assert [topic.name for topic in read_topics(folder)] == ["width", "rate", "mask"]


def test_order_comes_first_then_dates(folder):
    (folder / "decisions.yaml").write_text("mask: {kept: null, order: 2}\nrate: {kept: low, order: 10}\n")
    assert [topic.name for topic in read_topics(folder)] == ["mask", "rate", "width"]
    (folder / "decisions.yaml").write_text("mask: {kept: null, order: 2}\nrate: {kept: low, order: 1.5}\n")
    assert [topic.name for topic in read_topics(folder)] == ["rate", "mask", "width"]


def test_what_was_kept_makes_the_recipe(folder):
    (folder / "decisions.yaml").write_text("rate:\n  kept: low\n  why: it holds\n  order: 1\n"
                                           "mask: {kept: none, why: it hurts}\nwidth: {kept: plain}\n")
    text = page(folder)
    assert cells(text, "1") == [["1", "rate", "low", "x.low=1", "holds", "it holds"]]
    assert cells(text, "2")[0][1:5] == ["width", "plain", "as it was", "is the baseline"]
    assert "```\nx.low=1\n```" in text
    assert "Kept: low. Why: it holds." in text and "Kept: nothing. Why: it hurts." in text
    assert "Kept: plain, the baseline." in text
    assert "- **1** changes kept" in text and "- **0** not decided" in text


def test_a_later_choice_of_a_key_replaces_the_earlier(tmp_path):
    for name, value, day in (("a", 1, 1), ("b", 2, 2)):
        put(tmp_path, record(name, {"plain": [0, 0, 0], "arm": BETTER}, settings={"arm": [f"x={value}", f"{name}='v w'"]},
                             date=f"2026-01-0{day}"))
    (tmp_path / "decisions.yaml").write_text("a: {kept: arm, order: 1}\nb: {kept: arm, order: 2}\n")
    block = re.search(r"```\n(.*)\n```", page(tmp_path))[1]
    assert block.startswith("x=2 ") and "x=1" not in block and block.count("v w") == 2


def test_does_it_hold_at_the_larger_budget(folder):
    rows = {row[0]: row for row in cells(page(folder), "low") + cells(page(folder), "high") + cells(page(folder), "odd")
            if len(row) == 4 and "tokens" not in row}
    assert rows["low"][1].startswith("better, -0.1000") and rows["low"][2].startswith("better") and rows["low"][3] == "holds"
    assert rows["high"][2].startswith("worse, +0.1000") and rows["high"][3] == "turns round"
    assert rows["odd"][1].startswith("cannot tell") and rows["odd"][3] == "shows only there (better)"


def test_the_smaller_budget_comes_first_whatever_was_run_first(tmp_path):
    put(tmp_path / "x", record("rate", {"plain": [0, 0, 0], "low": SAME}, budget="1e13 flops", date="2026-01-01"))
    put(tmp_path / "y", record("rate", {"plain": [0, 0, 0], "low": BETTER}, budget="9e12 flops", date="2026-01-02"))
    topic, = read_topics(tmp_path)
    assert [trial.budget for trial in topic.trials] == ["9e12 flops", "1e13 flops"]
    assert "is not confirmed" in page(tmp_path)


def test_sizes_of_a_question_stand_under_one_heading(tmp_path):
    put(tmp_path, record("rate", {"plain": [0, 0, 0], "low": BETTER}, budget="1e10 flops", size="tiny"))
    put(tmp_path, record("rate", {"plain": [0, 0, 0], "low": BETTER}))
    (tmp_path / "decisions.yaml").write_text("rate-tiny: {kept: low}\n")
    topic, = read_topics(tmp_path)
    assert len(topic.trials) == 2 and topic.decision.kept == "low" and "1e10 flops (tiny)" in page(tmp_path)


def test_speed_is_paired_by_seed_with_its_spread(tmp_path):
    put(tmp_path, record("rate", {"plain": [0, 0, 0], "low": BETTER}, speeds={"plain": [1, 2, 4], "low": [2, 3, 4]}))
    assert cells(page(tmp_path), "low")[0][-2] == "1.50 (1.00 to 2.00)" and cells(page(tmp_path), "plain")[0][-2] == "1"


def test_a_copy_of_a_record_is_no_second_trial(tmp_path):
    made = record("rate", {"plain": [0, 0, 0], "low": BETTER})
    put(tmp_path, made), put(tmp_path, made, stem="copy")
    topic, = read_topics(tmp_path)
    assert len(topic.trials) == 1 and "- **0** negative" in page(tmp_path)


def test_failed_runs_are_told(tmp_path):
    made = record("rate", {"plain": [0, 0, 0], "low": BETTER})
    made["rows"][3] = {"arm": "low", "seed": 0, "factor": 1.0, "budget": "1e12 flops", "error": "exploded"}
    put(tmp_path, made)
    assert "low, seed 0: exploded" in page(tmp_path)


@pytest.mark.parametrize("text, line, told", [
    ("rate: {kept: low}\nratte: {kept: low}\n", 2, "did you mean 'rate'?"),
    ("zebra: {kept: low}\n", 1, "is no trial recorded here"),
    ("rate:\n  kept: lov\n", 2, "did you mean 'low'?"),
    ("rate:\n  kept: low\n  whi: text\n", 3, "unknown key 'whi'"),
    ("rate:\n  why: text\n", 1, "'kept:' is missing"),
    ("rate:\n  kept: low\n  order: first\n", 3, "expected a number"),
    ("rate: low\n", 1, "expected 'name: value'"),
    ("rate: {kept: [low]}\n", 1, "expected text"),
    ("rate: {kept: low}\n\nrate: {kept: high}\n", 3, "twice"),
    ("- rate\n", 1, "expected 'label: ...' lines"),
    ("rate: {kept: low\n", 2, "not valid YAML")])
def test_a_wrong_decision_is_refused_with_file_and_line(folder, text, line, told):
    (folder / "decisions.yaml").write_text(text)
    with pytest.raises(CramError, match=re.escape(f"decisions.yaml:{line}")) as error:
        write(folder)
    assert told in str(error.value) and not (folder / "log.md").exists()


def test_an_arm_called_none_must_be_quoted(tmp_path):
    put(tmp_path, record("positions", {"plain": [0, 0, 0], "none": BETTER}))
    decisions = tmp_path / "decisions.yaml"
    decisions.write_text("positions: {kept: none}\n")
    with pytest.raises(CramError, match="write null for nothing"):
        write(tmp_path)
    decisions.write_text('positions: {kept: "none"}\n')
    assert read_topics(tmp_path)[0].decision.kept == "none"
    decisions.write_text("positions: {kept: null}\n")
    assert read_topics(tmp_path)[0].decision.kept is None


def test_an_empty_decisions_file_decides_nothing(folder):
    (folder / "decisions.yaml").write_text("# to come\n")
    assert all(topic.decision is None for topic in read_topics(folder))


@pytest.mark.parametrize("spoil", [lambda made: made.pop("environment"), lambda made: made["rows"][0].pop("factor"),
                                   lambda made: made.update(metric={"name": "loss"}), lambda made: made.update(arms=[]),
                                   lambda made: made["arms"][1].pop("told"), lambda made: made.update(schema=99)])
def test_a_damaged_record_is_named(folder, spoil):
    made = record("spoiled", {"plain": [0, 0, 0], "low": BETTER})
    spoil(made)
    path = put(folder, made)
    with pytest.raises(CramError, match=re.escape(str(path))):
        write(folder)


def test_from_the_command_line(folder, capsys, tmp_path):
    assert main(["ablate", "--log", str(folder), "--out", str(tmp_path / "out" / "recipe.md")]) == 0
    assert "questions: 3, trials: 4" in capsys.readouterr().out and (tmp_path / "out" / "recipe.md").is_file()
    assert main(["ablate", "--log", str(folder), "--out", str(tmp_path / "recipe.html")]) == 0
    html = (tmp_path / "recipe.html").read_text()
    assert "<script" not in html and "http" not in html
    for wrong, told in ((["ablate", "--log", str(folder / "none")], "no such folder"),
                        (["ablate", "--log", str(folder), "--out", str(tmp_path)], "ends in .md"),
                        (["ablate", "optimizer", "--log", str(folder)], "nothing else")):
        assert main(wrong) == 2 and told in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["ablate", "--log", str(tmp_path / "empty")]) == 2 and "no record" in capsys.readouterr().err


def test_pages_beside_a_record_are_linked_from_where_the_log_lies(folder, tmp_path):
    (folder / "width.md").write_text("# page\n")
    path, _ = write(folder, tmp_path / "elsewhere" / "log.md")
    link = re.search(r"\[width\.md\]\(([^)]*)\)", path.read_text())[1]
    assert (path.parent / link).resolve() == (folder / "width.md").resolve()
