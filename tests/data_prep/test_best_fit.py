"""Best-fit decreasing: nothing is lost, no row overflows, and the room that is chosen is the least that fits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.best_fit import best_fit, cut_into_pieces, fit_documents


def slow_rooms(lengths, capacity):
    """The rooms left by best-fit decreasing, by the book: look at every row."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return sorted(rooms)


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))))
def test_every_piece_has_a_place_of_its_own_and_rooms_are_those_of_the_slow_way(case):
    capacity, lengths = case
    row, offset = best_fit(np.array(lengths, np.int64), capacity)
    assert len(row) == len(offset) == len(lengths)
    taken = [(r, o + i) for r, o, length in zip(row.tolist(), offset.tolist(), lengths) for i in range(length)]
    assert len(set(taken)) == len(taken) == sum(lengths)
    assert all(place < capacity for _, place in taken)
    rows = int(row.max(initial=-1)) + 1
    used = np.bincount(row, weights=lengths, minlength=rows).astype(int)
    assert all({place for r, place in taken if r == number} == set(range(used[number])) for number in range(rows))  # no gap
    assert sorted(capacity - used) == slow_rooms(lengths, capacity)


def test_longest_first_and_of_equals_the_earlier():
    row, offset = best_fit(np.array([3, 8, 5, 8, 3, 2]), 8)
    assert row.tolist() == [2, 0, 2, 1, 3, 3] and offset.tolist() == [5, 0, 0, 0, 0, 3]


@given(st.lists(st.integers(1, 200), max_size=30), st.integers(1, 50))
def test_pieces_add_up_and_only_the_last_is_short(lengths, size):
    document, length = cut_into_pieces(np.array(lengths, np.int64), size)
    for number, total in enumerate(lengths):
        pieces = length[document == number].tolist()
        assert sum(pieces) == total and all(piece == size for piece in pieces[:-1]) and 1 <= pieces[-1] <= size
    assert (np.diff(document) >= 0).all()


def wasted(pieces, capacity):
    return 1 - pieces.length.sum() / ((pieces.row.max() + 1) * capacity)


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 60), st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_documents_are_placed_whole_and_cut_only_when_longer_than_a_row(capacity, lengths):
    pieces = fit_documents(np.array(lengths, np.int64), capacity)
    taken = [(row, offset + i) for _, length, row, offset in zip(*(column.tolist() for column in pieces))
             for i in range(length)]
    assert len(set(taken)) == len(taken) and all(place < capacity for _, place in taken)
    assert sorted(set(pieces.row.tolist())) == list(range(pieces.row.max() + 1))
    assert np.bincount(pieces.document, weights=pieces.length - 1).tolist() == lengths and pieces.length.min() >= 2
    assert all(count == 1 for length, count in zip(lengths, np.bincount(pieces.document)) if length < capacity)
    assert wasted(pieces, capacity) <= wasted_by_best_fit(lengths, capacity) + 1e-9


def wasted_by_best_fit(lengths, capacity):
    length = cut_into_pieces(np.array(lengths), capacity - 1)[1] + 1
    return 1 - length.sum() / ((best_fit(length, capacity)[0].max() + 1) * capacity)


@pytest.mark.parametrize("row", [64, 128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("least,median,spread", [(3, 540, 1.1), (70, 190, 1.3)], ids=["web pages", "encyclopedia, many stubs"])
def test_usual_lengths_leave_half_a_percent_empty_at_most(row, least, median, spread):
    lengths = least + np.random.default_rng(0).lognormal(np.log(median), spread, 4000).astype(np.int64)
    assert wasted(fit_documents(lengths, row), row) <= 0.005


def test_rooms_are_filled_at_little_cost():
    """Stubs a little longer than half a row: best fit alone leaves them half empty rows."""
    lengths = np.array([70] * 200 + [5053] * 200)
    assert wasted_by_best_fit(lengths, 128) > 0.01
    pieces = fit_documents(lengths, 128)
    assert wasted(pieces, 128) <= 0.005 and len(pieces.length) < 1.05 * len(cut_into_pieces(lengths, 127)[0])


@pytest.mark.parametrize("lengths", [[0], [9], [3, 9]])
def test_a_piece_that_no_row_can_hold(lengths):
    with pytest.raises(ValueError, match="do not fit into rows of 8"):
        best_fit(np.array(lengths), 8)
