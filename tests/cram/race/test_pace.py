"""Filling the budget, on programs whose time is a formula."""

from hypothesis import given, settings, strategies as st

from cram.race.pace import OVER, UNDER, Pace, Try, fill, measure

STARTS = st.floats(0, 30)
EACH = st.floats(1e-3, 0.3)


def program(start, each, jitter=()):
    """A program that takes start + each x amount; jitter: factors of its calls in turn."""
    factors = list(jitter)
    return lambda amount: Try(amount, (start + each * amount) * (factors.pop(0) if factors else 1.0))


@given(start=STARTS, each=EACH)
@settings(deadline=None)
def test_a_steady_program_is_measured_and_fills_its_budget_at_once(start, each):
    pace, tried = measure(program(start, each), 20, 6.0, whole=True)
    assert abs(pace.start - start) < 1e-6 * (1 + start) and abs(pace.each - each) < 1e-6
    done, chosen, _ = fill(60.0, pace, program(start, each), whole=True)
    assert len(done) == 1 and chosen == 0 and UNDER * 60 <= done[0].seconds <= OVER * 60


@given(start=STARTS, each=EACH, drift=st.floats(0.4, 2.5))
@settings(deadline=None)
def test_a_program_that_became_slower_or_faster_is_run_again_until_it_fits(start, each, drift):
    done, chosen, pace = fill(60.0, Pace(start, each), program(start, each * drift), whole=True)
    assert UNDER * 60 <= done[chosen].seconds <= OVER * 60
    assert chosen == len(done) - 1 and len(done) <= 3
    assert all(not UNDER * 60 <= each.seconds <= OVER * 60 for each in done[:-1])


def test_the_fastest_of_the_calibrations_counts():
    slow_then_fast = program(1.0, 0.1, jitter=[1.5, 1.0, 1.0, 1.3])
    pace, tried = measure(slow_then_fast, 20, 6.0, whole=True)
    assert len(tried) == 4 and abs(pace.each - 0.1) < 1e-9 and abs(pace.start - 1.0) < 1e-9


def test_a_program_with_a_clock_is_told_what_its_start_leaves():
    pace, tried = measure(lambda amount: Try(amount, amount + 3.0), 8.0, 6.0, whole=False)
    assert pace == Pace(3.0, 1.0) and [each.amount for each in tried] == [8.0, 8.0]
    assert pace.amount(60.0, whole=False) == 57.0


def test_a_step_longer_than_the_budget_runs_once_and_is_over():
    done, chosen, _ = fill(10.0, Pace(2.0, 15.0), program(2.0, 15.0), whole=True)
    assert [each.amount for each in done] == [1] and done[chosen].seconds > OVER * 10


def test_without_a_fit_the_longest_run_within_the_budget_counts():
    takes = iter([Try(1, 11.0), Try(1, 9.0), Try(1, 12.0), Try(1, 9.5)])
    done, chosen, _ = fill(10.0, Pace(0.0, 1.0), lambda amount: next(takes)._replace(amount=amount), whole=False)
    assert len(done) == 4 and done[chosen].seconds == 9.5


def test_a_failure_is_the_result_and_nothing_is_tried_again():
    done, chosen, _ = fill(10.0, Pace(0.0, 1.0), lambda amount: Try(amount, 1.0, "it broke"), whole=True)
    assert len(done) == 1 and done[chosen].failure == "it broke"
    pace, tried = measure(lambda amount: Try(amount, 1.0, "it broke"), 20, 6.0, whole=True)
    assert pace is None and len(tried) == 1


def test_a_program_that_cannot_begin_in_so_little_time_gets_more():
    def start(amount):
        return Try(amount, amount + 5.0, None if amount >= 20 else "spent before the first step")
    pace, tried = measure(start, 8.0, 6.0, whole=False, most=60.0)
    assert pace == Pace(5.0, 1.0) and [each.amount for each in tried] == [8.0, 8.0, 16.0, 16.0, 32.0, 32.0]
    assert measure(start, 8.0, 6.0, whole=False, most=20.0)[0] == Pace(5.0, 1.0)    # at last all that there is
    pace, tried = measure(start, 4.0, 6.0, whole=False, most=10.0)
    assert pace is None and tried[-1].failure and max(each.amount for each in tried) == 10.0


def test_a_clocked_program_may_fail_once_on_a_busy_machine():
    outcomes = iter([Try(8.0, 9.0, "spent before the first step"), Try(8.0, 11.0)])
    pace, tried = measure(lambda amount: next(outcomes), 8.0, 6.0, whole=False, most=60.0)
    assert pace == Pace(3.0, 1.0) and len(tried) == 2
