"""Keys, the set of keys and the held-out split, against plain Python."""

import random

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from data_prep.dedup import KeySet, document_keys
from data_prep.split import HeldOut, held_out


def test_key_ignores_case_and_layout_only():
    same = ["A  text\nof Straße", "a text of STRASSE", " a\ttext of strasse "]
    keys = document_keys([*same, "a text of strass", "atext of strasse"])
    assert (keys[:3] == keys[0]).all()
    assert len({key.tobytes() for key in keys}) == 3
    digest = xxhash.xxh3_128_intdigest(b"a text of strasse")
    assert [int(word) for word in keys[0]] == [digest >> 64, digest % 2**64]
    assert document_keys([]).shape == (0, 2)


@given(st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=10), st.booleans())
def test_key_set_against_a_python_set(batches, crowded):
    seen, keys = set(), KeySet()
    for batch in batches:
        # Crowded: all keys want the same slot, so that probing is put to the test; 0 is a key like any other.
        pairs = [(number, 5 if crowded else number) for number in batch]
        expected = []
        for pair in pairs:
            expected.append(pair not in seen)
            seen.add(pair)
        assert keys.add(np.array(pairs, np.uint64).reshape(-1, 2)).tolist() == expected
    assert len(keys) == len(seen)


def test_key_set_grows():
    rng = np.random.default_rng(0)
    every = rng.integers(0, 2**63, (50_000, 2), dtype=np.uint64)
    keys = KeySet()
    assert all(keys.add(part).all() for part in np.array_split(every, 13))
    assert len(keys) == 50_000
    assert not keys.add(every[rng.permutation(50_000)]).any()
    assert len(keys) == 50_000


def test_fraction_is_met_and_nested():
    keys = document_keys([f"document {number}" for number in range(20_000)])
    last = np.zeros(len(keys), bool)
    for fraction in (0.001, 0.01, 0.1, 0.5, 0.999999999999999999):
        held = held_out(keys, fraction)
        assert abs(held.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(keys)) + 1e-9
        assert (held | ~last).all()
        last = held


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 40)), unique_by=lambda pair: pair[0], max_size=25),
       st.integers(1, 100), st.randoms(use_true_random=False))
def test_held_out_is_the_prefix_by_key_whatever_the_order(documents, max_bytes, rng):
    """Oracle: in order of key, as many documents as fit before the first that does not (too large ones aside)."""
    expected, total = [], 0
    for key, size in sorted(documents):
        if size <= max_bytes:
            total += size
            if total > max_bytes:
                break
            expected.append(("x" * size, str(key)))
    rng.shuffle(documents)
    held = HeldOut(max_bytes)
    surplus = [text for key, size in documents for text in held.add(key, "x" * size, str(key))]
    assert held.documents() == expected
    assert len(surplus) + len(expected) == len(documents)
    assert sum(map(len, surplus)) + sum(len(text) for text, _ in expected) == sum(size for _, size in documents)


def test_held_out_counts_bytes_and_keeps_copies_in_order_of_arrival():
    held = HeldOut(10)
    assert held.add(7, "\u00e9" * 4, "a") == []
    assert held.add(9, "xxx", "b") == ["xxx"]
    assert held.add(8, "yy", "c") == []
    held_copies = HeldOut(100)
    for name in "abc":
        held_copies.add(1, "same", name)
    assert [origin for _, origin in held_copies.documents()] == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(3))
def test_held_out_memory_is_bounded(seed):
    rng = random.Random(seed)
    held = HeldOut(10_000)
    for _ in range(3000):
        held.add(rng.getrandbits(64), "x" * rng.randint(1, 300), "")
        assert held._bytes <= 10_000 and len(held._heap) <= 10_000
