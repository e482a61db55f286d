"""The compute multiplier: planted factors are found again, and nothing is said where nothing is known."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from cram.insight.ablate.multiplier import fit, multiplier

LADDERS = st.sampled_from([(0.5, 1.0, 2.0), (0.25, 0.5, 1.0), (0.35, 0.7, 1.0, 1.4, 2.8), (0.5, 1.0),
                           (0.25, 0.5, 1.0, 2.0, 4.0)])


def power_law(level, height, exponent):
    return lambda factor: level + height * factor ** -exponent


@settings(max_examples=80, deadline=None)
@given(ladder=LADDERS, level=st.floats(1.0, 3.0), height=st.floats(0.5, 3.0), exponent=st.floats(0.1, 0.6),
       share=st.floats(0.05, 0.95), seeds=st.integers(3, 6), noise=st.integers(0, 10**6))
def test_a_planted_factor_is_recovered_within_15_percent(ladder, level, height, exponent, share, seeds, noise):
    """The variant is the baseline with a known factor of its budget; every seed shifts its whole curve, and every run errs."""
    curve, rng = power_law(level, height, exponent), random.Random(noise)
    planted = math.exp(math.log(ladder[0]) + share * math.log(ladder[-1] / ladder[0]))
    slope = height * exponent * ladder[-1] ** -exponent       # nats an e-fold of budget, where the curve is flattest
    shifts = [rng.gauss(0, 0.05) for _ in range(seeds)]
    error = 0.02 * slope
    losses = [[curve(factor) + shift + rng.gauss(0, error) for factor in ladder] for shift in shifts]
    found = multiplier(fit(ladder, losses), [curve(planted) + shift + rng.gauss(0, error) for shift in shifts])
    assert found.value is None or found.value == pytest.approx(planted, rel=0.15)
    assert found.value is not None or min(planted / ladder[0], ladder[-1] / planted) < 1.1       # only at the very end
    for end in (found.low, found.high):
        assert end is None or ladder[0] <= end <= ladder[-1]


def test_without_noise_it_is_exact():
    curve = power_law(2.0, 1.0, 0.3)
    found = multiplier(fit((0.35, 0.7, 1.4, 2.8), [[curve(x) for x in (0.35, 0.7, 1.4, 2.8)]] * 3), [curve(2.0)] * 3)
    assert found.value == pytest.approx(2.0, rel=0.01)
    straight = [[3 - 0.2 * math.log(x) for x in (0.5, 2.0)]] * 3
    assert multiplier(fit((0.5, 2.0), straight), [3.0] * 3).value == pytest.approx(1.0)


def test_the_interval_holds_the_truth_about_nineteen_times_in_twenty():
    rng, curve, ladder = np.random.default_rng(0), power_law(2.0, 1.0, 0.4), (0.25, 0.5, 1.0, 2.0, 4.0)
    held = 0
    for _ in range(400):
        shift = rng.normal(0, 0.1, 4)
        losses = [[curve(x) + each + rng.normal(0, 0.01) for x in ladder] for each in shift]
        found = multiplier(fit(ladder, losses), [curve(1.5) + each + rng.normal(0, 0.01) for each in shift])
        held += (found.low or 0) <= 1.5 <= (found.high or math.inf)
    assert 0.90 < held / 400 < 0.985


def test_nothing_is_said_beyond_the_ladder():
    curve = power_law(2.0, 1.0, 0.3)
    base = fit((0.5, 1.0, 2.0), [[curve(x) + shift for x in (0.5, 1.0, 2.0)] for shift in (0.0, 0.01, 0.02)])
    better = multiplier(base, [curve(9.0) + shift for shift in (0.0, 0.01, 0.02)])
    worse = multiplier(base, [curve(0.01) + shift for shift in (0.001, 0.01, 0.02)])
    impossible = multiplier(base, [0.5, 0.51, 0.52])       # below what the baseline tends to
    assert [each.value for each in (better, worse, impossible)] == [None] * 3
    assert (better.told(), worse.told(), impossible.told()) == ("> 2", "< 0.5", "> 2")


def test_an_interval_that_leaves_the_ladder_is_open():
    curve = power_law(2.0, 1.0, 0.3)
    base = fit((0.5, 1.0, 2.0), [[curve(x) for x in (0.5, 1.0, 2.0)]] * 3)
    told = multiplier(base, [curve(1.8) + shift for shift in (-0.05, 0.0, 0.05)])
    assert told.value is not None and told.high is None and told.told().endswith("to > 2)")


def test_a_baseline_that_learns_nothing_from_more_budget_has_no_multiplier():
    assert fit((0.5, 1.0, 2.0), [[3.0, 3.0, 3.0]] * 2) is None
    assert fit((0.5, 1.0, 2.0), [[2.9, 3.0, 3.1]] * 2) is None


def test_one_seed_has_no_interval():
    found = multiplier(fit((0.5, 1.0), [[3.0, 2.0]]), [2.5])
    assert (found.low, found.high) == (None, None) and found.told() == f"{found.value:.2f}"
