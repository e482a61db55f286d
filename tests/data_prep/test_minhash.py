"""Shingles, signatures and bands: against sets in plain Python, against theory and against datasketch."""

import random
import re
import tracemalloc

import datasketch
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.schema import NearDedup
from data_prep import shingles as shingles_module
from data_prep.blocks import Block
from data_prep.errors import DataError
from data_prep.minhash import EMPTY, _compare_all, _try_in_order, bands, candidate_probability, jaccard, signatures
from data_prep.shingles import document_ngrams, ngrams, shingles
from tests.data_prep.corpus import ODD_TEXTS, prose

SETTINGS = NearDedup()
BINS = SETTINGS.bands * SETTINGS.rows
words_lists = st.lists(st.sampled_from(["a", "B", "b", "cc", "é", "日本", "x1"]), max_size=12)


def shingle_set(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """The definition. ASCII words only, so that \\w+ is a term."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[start:start + size]) for start in range(max(1, len(words) - size + 1))}


def true_jaccard(left: str, right: str) -> float:
    one, two = shingle_set(left), shingle_set(right)
    return len(one & two) / len(one | two)


@pytest.fixture(scope="module")
def pairs() -> tuple[list[str], list[str], np.ndarray]:
    """Documents, copies with words changed here and there, and their true similarity, from 0.2 to 1."""
    rng = random.Random(5)
    left = [text + " " + more for text, more in zip(prose(1200, seed=1), prose(1200, seed=2))]
    right = []
    for number, text in enumerate(left):
        words = text.split(" ")
        for _ in range(int(len(words) * (0.001 + 0.1 * number / len(left)))):
            place = rng.randrange(len(words))
            words[place:place + 1] = rng.choice([["changed"], [], [words[place], "added"], [f"other{number}"]])
        right.append(" ".join(words))
    return left, right, np.array([true_jaccard(*pair) for pair in zip(left, right)])


def test_recall_and_false_candidates(pairs):
    left, right, similarity = pairs
    candidate = (bands(Block(left), SETTINGS) == bands(Block(right), SETTINGS)).any(axis=1)
    alike, unlike = similarity >= 0.8, similarity < 0.5
    assert alike.sum() >= 300 and unlike.sum() >= 100
    assert candidate[alike].mean() >= 0.97
    assert candidate[unlike].mean() <= 0.06
    strangers = bands(Block(left), SETTINGS)
    assert not (strangers[1:] == strangers[:-1]).any()


def test_candidates_come_as_often_as_the_formula_says(pairs):
    left, right, similarity = pairs
    candidate = (bands(Block(left), SETTINGS) == bands(Block(right), SETTINGS)).any(axis=1)
    expected = candidate_probability(similarity, SETTINGS)
    spread = np.sqrt((expected * (1 - expected)).sum())
    assert abs(candidate.sum() - expected.sum()) < 4 * spread


def test_estimate_against_theory_and_datasketch(pairs):
    left, right, similarity = pairs
    error = (signatures(Block(left), SETTINGS) == signatures(Block(right), SETTINGS)).mean(axis=1) - similarity
    scaled = error / np.sqrt(np.maximum(similarity * (1 - similarity), 1e-3) / BINS)
    assert abs(scaled.mean()) < 4 / np.sqrt(len(scaled))                 # no bias
    assert 0.7 < scaled.std() < 1.25                                     # that of independent permutations, about
    other = []
    for index in range(0, len(left), 4):
        one, two = (datasketch.MinHash(BINS) for _ in range(2))
        for minhash, text in ((one, left[index]), (two, right[index])):
            minhash.update_batch([" ".join(words).encode() for words in shingle_set(text)])
        other.append(one.jaccard(two) - similarity[index])
    assert error[::4].std() < 1.2 * np.std(other)


def test_few_shingles_are_estimated_without_bias():
    """Ten terms, six shingles, 112 bins: nearly all values are borrowed."""
    rng = random.Random(3)
    words = [f"w{number}" for number in range(1000)]
    left = [rng.sample(words, 10) for _ in range(2000)]
    right = [[*text[:-2], "other", "end"] for text in left]              # 4 shingles of 8 in common
    left, right = ([" ".join(text) for text in side] for side in (left, right))
    estimate = (signatures(Block(left), SETTINGS) == signatures(Block(right), SETTINGS)).mean()
    assert abs(estimate - 0.5) < 0.02


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0.02, 1))
def test_both_ways_of_borrowing_agree(bins, seed, share):
    rng = np.random.default_rng(seed)
    smallest = np.where(rng.random((5, bins)) < share, rng.integers(0, 2**63, (5, bins), dtype=np.uint64), EMPTY)
    smallest[np.arange(5), rng.integers(0, bins, 5)] = np.arange(5, dtype=np.uint64)
    filled = _try_in_order(smallest.copy())
    np.testing.assert_array_equal(filled, _compare_all(smallest.copy()))
    there = smallest != EMPTY
    np.testing.assert_array_equal(filled[there], smallest[there])
    assert all(set(row) == set(own[own != EMPTY]) for row, own in zip(filled, smallest))


def test_case_punctuation_and_layout_make_no_difference():
    same = ["The quick, brown fox -- jumps over it.", "the QUICK brown\n\n\tfox jumps (over) it",
            "The quick brown fox jumps over it"]
    keys = bands(Block([*same, "The quick brown fox jumps over him"]), SETTINGS)
    assert (keys[:3] == keys[0]).all()
    assert not (keys[3] == keys[0]).all()


@settings(deadline=None)
@given(st.lists(words_lists.map(" ".join), max_size=8), st.integers(1, 6))
def test_a_document_is_hashed_alike_in_any_company(texts, size):
    together, first = shingles(Block(texts), size)
    assert (np.diff(first) >= 1).all() and first[-1] == len(together)
    for index, text in enumerate(texts):
        alone, _ = shingles(Block([text]), size)
        np.testing.assert_array_equal(together[first[index]:first[index + 1]], alone)


@settings(deadline=None)
@given(st.lists(words_lists, min_size=1, max_size=8), st.integers(1, 7))
def test_equal_hashes_mean_equal_terms(documents, size):
    """Against tuples of terms, for shingles and for n-grams."""
    hashes, first = shingles(Block([" ".join(words) for words in documents]), size)
    inner, inner_first = document_ngrams(Block([" ".join(words) for words in documents]), size)
    expected, expected_inner = [], []
    for words in documents:
        lower = [word.lower() if word.isascii() else word for word in words]
        windows = [tuple(lower[start:start + size]) for start in range(len(words) - size + 1)]
        expected += windows or [tuple(lower)]
        expected_inner += windows
    assert len(hashes) == len(expected) and len(inner) == len(expected_inner)
    assert len(set(zip(hashes.tolist(), expected))) == len(set(hashes.tolist())) == len(set(expected))
    assert len(set(zip(inner.tolist(), expected_inner))) == len(set(inner.tolist())) == len(set(expected_inner))
    assert inner_first.tolist() == np.cumsum([0, *(max(0, len(words) - size + 1) for words in documents)]).tolist()


@pytest.mark.parametrize("size", range(1, 20))
def test_ngrams_tell_order_and_every_member(size):
    values = np.arange(40, dtype=np.uint64)
    hashes = ngrams(values, size)
    assert len(hashes) == 40 - size + 1 and len(set(hashes.tolist())) == len(hashes)
    np.testing.assert_array_equal(ngrams(values[7:7 + size], size), hashes[7:8])
    for place in range(size):
        changed = values[:size].copy()
        changed[place] += np.uint64(1)
        assert ngrams(changed, size)[0] != hashes[0]
    if size > 1:
        assert ngrams(values[:size][::-1].copy(), size)[0] != hashes[0]
    assert len(ngrams(values[:size - 1], size)) == 0


def test_no_terms_and_no_documents():
    keys = bands(Block(["...", "...", "!!!", "", "", "word", "Word!"]), SETTINGS)
    assert (keys[0] == keys[1]).all() and (keys[3] == keys[4]).all() and (keys[5] == keys[6]).all()
    assert len({row.tobytes() for row in keys}) == 4
    assert bands(Block([]), SETTINGS).shape == (0, SETTINGS.bands)
    assert signatures(Block([]), SETTINGS).shape == (0, BINS)


def test_pieces_of_a_long_document_make_no_difference(monkeypatch):
    texts = [*ODD_TEXTS, " ".join(prose(30)), "x" * 500, "end"]
    whole = bands(Block(texts), SETTINGS)
    for size in (1, 7, 100, 1000):
        monkeypatch.setattr(shingles_module, "PIECE_BYTES", size)
        np.testing.assert_array_equal(bands(Block(texts), SETTINGS), whole)


@pytest.mark.slow
def test_a_document_of_50_megabytes():
    text = " ".join(prose(2000))
    text = text * (50_000_000 // len(text) + 1)
    tracemalloc.start()
    keys = bands(Block([text, text[:-3]]), SETTINGS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (keys[0] == keys[1]).any()
    assert peak < 20 * 2 * len(text)


def test_documents_without_number_in_bounded_memory():
    block = Block(["a b"] * 100_000)
    block.terms, block.folded
    tracemalloc.start()
    keys = bands(block, SETTINGS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (keys == keys[0]).all()
    assert peak < 60_000_000                    # the signatures of all at once would take 90 MB


@settings(deadline=None)
@given(st.lists(st.tuples(words_lists, words_lists), max_size=6), st.integers(1, 4))
def test_true_jaccard(documents, size):
    def as_set(words):
        words = [word.lower() for word in words]
        return {tuple(words[start:start + size]) for start in range(max(1, len(words) - size + 1))}

    left, right = ([" ".join(pair[side]) for pair in documents] for side in (0, 1))
    expected = [len(as_set(one) & as_set(two)) / len(as_set(one) | as_set(two)) for one, two in documents]
    np.testing.assert_allclose(jaccard(left, right, NearDedup(shingle_words=size)), expected)


def test_true_jaccard_of_many(pairs):
    left, right, similarity = pairs
    np.testing.assert_allclose(jaccard(left, right, SETTINGS), similarity)
    assert jaccard(["one", "..."], ["One!", "???"], SETTINGS).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("name", ["shingle_words", "bands", "rows"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(DataError, match=f"data.near_dedup.{name} is 0"):
        bands(Block(["text"]), NearDedup(**{name: 0}))
