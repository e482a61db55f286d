"""Paired comparisons: Student's interval against known values, and verdicts that keep silent in doubt."""

import random

import pytest
from scipy import stats

from cram.bench.paired import STUDENT, interval, show_gain, show_mean, verdict


def test_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.303 / 3 ** 0.5)
    assert interval([1.0]) is None
    assert interval([0.0, 1.0] * 20) == pytest.approx(2.228 * 0.50637 / 40 ** 0.5, rel=1e-4)


def test_the_table_is_students_distribution():
    assert STUDENT == tuple(round(stats.t.ppf(0.975, degrees), 3) for degrees in range(1, 11))


@pytest.mark.parametrize("gains, told", [
    ([0.5, 0.51, 0.49], "better"), ([-0.5, -0.51, -0.49], "worse"), ([0.5, -0.4, 0.3], "cannot tell"), ([9.0], "cannot tell"),
    ([0.0, 0.0, 0.0], "cannot tell")])
def test_verdicts(gains, told):
    assert verdict(gains) == told


def test_noise_alone_names_a_winner_one_time_in_twenty():
    rng = random.Random(0)
    wrong = sum(verdict([rng.gauss(0, 1) for _ in range(3)]) != "cannot tell" for _ in range(4000))
    assert 0.035 < wrong / 4000 < 0.065


def test_what_is_shown():
    assert show_mean([1.0, 2.0, 3.0]) == "2.0000 ± 1.0000" and show_mean([1.5]) == "1.5000"
    assert show_gain([1.0, 2.0, 3.0]) == f"+2.0000 ± {interval([1.0, 2.0, 3.0]):.4f}" and show_gain([-0.5]) == "-0.5000"
