"""Repeated passages against brute force over lists of terms, and in little memory."""

from collections import defaultdict

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.passages import Passage, repeated_passages
from tests.data_prep.corpus import prose


def batches(texts: list[str], size: int = 3):
    return lambda: (pa.record_batch({"text": texts[start:start + size]}) for start in range(0, len(texts), size))


def brute_force(documents: list[list[str]], size: int, min_documents: int) -> set[tuple[tuple[str, ...], int, int]]:
    """The definition: windows that stand at the same places are joined, for every window that repeats."""
    places = defaultdict(list)
    for number, words in enumerate(documents):
        for start in range(len(words) - size + 1):
            places[tuple(words[start:start + size])].append((number, start))

    def next_to(number, start, step):
        """The window a step away, if it stands there at every place of this one and nowhere else."""
        here = places[tuple(documents[number][start:start + size])]
        if not 0 <= start + step <= len(documents[number]) - size:
            return False
        there = places[tuple(documents[number][start + step:start + step + size])]
        return sorted((document, place + step) for document, place in here) == sorted(there)

    found = set()
    for stands in places.values():
        if len(stands) > 1 and len({number for number, _ in stands}) >= min_documents:
            number, first = stands[0]
            last = first
            while next_to(number, first, -1):
                first -= 1
            while next_to(number, last, 1):
                last += 1
            found.add((tuple(documents[number][first:last + size]), len(stands), len({place[0] for place in stands})))
    return found


def as_set(passages: list[Passage]) -> set[tuple[tuple[str, ...], int, int]]:
    assert all(passage.terms == len(passage.text.split()) for passage in passages)
    return {(tuple(passage.text.split()), passage.occurrences, passage.documents) for passage in passages}


corpora = st.lists(st.lists(st.sampled_from("abc"), max_size=25), max_size=6)
phrases = st.lists(st.lists(st.sampled_from("abcdefghijkl"), min_size=3, max_size=8), min_size=1, max_size=4)


@settings(deadline=None)
@given(corpora, st.integers(1, 5), st.integers(1, 2), st.sampled_from([64, 300, 5000, 1 << 16]))
def test_against_brute_force_in_any_memory(documents, size, min_documents, max_bytes):
    found = repeated_passages(batches([" ".join(words) for words in documents]), size, 10_000, min_documents, max_bytes)
    assert as_set(found) == brute_force(documents, size, min_documents)
    assert len(found) == len(as_set(found))


@settings(deadline=None)
@given(phrases, st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=6), st.sampled_from([64, 1 << 16]))
def test_documents_of_common_phrases(phrases, plans, max_bytes):
    documents = [[word for number in plan for word in phrases[number % len(phrases)]] for plan in plans]
    found = repeated_passages(batches([" ".join(words) for words in documents]), 4, 10_000, 2, max_bytes)
    assert as_set(found) == brute_force(documents, 4, 2)


def test_a_planted_notice_is_found_whole_and_ranked_first():
    texts = prose(200, seed=6)
    notice = "Copyright (c) the authors. " + " ".join(prose(8, seed=7)[5].split()[:60])
    quote = " ".join(prose(9, seed=8)[8].split()[:55])
    for number in range(10, 60):
        texts[number] = texts[number][:50 + number] + f" mark{number}. " + notice + f"\n\nend{number} " + texts[number][200:]
    for number in (3, 77):
        texts[number] += f" again{number}: " + quote.upper()
    found = repeated_passages(batches(texts, 64))
    assert [(passage.terms, passage.occurrences, passage.documents) for passage in found] == [(64, 50, 50), (55, 2, 2)]
    assert found[0].text == notice.removesuffix(".") and found[1].text == quote.upper().removesuffix(".")
    assert repeated_passages(batches(texts, 7), max_bytes=1 << 16) == found
    assert repeated_passages(batches(texts), most=1) == found[:1]
    assert repeated_passages(batches(texts), min_terms=65) == []


def test_repeats_within_a_document_are_asked_for():
    text = " ".join(prose(1)) + " x " + " ".join(prose(1))
    assert repeated_passages(batches([text])) == []
    found = repeated_passages(batches([text]), min_documents=1)
    assert [(passage.occurrences, passage.documents) for passage in found] == [(2, 1)]


def test_equal_scores_keep_reading_order_and_most_bounds_the_list():
    notices = [" ".join(f"w{number}x{word}" for word in range(50)) for number in range(40)]
    found = repeated_passages(batches([*notices, *notices[::-1]]), most=5)
    assert [passage.text for passage in found] == notices[:5]


@pytest.mark.parametrize("texts", [[], [""], ["", "..."], ["one two three"] * 5])
def test_nothing_to_report(texts):
    assert repeated_passages(batches(texts)) == []
