"""Clusters and first documents, against plain Python."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.clusters import PAIR_BYTES, _pieces, exact_first, link, near_clusters

SPREAD = 2**64 // 7                     # keys 0 to 6 times this lie in different pieces of the range


def components(size: int, links: list[tuple[int, int]]) -> list[int]:
    """The definition: smallest document reachable, by repeated sweeps."""
    label = list(range(size))
    changed = True
    while changed:
        changed = False
        for left, right in links:
            smaller = min(label[left], label[right])
            changed |= label[left] != smaller or label[right] != smaller
            label[left] = label[right] = smaller
    return label


def candidates(table: np.ndarray, alive: np.ndarray) -> list[tuple[int, int]]:
    """Each document with the first and the previous one of the same key, band by band."""
    links = []
    for band in range(table.shape[1]):
        groups = defaultdict(list)
        for document in np.flatnonzero(alive):
            groups[int(table[document, band])].append(int(document))
        for group in groups.values():
            links += [(group[0], other) for other in group[1:]] + list(zip(group, group[1:]))
    return links


@st.composite
def corpora(draw):
    size, bands = draw(st.integers(0, 25)), draw(st.integers(1, 4))
    table = np.array(draw(st.lists(st.lists(st.integers(0, 6), min_size=bands, max_size=bands), min_size=size, max_size=size)),
                     np.uint64).reshape(size, bands) * np.uint64(SPREAD)
    alive = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=4)))
    return table, alive, cuts


@settings(deadline=None)
@given(corpora(), st.integers(1, 30))
def test_clusters_are_connected_components_in_any_number_of_pieces(corpus, pairs_at_once):
    table, alive, cuts = corpus
    expected = components(len(alive), candidates(table, alive))
    for limit in (1 << 30, PAIR_BYTES * pairs_at_once):
        label = near_clusters(lambda band: iter(np.split(table[:, band], cuts)), alive, table.shape[1], limit)
        assert label.dtype == np.uint32 and label.tolist() == expected


@settings(deadline=None)
@given(corpora(), st.integers(1, 30), st.integers(0, 5))
def test_verified_links(corpus, pairs_at_once, salt):
    table, alive, cuts = corpus

    def similar(left, right):
        return (left * 7 + right * 7 + left * right + salt) % 3 > 0

    links = [pair for pair in candidates(table, alive) if similar(*pair)]
    label = near_clusters(lambda band: iter(np.split(table[:, band], cuts)), alive, table.shape[1], PAIR_BYTES * pairs_at_once,
                          verify=lambda left, right: similar(left, right))
    assert label.tolist() == components(len(alive), links)


@settings(deadline=None)
@given(corpora(), st.integers(1, 30))
def test_exact_first(corpus, pairs_at_once):
    table, alive, cuts = corpus
    keys = table[:, [0, -1]]                                              # often equal in one half alone
    first, expected = {}, []
    for document, (key, is_alive) in enumerate(zip(map(tuple, keys.tolist()), alive)):
        expected.append(first.setdefault(key, document) if is_alive else document)
    for limit in (1 << 30, PAIR_BYTES * pairs_at_once):
        assert exact_first(lambda: iter(np.split(keys, cuts)), alive, limit).tolist() == expected


@settings(deadline=None)
@given(st.integers(1, 60).flatmap(lambda size: st.tuples(
    st.just(size), st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=80))), st.randoms())
def test_links_in_any_order(graph, rng):
    size, links = graph
    expected = components(size, links)
    for _ in range(2):
        rng.shuffle(links)
        label = np.arange(size)
        for part in np.array_split(np.array(links, np.int64).reshape(-1, 2), 3):
            link(label, part[:, 0], part[:, 1])
        while (label != label[label]).any():
            label = label[label]
        assert label.tolist() == expected


@pytest.mark.parametrize("order", ["chain", "backwards", "star", "random"])
def test_long_chains_are_joined_in_few_rounds(order):
    size = 200_000
    left = np.arange(size - 1)
    right = left + 1
    if order == "backwards":
        left, right = right[::-1].copy(), left[::-1].copy()
    elif order == "star":
        left = np.full(size - 1, size - 1)
        right = np.arange(size - 1)
    elif order == "random":
        names = np.random.default_rng(0).permutation(size)
        left, right = names[left], names[right]
    label = np.arange(size)
    link(label, left, right)
    for _ in range(20):                                                   # 2^20 steps: the longest path there can be
        label = label[label]
    assert (label == 0).all()


def test_many_documents_quickly():
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2**64, (300_000, 3), dtype=np.uint64)
    copies = rng.integers(0, 1000, 5000)
    table[-5000:, 1] = table[copies, 1]
    label = near_clusters(lambda band: iter(np.array_split(table[:, band], 7)), np.ones(len(table), bool), 3)
    np.testing.assert_array_equal(label[-5000:], copies)
    assert (label[:-5000] == np.arange(295_000)).all()


@settings(deadline=None)
@given(corpora())
def test_verify_is_not_asked_about_documents_that_are_linked(corpus):
    table, alive, cuts = corpus
    asked = []

    def similar(left, right):
        asked.extend(zip(left.tolist(), right.tolist()))
        return np.ones(len(left), bool)

    near_clusters(lambda band: iter(np.split(table[:, band], cuts)), alive, table.shape[1], verify=similar)
    assert all(left < right and alive[left] and alive[right] for left, right in asked)
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("shape", [(10_000,), (10_000, 2)])
def test_each_piece_is_small_and_each_document_in_one(shape):
    keys = np.random.default_rng(0).integers(0, 2**64, shape, dtype=np.uint64)
    alive = np.arange(10_000) % 4 > 0
    pieces = list(_pieces(lambda: iter(np.array_split(keys, 9)), alive, PAIR_BYTES * 500))
    assert len(pieces) == 15 and max(len(documents) for documents, _ in pieces) < 650
    assert sorted(np.concatenate([documents for documents, _ in pieces])) == np.flatnonzero(alive).tolist()
    assert all((keys[documents] == part).all() for documents, part in pieces)


def test_columns_of_another_corpus_are_refused():
    with pytest.raises(ValueError, match="3 documents, alive 4"):
        near_clusters(lambda band: iter([np.zeros(3, np.uint64)]), np.ones(4, bool), 1)
