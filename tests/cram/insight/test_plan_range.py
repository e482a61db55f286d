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
    assert plan.tokens < 0.5 * alone.tokens and plan.slow == plan.fast == (plan.tokens, plan.seconds)


def test_a_law_that_is_not_there_is_refused_before_anything_is_measured(cram, monkeypatch):
    monkeypatch.setattr("cram.insight.plan.measuring.measure", lambda *arguments: pytest.fail("steps were measured"))
    found = cram("plan", "demo", "--fit", "nowhere.json")
    assert found.code == 2 and "nowhere.json: not a scaling study (No such file or directory)" in found.err
