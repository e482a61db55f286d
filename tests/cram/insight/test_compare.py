"""Runs beside each other and beside what was expected: the numbers are the files', the verdicts have known answers."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from cram.cli import main
from cram.errors import CramError
from cram.insight.compare.expect import PER_DOUBLING, TOLERANCE, band, check
from cram.insight.compare.page import compare_blocks, compare_lines, config_table, facts_table, names, reached
from cram.insight.compare.side import open_side, to_expected
from cram.insight.league.card import write_card
from cram.insight.run import Point
from cram.report_page import to_html, to_markdown
from tests.cram.insight.league_runs import Forgery, body, runs

SHIPPED = Path(__file__).parents[3] / "reports" / "expected"


@pytest.fixture(scope="module")
def steps():
    return open_side(str(runs() / "steps"))


@pytest.fixture(scope="module")
def clock():
    return open_side(str(Forgery.honest("clock")))


def test_a_run_its_card_and_its_expectation_say_the_same(steps, tmp_path):
    write_card(tmp_path / "steps.card.json", body("steps"))
    (tmp_path / "steps.json").write_text(json.dumps(to_expected(steps)))
    for path in ("steps.card.json", "steps.json"):
        side = open_side(str(tmp_path / path))
        assert facts_table([side])[1] == facts_table([steps])[1]
        assert (side.curve, side.config, side.account) == (steps.curve, steps.config, steps.account)


def test_the_tables_show_what_differs(steps):
    other, causal = open_side(str(runs() / "other")), open_side(str(runs() / "causal"))
    assert config_table([steps, other])[1] == [["seed", "0", "1"]]
    header, rows = facts_table([steps, causal])
    cells = {row[0]: row[1:] for row in rows}
    assert header == ["", "steps", "causal"] and cells["steps"] == ["80", "80"]
    assert cells["masked loss, nats"] == [f"{steps.held_out['loss']:.4f}", ""]
    assert cells["bits per byte"] == ["", f"{causal.held_out['bits_per_byte']:.4f}"]
    assert reached([steps, causal])[0] == [] and "is judged by" in reached([steps, causal])[1][0]
    assert names([steps, steps, causal]) == ["steps", "steps (2)", "causal"]


@given(st.floats(0.25, 4.0))
@settings(max_examples=20, deadline=None)
def test_a_planted_factor_of_speed_is_found(factor):
    """A curve that is straight in the logarithm, run at another speed."""
    steps = open_side(str(runs() / "steps"))
    at = [2.0 ** n for n in range(12)]
    slow = replace(steps, kind="time", curve=[Point(x, x, n, 6 - 0.3 * math.log(x)) for n, x in enumerate(at)])
    fast = replace(slow, name="fast", curve=[Point(x, x, n, 6 - 0.3 * math.log(x * factor)) for n, x in enumerate(at)])
    [[name, loss, there, when, times]], _ = reached([slow, fast])
    if factor < 1:
        assert when == "never"
    else:
        assert float(times.removesuffix("x")) == pytest.approx(factor, abs=0.01)


def test_why_scores_cannot_be_compared_is_said(steps):
    assert "different held-out texts" in steps.comparable(replace(steps, text="0" * 32))
    assert "tokenizers" in steps.comparable(replace(steps, tokenizer="0" * 64))
    assert steps.comparable(replace(steps, name="again")) is None
    assert "no validation" in reached([steps, replace(steps, curve=[])])[1][0]


def failed(side, expected, tolerance=None):
    return [each.what for each in check(side, expected, tolerance) if each.passed is False]


def test_counted_budgets_are_exact_and_scores_within_a_band(steps):
    assert failed(steps, steps) == []
    assert failed(replace(steps, tokens=steps.tokens + 1), steps) == ["tokens"]
    assert failed(replace(steps, finished=False), steps) == ["finished"]
    better = replace(steps, held_out=steps.held_out | {"loss": steps.held_out["loss"] * (1 - 2 * TOLERANCE)})
    worse = replace(steps, held_out=steps.held_out | {"loss": steps.held_out["loss"] * (1 + 0.9 * TOLERANCE)})
    assert failed(better, steps) == ["masked loss, nats"]  # too good is not as expected either
    assert failed(worse, steps) == [] and failed(worse, steps, 0.01) == ["masked loss, nats"]
    assert failed(replace(better, text="other"), steps) == []  # another text: twice the band
    assert failed(replace(steps, held_out={}), steps) == ["masked loss, nats"]
    assert "configuration" in failed(open_side(str(runs() / "other")), steps)


def test_a_budget_of_time_widens_with_the_speed_of_the_machine(clock):
    score = clock.score[1]
    low, high = band(replace(clock, tokens=clock.tokens // 2), clock, 0.03, True)
    assert low == pytest.approx(score * 0.97) and high == pytest.approx(score * (1.03 + PER_DOUBLING), rel=1e-3)
    low, high = band(replace(clock, tokens=2 * clock.tokens), clock, 0.03, True)
    assert low == pytest.approx(score * (0.97 - PER_DOUBLING)) and high == pytest.approx(score * 1.03)
    assert failed(replace(clock, tokens=clock.tokens + 512), clock) == []


def test_the_verb_passes_fails_and_refuses(tmp_path, capsys):
    run, expected = str(runs() / "steps"), str(tmp_path / "steps.json")
    assert main(["compare", "--expect", run, "--out", str(tmp_path)]) == 0
    assert main(["compare", run, expected, "--out", str(tmp_path / "page")]) == 0
    assert "steps: as expected" in capsys.readouterr().out
    assert main(["compare", str(runs() / "other"), expected]) == 1
    assert "FAIL  configuration: seed 1, not 0" in capsys.readouterr().out
    assert main(["compare", run, str(runs() / "other")]) == 0
    assert "cram ablate" in capsys.readouterr().out
    page = (tmp_path / "page" / "compare.html").read_text()
    assert "<svg" in page and "src=" not in page and "<script" not in page
    for wrong in ([run], [run, str(tmp_path / "none")], [run, expected, expected], [run, run, "--tolerance", "2"],
                  ["--expect", expected]):
        assert main(["compare", *wrong]) == 2
    (tmp_path / "half.json").write_text('{"cram_expected": 1}')
    assert main(["compare", run, str(tmp_path / "half.json")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_any_name_can_be_drawn_and_shown(steps):
    odd = replace(steps, name="_$a_{b$ <script>|x")
    page = compare_blocks([steps, odd], [], "cram compare")
    assert "<script" not in to_html(page, "x") and "\\|x" in to_markdown(page)
    assert compare_lines([steps, odd], [])


@pytest.mark.parametrize("gone", ["stages", "scores", "data"])
def test_a_card_without_what_is_compared_is_refused(gone, tmp_path):
    card = dict(body("steps"))
    del card[gone]
    write_card(tmp_path / "some.card.json", card)
    with pytest.raises(CramError, match="not a whole card"):
        open_side(str(tmp_path / "some.card.json"))


@pytest.mark.parametrize("name, metric", [("demo", "masked loss, nats"), ("demo_gpt", "bits per byte")])
def test_what_is_shipped_as_expected_is_whole(name, metric):
    side = open_side(str(SHIPPED / f"{name}.json"))
    assert side.finished and side.score[0] == metric and side.spent <= side.amount and len(side.curve) >= 2
    assert side.score[1] < side.baselines["unigram"].get("bits_per_byte" if metric == "bits per byte" else "loss")
    assert failed(side, side) == []
    with pytest.raises(CramError, match="no such run"):
        open_side(str(SHIPPED / "nothing"))
