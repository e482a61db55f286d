"""Keys of documents and the held-out split, against plain Python."""

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.dedup import document_keys
from data_prep.split import choose, held_out

SPACES = [chr(code) for code in range(0x110000) if chr(code).isspace()]
texts = st.text(st.one_of(st.sampled_from(["a", "B", " ", "\u0130", "\u00df", "\ufb01", *SPACES]),
                          st.characters(exclude_categories=["Cs"])), max_size=30)


def test_key_ignores_case_and_layout_only():
    same = ["A  text\nof Straße", "a text of STRASSE", " a\ttext of strasse "]
    keys = document_keys([*same, "a text of strass", "atext of strasse"])
    assert (keys[:3] == keys[0]).all()
    assert len({key.tobytes() for key in keys}) == 3
    digest = xxhash.xxh3_128_intdigest(b"a text of strasse")
    assert [int(word) for word in keys[0]] == [digest >> 64, digest % 2**64]
    assert document_keys([]).shape == (0, 2)


@settings(deadline=None)
@given(st.lists(st.one_of(texts, st.text(st.characters(max_codepoint=127), max_size=30)), max_size=8))
def test_key_against_its_definition(documents):
    for text, key in zip(documents, document_keys(documents), strict=True):
        digest = xxhash.xxh3_128_intdigest(" ".join(text.casefold().split()).encode("utf-8"))
        assert [int(word) for word in key] == [digest >> 64, digest % 2**64]


def test_every_ascii_character_in_a_key():
    documents = [f"x{chr(code)}{chr(code)}Y" for code in range(128)]
    expected = [xxhash.xxh3_128_intdigest(" ".join(text.casefold().split()).encode()) % 2**64 for text in documents]
    assert document_keys(documents)[:, 1].tolist() == expected


def test_fraction_is_met_and_nested():
    keys = document_keys([f"document {number}" for number in range(20_000)])[:, 0]
    last = np.zeros(len(keys), bool)
    for fraction in (0.001, 0.01, 0.1, 0.5, 0.999999999999999999):
        held = held_out(keys, fraction)
        assert abs(held.mean() - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / len(keys)) + 1e-9
        assert (held | ~last).all()
        last = held


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 40)), unique_by=lambda pair: pair[0], max_size=25),
       st.integers(1, 100), st.randoms(use_true_random=False))
def test_chosen_is_the_prefix_by_key_whatever_the_order(documents, max_bytes, rng):
    """Oracle: in order of key, as many documents as fit before the first that does not (too large ones aside)."""
    expected, total = [], 0
    for key, size in sorted(documents):
        if size <= max_bytes:
            total += size
            if total > max_bytes:
                break
            expected.append((key, size))
    rng.shuffle(documents)
    keys, sizes = np.array([key for key, _ in documents], np.uint64), np.array([size for _, size in documents], np.int64)
    assert [documents[index] for index in choose(keys, sizes, max_bytes)] == expected


def test_copies_are_chosen_in_order_of_arrival():
    assert choose(np.array([5, 1, 1, 1], np.uint64), np.array([1, 1, 1, 1]), 3).tolist() == [1, 2, 3]
