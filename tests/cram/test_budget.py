"""What a budget may be, and how amounts of it are shown."""

import pytest

from cram.budget import Budget
from cram.errors import CramError


@pytest.mark.parametrize("text, kind, amount", [
    ("24h", "time", 86400), ("10m", "time", 600), ("90s", "time", 90), ("1h30m", "time", 5400), ("0.5h", "time", 1800),
    ("3e18 flops", "flops", 3e18), ("2e9 tokens", "tokens", 2e9), ("500 steps", "steps", 500), ("500steps", "steps", 500)])
def test_budget_is_read(text, kind, amount):
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount) == (kind, amount)


@pytest.mark.parametrize("text, remedy", [
    ("0s", "more than zero"), ("-1h", "more than zero"), ("24", "24h"), ("24 bananas", "not understood"),
    ("", "not understood"), ("1e999 flops", "finite"), ("2.5 steps", "whole"), ("h", "not understood"), ("nan h", "not")])
def test_budget_is_refused_with_the_remedy(text, remedy):
    with pytest.raises(CramError, match=remedy):
        Budget.parse(text)


@pytest.mark.parametrize("text, seconds, shown", [
    ("1h", 3599.0, "59m59.0s"), ("2h", 3725.0, "1h02m05s"), ("1h", 7.25, "0m07.2s")])
def test_time_is_shown_for_people(text, seconds, shown):
    assert Budget.parse(text).show(seconds) == shown
    assert Budget.parse("500 steps").show(20) == "20 steps"
