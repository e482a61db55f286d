"""Masking as published: which tokens, how many of each row, and what stands in their place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.masking import IGNORE, Corruption, Noise, hidden_count, hide_once, hide_tokens

SPECIAL = 5


def hide(ids_RT, count, seed=0, allowed_RT=None, **fractions):
    corruption = Corruption(4, SPECIAL, 1000, **fractions)
    noise = Noise.draw(np.random.default_rng(seed), *ids_RT.shape, corruption)
    return hide_tokens(ids_RT, np.ones(ids_RT.shape, bool) if allowed_RT is None else allowed_RT, count, noise, corruption)


@settings(deadline=None)
@given(rows=st.integers(1, 5), length=st.integers(1, 40), rate=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_each_row_hides_its_share_of_what_may_be_hidden_and_nothing_else(rows, length, rate, seed):
    rng = np.random.default_rng(seed)
    ids, allowed = rng.integers(0, 12, (rows, length)).astype(np.uint16), rng.random((rows, length)) < 0.7
    count, eligible = hidden_count(rate, length), allowed & (ids >= SPECIAL)
    inputs, positions, labels = hide(ids, count, seed, allowed)
    real = labels != IGNORE
    assert len(positions) == len(labels) == rows * count and (positions[~real] == 0).all()
    for row, share, some in zip(range(rows), positions.reshape(rows, count), real.reshape(rows, count)):
        found = share[some]
        assert len(found) == min(count, eligible[row].sum()) and (np.diff(found) > 0).all() and (found // length == row).all()
    assert eligible.reshape(-1)[positions[real]].all() and (ids.reshape(-1)[positions[real]] == labels[real]).all()
    untouched = np.setdiff1d(np.arange(ids.size), positions[real])
    assert (inputs[untouched] == ids.reshape(-1)[untouched]).all()


@pytest.mark.parametrize("rate, length, expected", [(0.3, 128, 38), (0.15, 512, 77), (0.001, 16, 1), (1.0, 16, 16)])
def test_the_count_is_the_rate_and_at_least_one(rate, length, expected):
    assert hidden_count(rate, length) == expected


def test_eighty_ten_ten():
    ids = np.full((1000, 200), 77, dtype=np.uint16)
    inputs, positions, _ = hide(ids, 100)
    hidden = inputs[positions]
    assert (hidden == 4).mean() == pytest.approx(0.8, abs=0.006)
    assert (hidden == 77).mean() == pytest.approx(0.1, abs=0.005)
    random = hidden[(hidden != 4) & (hidden != 77)]
    assert random.min() >= SPECIAL and len(np.unique(random)) > 900


def test_random_replacements_cover_all_ordinary_tokens():
    hidden = hide(np.full((100, 200), 77, np.uint16), 200, mask_fraction=0.0, random_fraction=1.0)[0]
    assert set(np.unique(hidden)) == set(range(SPECIAL, 1000))


def test_every_token_is_equally_likely_to_be_chosen():
    times = np.bincount(hide(np.full((4000, 20), 77, np.uint16), 5)[1] % 20)
    assert times.sum() == 20_000 and 880 < times.min() and times.max() < 1120  # 1000 each, standard deviation 27


def test_what_becomes_of_a_row_depends_on_no_other():
    rng = np.random.default_rng(1)
    ids, corruption = rng.integers(0, 1000, (6, 32)).astype(np.uint16), Corruption(4, SPECIAL, 1000)
    noise, allowed = Noise.draw(rng, 6, 32, corruption), np.ones((6, 32), bool)
    inputs, positions, labels = hide_tokens(ids, allowed, 9, noise, corruption)
    part = hide_tokens(ids[2:5], allowed[2:5], 9, noise.rows(2, 3), corruption)
    assert np.array_equal(part[0], inputs[64:160]) and np.array_equal(part[2], labels[18:45])
    assert np.array_equal(part[1] + 64, positions[18:45])


def test_a_place_decides_between_equal_keys():
    """No two keys are equal, so the choice is the same on every machine."""
    corruption, ids = Corruption(4, SPECIAL, 1000), np.full((1, 16), 77, np.uint16)
    same = Noise(np.zeros((1, 16), np.uint32), np.zeros((1, 16), np.float32), np.full((1, 16), 9, np.uint32))
    assert hide_tokens(ids, np.ones((1, 16), bool), 3, same, corruption)[1].tolist() == [0, 1, 2]


def test_evaluation_masks_never_change():
    """Scores of earlier runs stay comparable: the draws, one after another, as they were first made."""
    ids = np.random.default_rng(3).integers(0, 1000, 500).astype(np.int64)
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(np.flatnonzero(ids >= SPECIAL))[:75])
    fate, random_ids, expected = rng.random(75), rng.integers(SPECIAL, 1000, 75), ids.copy()
    expected[chosen] = np.where(fate < 0.8, 4, np.where(fate < 0.8 + 0.1, random_ids, ids[chosen]))
    inputs, positions, labels = hide_once(ids, 75, np.random.default_rng(0), Corruption(4, SPECIAL, 1000))
    assert np.array_equal(inputs, expected) and np.array_equal(positions, chosen) and np.array_equal(labels, ids[chosen])


def test_of_a_row_with_padding_the_same_share_of_the_real_tokens_is_hidden():
    ids_RT = np.full((3, 100), 7)
    ids_RT[1, 60:], ids_RT[2, 2:] = 0, 0
    corruption = Corruption(mask_id=4, protected=5, vocab_size=50)
    noise = Noise.draw(np.random.default_rng(0), 3, 100, corruption)
    _, positions_K, labels_K = hide_tokens(ids_RT, np.ones((3, 100), bool), 30, noise, corruption, np.array([0, 40, 98]))
    hidden = [int((labels_K[row * 30:(row + 1) * 30] != IGNORE).sum()) for row in range(3)]
    assert hidden == [30, 18, 1]
    _, full_K, _ = hide_tokens(ids_RT[:1], np.ones((1, 100), bool), 30, noise.rows(0, 1), corruption)
    assert (positions_K[:30] == full_K).all()  # rows without padding are as ever
