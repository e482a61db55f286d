"""The league: who is ranked where, who is a copy of whom, scores measured again, and which runs get no card."""

import json
import re
import shutil

import pytest

from cram.cli import main
from cram.errors import CramError
from cram.insight.league.card import read_card, write_card
from cram.insight.league.make import make_card
from cram.insight.league.page import league_blocks, league_lines, sparkline
from cram.insight.league.standings import class_of, find_cards, judge, standings
from cram.report_page import to_html
from tests.cram.insight.league_runs import Forgery, body, runs


def quiet(line):
    pass


@pytest.fixture
def cards(tmp_path):
    """Four honest cards of three classes."""
    for name in ("clock", "steps", "other", "causal"):
        write_card(tmp_path / f"{name}.card.json", body(name))
    return tmp_path


def test_cards_are_ranked_within_classes_of_equal_budget_and_metric(cards):
    entries = judge(find_cards([cards]), say=quiet)
    assert [entry.reasons for entry in entries] == [[]] * 4
    ranked = {key.title(): [entry.name for entry in members] for key, members in standings(entries).items()}
    best = sorted(("steps", "other"), key=lambda name: body(name)["scores"]["held_out"]["loss"])
    assert list(ranked.values()).count(["causal"]) == 1 and len(ranked) == 3
    assert ranked["80 steps, by masked loss, 0.15 of it hidden"] == best
    assert ranked["80 steps, by bits per byte"] == ["causal"]
    clock = next(title for title, names in ranked.items() if names == ["clock"])
    assert re.fullmatch(r"0m08\.0s on CPU, \d+ threads?, by masked loss.*", clock)


def test_the_same_run_under_two_names_is_ranked_once(cards):
    shutil.copy(cards / "clock.card.json", cards / "copy.card.json")
    forged = Forgery("steps")
    forged.body |= {"author": "Mallory", "name": "mine"}
    forged.body["made"] = body("steps")["made"].replace("+00:00", "-00:01")  # a minute later
    forged.set("seed", 5)  # another configuration, and so another id and another ledger's head
    forged.write(cards / "mallory.card.json")
    entries = {entry.path.name: entry for entry in judge(find_cards([cards]), say=quiet)}
    assert sum(not entry.accepted for entry in entries.values()) == 2
    assert "the same run as clock.card.json (clock by Ada)" in entries["copy.card.json"].reasons[0]
    assert "the same run as steps.card.json (steps by Ada)" in entries["mallory.card.json"].reasons[0]


def test_who_dates_a_stolen_card_back_does_not_get_the_run(cards):
    forged = Forgery("steps")
    forged.body |= {"author": "Mallory", "name": "mine", "made": forged.rows[-1]["at"]}
    forged.write(cards / "mallory.card.json")
    entries = judge(find_cards([cards]), say=quiet)
    lines = "\n".join(league_lines(entries))
    assert "mine by Ada or Mallory (disputed)" in lines and "show the run's folder" in lines
    assert sum(not entry.accepted for entry in entries) == 1
    again = judge(find_cards([cards]), say=quiet, rescore=lambda card: [] if card.path.name == "steps.card.json" else None)
    assert "steps by Ada or Mallory (disputed)  rescored" in "\n".join(league_lines(again))


def test_a_score_without_a_curve_is_marked(tmp_path):
    forged = Forgery("steps")
    forged.set("train.validate_every", 1.0)
    forged.metrics = [row for row in forged.metrics if row["kind"] != "validation"]
    [entry] = judge([forged.write(tmp_path / "blind.card.json")], say=quiet)
    assert entry.accepted and "nothing supports its score" in "; ".join(entry.notes)
    [honest] = judge([Forgery.honest("steps")], say=quiet)
    assert "nothing supports" not in "; ".join(honest.notes)


def test_a_budget_that_only_looks_the_same_is_another_class(cards):
    forged = Forgery("clock")
    forged.set("budget", "8.04s")
    forged.body["budget"] = forged.rows[0]["budget"] = "8.04s"
    forged.write(cards / "larger.card.json")
    entries = {entry.path.name: entry for entry in judge([cards / "larger.card.json", cards / "steps.card.json"], say=quiet)}
    theirs = class_of(read_card(cards / "clock.card.json"))
    ours = class_of(entries["larger.card.json"].card)
    assert entries["larger.card.json"].accepted and ours.budget == theirs.budget and ours != theirs


def test_the_same_losses_from_another_configuration_are_a_copy(cards):
    forged = Forgery("steps")
    forged.set("seed", 5)
    forged.body["made"] = body("steps")["made"].replace("+00:00", "-00:01")
    for row in forged.rows:  # also other times, so that only the losses tell
        row["account"]["setup"] = round(row["account"]["setup"] + 0.01, 6)
        row["seconds"] = round(sum(row["account"].values()), 6)
    for row in forged.metrics:
        if "spent" in row:
            row["spent"] += 0.01
    forged.body["metrics"]["sha256"] = "0" * 64
    forged.write(cards / "mallory.card.json")
    entries = {entry.path.name: entry for entry in judge(find_cards([cards]), say=quiet)}
    assert "digit for digit" in " ".join(entries["mallory.card.json"].reasons), entries["mallory.card.json"]
    assert entries["steps.card.json"].accepted


def test_who_names_the_text_of_others_must_tell_of_the_same_text(cards):
    shutil.copy(cards / "other.card.json", cards / "third.card.json")
    forged = Forgery("other")
    forged.body["scores"]["held_out"]["predicted"] -= 1
    held_out = forged.body["scores"]["held_out"]
    held_out["accuracy"] = round(held_out["accuracy"] * held_out["predicted"]) / held_out["predicted"]
    (cards / "third.card.json").unlink()
    forged.write(cards / "other.card.json")
    write_card(cards / "clock.card.json", body("clock"))
    entries = {entry.path.name: entry for entry in judge(find_cards([cards]), say=quiet)}
    assert entries["other.card.json"].reasons == [
        "names the held-out text of others, but tells of other counts or baselines than the 2 that agree"]


def test_other_code_is_marked_or_rejected(cards):
    forged = Forgery("steps")
    forged.body["code"]["files"]["cram/train.py"] = "0" * 12
    forged.write(cards / "steps.card.json")
    path = cards / "steps.card.json"
    [entry] = judge([path], say=quiet)
    assert entry.accepted and entry.notes == ["made with other code than the league's: cram/train.py"]
    [entry] = judge([path], same_code=True, say=quiet)
    assert entry.reasons == ["made with other code than the league's: cram/train.py"]


def test_the_page_names_every_card_and_asks_nothing_of_the_network(cards):
    forged = Forgery("other")
    forged.body |= {"author": "<script>alert(1)</script>", "name": "$x_1$ & co"}
    forged.write(cards / "other.card.json")
    (cards / "broken.card.json").write_text("{")
    entries = judge(find_cards([cards]), say=quiet)
    page = to_html(league_blocks(entries, "cram league cards"), "league")
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)", page) and "@import" not in page
    assert "$x_1$ &amp; co" in page and "broken.card.json" in page and "self-consistent" in page
    lines = league_lines(entries)
    assert sum(line.startswith("rejected: broken.card.json") for line in lines) == 1


def test_the_verbs_from_run_to_page(tmp_path, capsys):
    out = tmp_path / "cards"
    for name in ("steps", "other"):
        assert main(["submit", str(runs() / name), "--out", f"{out}/{name}.card.json", "--author", "Ada"]) == 0
    assert (out / "steps.card.json").stat().st_size < 200_000
    (out / "bad.card.json").write_text((out / "steps.card.json").read_text().replace('"Ada"', '"Eve"'))
    assert main(["league", str(out), "--runs", str(runs())]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 cards accepted" in said and said.count("rescored") == 2 and "bad.card.json: was edited" in said
    assert "<table>" in (out / "league.html").read_text() and "| steps |" in (out / "league.md").read_text()
    assert main(["league", "--replay", str(out / "steps.card.json"), "--out", str(tmp_path)]) == 0
    assert "budget: 80 steps" in (tmp_path / "steps.yaml").read_text() and "cram evaluate" in capsys.readouterr().out
    assert main(["league", str(tmp_path / "cards" / "bad.card.json"), "--out", str(tmp_path)]) == 1
    assert main(["league", str(tmp_path / "none")]) == 2 and main(["submit", str(tmp_path)]) == 2
    assert main(["submit", str(runs() / "steps"), "--out", str(tmp_path / "card.txt")]) == 2


# ---- runs that get no card

@pytest.fixture
def copied(tmp_path):
    """A copy of a run, to be spoiled."""
    shutil.copytree(runs() / "steps", tmp_path / "run")
    return tmp_path / "run"


def test_files_that_are_not_those_of_the_stages_get_no_card(copied):
    for name in ("pretrain/metrics.jsonl", "pretrain/progress.f64", "evaluate/scores.json", "data/validation.jsonl"):
        content = (copied / name).read_bytes()
        (copied / name).write_bytes(content.replace(b"1", b"2", 1) if b"1" in content else content[:-1])
        with pytest.raises(CramError, match="is not the file that the|damaged|not JSON"):
            make_card(copied)
        (copied / name).write_bytes(content)
    make_card(copied)
    shutil.rmtree(copied / "evaluate")
    with pytest.raises(CramError, match="not the complete result of a stage"):
        make_card(copied)


def test_a_name_that_no_league_takes_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "steps.card.json"
    assert main(["submit", str(runs() / "steps"), "--out", str(out)]) == 0
    before = out.read_bytes()
    assert main(["submit", str(runs() / "steps"), "--out", str(out), "--author", "Eve\n1  0.0001"]) == 2
    assert out.read_bytes() == before


def test_an_unfinished_run_gets_no_card(copied):
    ledger = copied / "pretrain" / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))
    last = json.loads(lines[-2])
    ledger.with_suffix(".head").write_text(json.dumps({"row": last["row"], "hash": last["hash"]}))
    with pytest.raises(CramError, match="is not the file that the pretrain stage wrote"):
        make_card(copied)
    record = json.loads((copied / "pretrain" / "stage.json").read_text())
    from data_prep.files import file_hash
    for name in ("ledger.jsonl", "ledger.head"):
        path = copied / "pretrain" / name
        record["files"][name] = {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)}
    (copied / "pretrain" / "stage.json").write_text(json.dumps(record))
    with pytest.raises(CramError, match="not finished"):
        make_card(copied)


def test_results_of_different_runs_get_no_card(copied):
    shutil.rmtree(copied / "evaluate")
    shutil.copytree(runs() / "other" / "evaluate", copied / "evaluate")
    with pytest.raises(CramError, match="was made from another pretrain than the one beside it"):
        make_card(copied)


def test_a_sparkline_is_as_high_as_its_values():
    assert sparkline([8.0, 1.0]) == "█▁" and sparkline([]) == "" and set(sparkline([2.0] * 40)) == {"▁"}
    assert len(sparkline([float(i) for i in range(100)])) == 12
