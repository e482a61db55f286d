"""Schedules are functions of progress; the pace ends exactly inside the budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cram import schedule
from cram.schema import Schedule

SHAPES = ["one-cycle", "triangle", "trapezoid", "cosine", "constant"]


@pytest.mark.parametrize("shape", SHAPES)
@given(p=st.floats(0, 1), warmup=st.floats(0, 0.9), start=st.floats(0, 1))
def test_learning_rate_stays_in_bounds_and_ends_at_zero(shape, p, warmup, start):
    config = Schedule(type=shape, warmup=warmup, start=start, decay=0.1)
    assert 0.0 <= schedule.learning_rate(p, config) <= 1.0 + 1e-12
    assert schedule.learning_rate(1.0, config) == 0.0


def test_shapes_at_known_points():
    triangle = Schedule(type="triangle", warmup=0.75, start=0.25)  # cramming's budget-triangle2
    assert [schedule.learning_rate(p, triangle) for p in (0.0, 0.375, 0.75, 0.875)] == [0.25, 0.625, 1.0, 0.5]
    trapezoid = Schedule(type="trapezoid", warmup=0.1, decay=0.5)
    assert [schedule.learning_rate(p, trapezoid) for p in (0.05, 0.3, 0.5, 0.75)] == [0.5, 1.0, 1.0, 0.5]
    cosine = Schedule(type="cosine", warmup=0.0)
    assert schedule.learning_rate(0.5, cosine) == pytest.approx(0.5)


def test_mask_rate_falls_in_equal_plateaus():
    rates = [schedule.mask_rate(p / 100, 0.3, 0.15, 4) for p in range(101)]
    assert sorted(set(rates), reverse=True) == pytest.approx([0.3, 0.25, 0.2, 0.15])
    assert rates == sorted(rates, reverse=True)
    assert schedule.mask_rate(0.7, 0.3, None, 4) == 0.3


@given(p=st.floats(0, 1), micro=st.sampled_from([128, 1024]), parts=st.integers(1, 64))
def test_batch_grows_in_whole_micro_batches(p, micro, parts):
    full = micro * parts
    tokens = schedule.batch_tokens(p, full, micro, 0.6, micro)
    assert tokens % micro == 0 and micro <= tokens <= full
    assert schedule.batch_tokens(0.6, full, micro, 0.6, micro) == full


@given(amount=st.floats(1.0, 1e5), cost=st.floats(1e-3, 1.0), reserve=st.floats(0.0, 0.4))
def test_a_steady_run_never_overshoots_and_its_last_step_has_progress_one(amount, cost, reserve):
    spent = amount - min(amount, 40 * cost)  # the end is what matters
    before, last = 0.0, None
    while (p := schedule.progress(amount, spent, cost, reserve)) is not None and last != 1.0:
        assert p >= before
        spent, before, last = spent + cost, p, p
        assert spent <= (amount - reserve) * (1 + 1e-8)
    assert last is None or last == 1.0
    assert spent > amount - reserve - 2 * cost or last is None


def test_a_step_budget_is_used_to_the_last_step():
    spent = 0
    while (p := schedule.progress(500, spent, 1)) is not None:
        spent += 1
        assert (p == 1.0) == (spent == 500)
    assert spent == 500


def test_plateaus_are_equally_long():
    rates = [round(schedule.mask_rate(p / 100, 0.3, 0.15, 4), 6) for p in range(100)]
    assert [rates.count(rate) for rate in (0.3, 0.25, 0.2, 0.15)] == [25, 25, 25, 25]


def test_batch_grows_linearly_from_its_start():
    sizes = [schedule.batch_tokens(p, 1024, 256, 0.6, 128) for p in (0.0, 0.1, 0.3, 0.4, 0.6)]
    assert sizes == [256, 384, 640, 768, 1024]
    assert schedule.batch_tokens(0.5, 1024, None, 0.0, 128) == 1024


def test_progress_is_the_share_of_what_is_there_to_spend_after_the_step():
    assert schedule.progress(100, 40, 10, reserve=20) == 50 / 80
    assert schedule.progress(100, 65, 10, reserve=20) == 1.0  # the next would eat into the reserve
    assert schedule.progress(100, 71, 10, reserve=20) is None
