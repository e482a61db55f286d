"""Verdicts and multipliers from rows alone: known answers, silence in doubt, failed runs."""

import math
import random

import pytest

from cram.insight.ablate.answer import CANNOT_TELL, answers, spent
from cram.insight.ablate.page import blocks
from cram.insight.ablate.record import agreed, save
from cram.report_page import to_markdown

LOSS = {"name": "loss", "label": "loss, nats", "less": True, "learns": True}


def record(values, *, seeds=3, ladder=(), metric=LOSS, curves=None, factors=None):
    """values: (arm, factor) -> value of each seed, or an error."""
    names = list(dict.fromkeys(arm for arm, _ in values))
    rows = [{"arm": arm, "seed": seed, "factor": factor, "budget": "100 steps"} | (
                {"error": each} if isinstance(each, str) else
                {"value": each, "seconds": 1.0, "flops": 10.0, "tokens": 5, "steps": 100, "head": "0" * 64,
                 "curve": curves(arm, seed) if curves else []})
            for (arm, factor), found in values.items() for seed, each in enumerate(found)]
    factors = factors or {}
    arms = [{"name": name, "settings": [] if number == 0 or name in factors else ["x=1"], "budget": "100 steps", "told": "",
             "factor": factors.get(name, 1.0), "values": {}} for number, name in enumerate(names)]
    return {"schema": 1, "name": "q", "label": "q", "question": "Is it?", "source": "s", "expect": "e", "seeds": seeds,
            "ladder": list(ladder), "metric": metric, "arms": arms, "rows": rows, "budget": "100 steps", "kind": "steps",
            "amount": 100.0, "configs": ["demo"], "common": [], "complete": True, "command": "cram ablate q",
            "environment": {"name": "CPU", "torch": "2", "python": "3", "commit": None, "changed": False, "date": "2026-01-01"}}


def test_verdicts_of_known_differences():
    found = answers(record({("base", 1.0): [3.0, 3.2, 2.9], ("good", 1.0): [2.9, 3.1, 2.81], ("bad", 1.0): [3.1, 3.3, 3.01],
                            ("same", 1.0): [3.1, 3.1, 2.9]}))
    assert [each.verdict for each in found] == ["baseline", "better", "worse", CANNOT_TELL]
    assert found[1].gains == pytest.approx([0.1, 0.1, 0.09]) and found[1].mean == pytest.approx(2.9366667)


def test_where_more_is_better_the_signs_turn():
    accuracy = {"name": "accuracy", "label": "accuracy", "less": False, "learns": True}
    found = answers(record({("base", 1.0): [0.5, 0.52], ("more", 1.0): [0.6, 0.62], ("base", 0.5): [0.4, 0.42],
                            ("base", 2.0): [0.6, 0.62]}, seeds=2, ladder=(0.5, 1.0, 2.0), metric=accuracy))
    assert found[1].verdict == "better" and found[1].times.value == pytest.approx(2.0, rel=0.02)


def test_pairing_sees_what_the_spread_of_seeds_hides():
    rng = random.Random(1)
    base = [rng.gauss(3, 0.5) for _ in range(4)]
    found = answers(record({("base", 1.0): base, ("arm", 1.0): [each - 0.01 + rng.gauss(0, 0.001) for each in base]}, seeds=4))
    assert found[1].verdict == "better" and found[1].spread > 20 * abs(sum(found[1].gains) / 4)


def test_equal_arms_are_told_apart_about_one_time_in_twenty():
    rng, wrong = random.Random(0), 0
    for _ in range(1000):
        seeds = [rng.gauss(3, 0.3) for _ in range(3)]
        found = answers(record({(arm, 1.0): [seed + rng.gauss(0, 0.02) for seed in seeds] for arm in ("base", "arm")}))
        wrong += found[1].verdict != CANNOT_TELL
    assert 0.03 < wrong / 1000 < 0.07


def test_a_planted_factor_comes_back_from_noisy_finals():
    """The arm is the baseline with twice the data: a power law, seeds that shift it, noise of some thousandths."""
    rng, curve = random.Random(3), lambda factor: 2.5 + 1.2 * factor ** -0.35
    shifts = [rng.gauss(0, 0.05) for _ in range(3)]
    values = {("base", factor): [curve(factor) + shift + rng.gauss(0, 0.004) for shift in shifts] for factor in (1.0, 0.4, 2.8)}
    values["twice", 1.0] = [curve(2.0) + shift + rng.gauss(0, 0.004) for shift in shifts]
    found = answers(record(values, ladder=(0.4, 1.0, 2.8)))
    assert found[1].verdict == "better" and found[1].times.value == pytest.approx(2.0, rel=0.15)
    assert found[1].times.low < 2.0 < found[1].times.high


def test_an_arm_of_another_budget_belongs_to_the_ladder():
    values = {("base", 1.0): [3.0, 3.1], ("twice", 2.0): [2.8, 2.9], ("base", 0.5): [3.2, 3.3], ("arm", 1.0): [2.9, 3.0]}
    found = answers(record(values, seeds=2, ladder=(0.5, 1.0, 2.0), factors={"twice": 2.0}))
    assert found[2].times.value == pytest.approx(math.sqrt(2), rel=0.01) and found[1].times.value == pytest.approx(2.0)


def test_failed_runs_are_a_result_and_the_other_seeds_still_count():
    found = answers(record({("base", 1.0): [3.0, 3.1, 3.2], ("half", 1.0): [2.9, "out of memory", 3.1],
                            ("none", 1.0): ["exploded"] * 3}))
    assert [each.verdict for each in found] == ["baseline", "better", "failed"]
    assert len(found[1].gains) == 2 and found[2].errors == ["exploded"] * 3
    text = to_markdown(blocks(record({("base", 1.0): [3.0], ("none", 1.0): ["exploded"]}, seeds=1), "ablation"))
    assert "failed beside base" in text and "none, seed 0: exploded" in text


def test_without_the_baseline_nothing_is_compared():
    found = answers(record({("base", 1.0): ["out of memory"] * 3, ("arm", 1.0): [3.0] * 3}, ladder=(0.5, 1.0)))
    assert [each.verdict for each in found] == ["failed", "failed"] and found[1].times is None


def test_without_a_ladder_the_curves_within_runs_say_how_much_sooner():
    curve = lambda share: 3 - math.log(share)  # noqa: E731
    rate = {"base": 1.0, "fast": 1.25}
    found = answers(record({("base", 1.0): [3.0] * 3, ("fast", 1.0): [2.9] * 3, ("slow", 1.0): [3.1] * 3}, ladder=(),
                           curves=lambda arm, seed: [[100 * share, curve(share * rate.get(arm, 0.8)) + 0.01 * seed]
                                                     for share in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)]))
    assert found[1].times.told() == "> 1" and found[2].times.value == pytest.approx(0.8, rel=0.01)


def test_scores_of_other_text_do_not_compare():
    rows = record({("base", 1.0): [3.0], ("arm", 1.0): [2.0]}, seeds=1)["rows"]
    rows[0]["scored_on"], rows[1]["scored_on"] = 1000, 900
    kept, failed = agreed(rows)
    assert kept == rows[0] and "value" not in failed and "scored on other text" in failed["error"]


def test_ledgers_are_summed_those_of_failed_runs_too():
    rows = record({("base", 1.0): [3.0, 3.1], ("arm", 1.0): ["exploded", 3.0]}, seeds=2)["rows"]
    rows[2] |= {"head": "1", "seconds": 2.0, "flops": 1.0, "tokens": 1}
    assert spent(rows) == {"runs": 4, "seconds": 5.0, "flops": 31.0, "tokens": 16}


def test_the_page_is_made_from_the_record_alone_and_asks_nothing_of_the_network(tmp_path, cram):
    values = {("base", 1.0): [3.0, 3.1], ("good<er>", 1.0): [2.8, 2.9], ("base", 0.5): [3.2, 3.3]}
    made = record(values, seeds=2, ladder=(0.5, 1.0),
                  curves=lambda arm, seed: [[50.0, 4.0], [90.0, 3.5]])
    first = {path.name: path.read_bytes() for path in save(made, tmp_path)}
    assert set(first) == {"ablation.json", "ablation.html", "ablation.md", "ablation-differences.svg", "ablation-budgets.svg",
                          "ablation-validations.svg"}
    page = first["ablation.html"].decode()
    assert "<script" not in page and "good&lt;er&gt;" in page and "src=" not in page and "@import" not in page
    (tmp_path / "ablation.html").unlink()
    assert cram("ablate", "render", tmp_path / "ablation.json").code == 0
    assert (tmp_path / "ablation.html").read_bytes() == first["ablation.html"]


def test_render_refuses_other_files(tmp_path, cram):
    (tmp_path / "other.json").write_text('{"schema": 1}')
    (tmp_path / "torn.json").write_text('{"schema"')
    (tmp_path / "empty.json").write_text('{"schema": 1, "arms": []}')
    for name, told in (("other.json", "not the record of an ablation"), ("torn.json", "not JSON"), ("none.json", "no such"),
                       ("empty.json", "not a whole record (KeyError: 'metric'); run the ablation again")):
        result = cram("ablate", "render", tmp_path / name)
        assert result.code == 2 and told in result.err and result.err.count("\n") == 1
