"""The range of a plan for a card that is known by its data sheet alone, and what is refused before measuring."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cram.config import load
from cram.insight.plan.plan import add_range, make_plan
from cram.insight.plan.walk import Outline
from tests.cram.insight.test_plan import SMALL, TEXT, costs


def test_faster_steps_buy_more_and_the_range_holds_the_plan():
    config = load("demo", [*SMALL, "budget=100s"])
    outline, made = Outline(config), replace(costs()[0], rate=1e9)
    plan = make_plan(config, outline, made, TEXT, 10**15)
    add_range(plan, config, outline, made, TEXT, 0.5, 2.0)
    assert plan.slow[0] < plan.tokens < plan.fast[0]
    assert plan.fast[0] / plan.slow[0] == pytest.approx(4, rel=0.15)


def test_the_range_pays_the_teacher_as_the_plan_does(monkeypatch):
    config = load("demo", [*SMALL, "budget=100s"])
    outline, made = Outline(config), replace(costs()[0], rate=1e9)
    alone = make_plan(config, outline, made, TEXT, 10**15)
    monkeypatch.setattr("cram.insight.plan.plan.teacher_bill", lambda config: SimpleNamespace(seconds=60.0))
    plan = make_plan(config, outline, made, TEXT, 10**15)
    add_range(plan, config, outline, made, TEXT, 1.0, 1.0)
    assert plan.teacher == pytest.approx(60) and alone.teacher == 0
    assert plan.tokens < 0.5 * alone.tokens and plan.slow == plan.fast == (plan.tokens, plan.seconds)


def test_a_law_that_is_not_there_is_refused_before_anything_is_measured(cram, monkeypatch):
    monkeypatch.setattr("cram.insight.plan.measuring.measure", lambda *arguments: pytest.fail("steps were measured"))
    found = cram("plan", "demo", "--fit", "nowhere.json")
    assert found.code == 2 and "nowhere.json: not a scaling study (No such file or directory)" in found.err


def test_a_teacher_that_leaves_too_little_is_named(monkeypatch):
    config = load("demo", [*SMALL, "budget=100s"])
    monkeypatch.setattr("cram.insight.plan.plan.teacher_bill", lambda config: SimpleNamespace(seconds=99.9))
    plan = make_plan(config, Outline(config), replace(costs()[0], rate=1e9), TEXT, 10**15)
    assert plan.steps == 0 and "of which the teacher's ledger takes 1m39.9s" in plan.warnings[0]


def test_an_empty_name_of_a_card_is_not_this_machine(cram):
    found = cram("plan", "demo", "--gpu", "")
    assert found.code == 2 and "not among the cards" in found.err


def test_a_model_too_small_for_a_card_is_told(cram):
    small, large = (cram("plan", name, "--gpu", "H100").out for name in ("demo", "bert_day"))
    assert "is less than launching its kernels takes" in small and "launching" not in large
