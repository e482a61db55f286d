"""The progress line: speed, share and time left from a clock in hand."""

import sys

import pytest
from hypothesis import given, strategies as st

from data_prep.errors import DataError
from data_prep.progress import Progress, now_and_then


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)


def test_a_message_now_and_then(clock):
    said = []
    tell = now_and_then(said.append, clock)
    for second in range(35):
        clock.now = 1000.0 + second
        tell(str(second))
    assert said == ["10", "20", "30"]


def test_the_line_of_a_known_total(clock):
    said = []
    progress = Progress(said.append, "data", 100_000_000, clock)
    for _ in range(4):
        clock.now += 5
        progress.update(10_000_000)
    assert said == ["data: 20.0 MB, 20%, 2.0 MB/s, 40s left", "data: 40.0 MB, 40%, 2.0 MB/s, 30s left"]


def test_the_total_is_estimated_from_the_position_in_the_source(clock):
    progress = Progress(print, "measure", None, clock)
    clock.now += 10
    progress.update(50_000_000, 0.25)
    assert progress.line() == "measure: 50.0 MB, 25%, 5.0 MB/s, 30s left"
    progress.update(0)                                          # a position stays known
    assert progress.share() == 0.25


def test_what_ends_first_counts(clock):
    """data.max_bytes may lie beyond the end of the source, or far before it."""
    for total, read, expected in ((1_000_000_000, 0.5, 0.5), (200, 0.001, 0.5)):
        progress = Progress(print, "measure", total, clock)
        progress.update(100, read)
        assert progress.share() == expected


def test_skipped_bytes_are_done_but_not_speed(clock):
    progress = Progress(print, "measure", 100_000_000, clock)
    progress.skip(50_000_000)
    clock.now += 10
    progress.update(10_000_000)
    assert progress.line() == "measure: 60.0 MB, 60%, 1.0 MB/s, 40s left"


def test_hours_and_minutes(clock):
    progress = Progress(print, "x", 1_000_000_000, clock)
    clock.now += 100
    progress.update(1_000_000)
    assert progress.line().endswith("27h 45m left")
    clock.now += 1
    progress.update(499_000_000)
    assert progress.line().endswith("1m 41s left")


def test_nothing_known(clock):
    progress = Progress(print, "read", None, clock)
    assert progress.line() == "read: 0.0 MB, 0.0 MB/s" and progress.share() is None


def test_a_total_below_zero_is_refused(clock):
    with pytest.raises(DataError, match="data: a total of -1 bytes"):
        Progress(print, "data", -1, clock)


@given(st.none() | st.integers(0, 10), st.lists(st.tuples(
    st.booleans(), st.integers(0, 20), st.none() | st.floats(0, 1), st.floats(0, 30)), max_size=20))
def test_no_input_divides_by_zero(total, steps):
    clock = Clock()
    progress = Progress(lambda line: None, "x", total, clock)
    for skipped, size, read, seconds in steps:
        clock.now += seconds
        if skipped:
            progress.skip(size)
        else:
            progress.update(size, read)
        share = progress.share()
        assert share is None or 0 <= share <= 1
        assert "-" not in progress.line()
    progress.close()


def test_a_bar_on_a_terminal(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = []
    with Progress(said.append, "data", 100_000_000, clock) as progress:
        for _ in range(2):
            clock.now += 5
            progress.update(50_000_000)
        progress.close()
    drawn = capsys.readouterr().err
    assert said == [] and "data: 100.0 MB, 100%, 10.0 MB/s, 0s left" in drawn and "██" in drawn


def test_no_bar_without_a_share(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(print, "read", None, clock) as progress:
        clock.now += 1
        progress.update(3_000_000)
    drawn = capsys.readouterr().err
    assert "read: 3.0 MB, 3.0 MB/s" in drawn and "|" not in drawn
