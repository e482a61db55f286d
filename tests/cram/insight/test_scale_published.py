"""Published scores: a line through them, sides only beyond them, never less for more compute."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from cram.insight.scale import published


@settings(max_examples=60, deadline=None)
@given(st.floats(15, 22))
def test_more_compute_never_means_a_lower_score(power):
    for amount in (published.core, lambda flops, *_: published.glue(flops)):
        less, more = amount(10**power, 10**power, 10**power), amount(1.5 * 10**power, 10**power, 2 * 10**power)
        assert more.value >= less.value - 1e-12
        for score in (less, more):
            assert bool(score.beyond) == (score.low is None) and (score.beyond or score.low <= score.value <= score.high)


def test_beyond_what_was_published_only_the_side_is_told():
    assert published.core(1e17, 1e17, 1e17).told(2).startswith("under ") and published.core(1e21, 1e21, 1e21).beyond == "above"
    assert published.glue(1e18).told(1) == "under 79.2" and published.glue(1e20).told(1) == "over 80.4"
    inside = published.core(1e19, 1e19, 1e19)
    assert 0.15 < inside.low < inside.value < inside.high < 0.3


def test_the_line_of_core_is_least_squares():
    x, y = [math.log10(point.amount) for point in published.CORE], [point.score for point in published.CORE]
    line = stats.linregress(x, y)
    found = published.core(1e19, 1e19, 1e19)
    assert found.value == pytest.approx(line.intercept + 19 * line.slope)
    left = np.array(y) - line.intercept - line.slope * np.array(x)
    half = stats.t.ppf(0.975, len(x) - 2) * math.sqrt(
        (left**2).sum() / (len(x) - 2) * (1 + 1 / len(x) + (19 - np.mean(x)) ** 2 / ((np.array(x) - np.mean(x)) ** 2).sum()))
    assert found.high - found.value == pytest.approx(half, rel=1e-3)
