"""Orders of rows: scores against a slow count, every row once an epoch, the seed between equals."""

import numpy as np
import pytest

from cram import order
from cram.batches import Batches
from cram.schema import Objective
from tests.cram.test_batches import CLS, SEP, FakeShards

CURRICULA = ["short-first", "frequent-first", "rare-first"]
SPECIAL = 5


class Text(FakeShards):
    """FakeShards that know their pieces and how often each token occurs. Frequent tokens have small ids."""

    def __init__(self, documents=60, seed=0):
        rng = np.random.default_rng(seed)
        tokens = [np.array([CLS, *np.minimum(999, SPECIAL + rng.geometric(0.02, rng.integers(0, 50))), SEP])
                  for _ in range(documents)]
        super().__init__()
        self.tokens = np.concatenate(tokens).astype(np.uint16)
        self.n_tokens = len(self.tokens)
        self.piece_starts = np.cumsum([0, *map(len, tokens)])
        self.piece_documents = np.arange(documents)

    def token_counts(self):
        return np.bincount(self.tokens, minlength=self.vocab_size)


def slow_scores(shards, row, name):
    lengths = np.bincount(shards.piece_documents, weights=np.diff(shards.piece_starts))
    counts = shards.token_counts()
    total = counts[SPECIAL:].sum()
    scores = []
    for first in range(0, shards.n_tokens // row * row, row):
        if name == "short-first":
            pieces = [int(np.searchsorted(shards.piece_starts, token, side="right")) - 1 for token in range(first, first + row)]
            scores.append(np.mean([lengths[shards.piece_documents[piece]] for piece in pieces]))
        else:
            ordinary = [token for token in shards.tokens[first:first + row] if token >= SPECIAL]
            mean = np.mean([np.log(counts[token] / total) for token in ordinary]) if ordinary else 0.0
            scores.append(mean if name == "rare-first" else -mean)
    return np.array(scores)


@pytest.mark.parametrize("name", CURRICULA)
@pytest.mark.parametrize("row", [4, 16, 100])
def test_scores_are_those_of_a_slow_count(name, row, monkeypatch):
    monkeypatch.setattr(order, "BLOCK_TOKENS", 3 * row + 1)                # several blocks
    shards = Text()
    scores = order.row_scores(shards, row, name)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, slow_scores(shards, row, name), rtol=1e-5)


def test_a_piece_is_as_long_as_its_document():
    shards = Text()
    shards.piece_documents = np.arange(60) // 3                            # documents of three pieces each
    np.testing.assert_allclose(order.row_scores(shards, 16, "short-first"), slow_scores(shards, 16, "short-first"), rtol=1e-6)


@pytest.mark.parametrize("name", CURRICULA)
def test_each_epoch_goes_from_small_scores_to_large_and_holds_every_row(name):
    shards = Text()
    batches, scores = Batches(shards, Objective(), row=16, seed=1, order=name), slow_scores(shards, 16, name)
    for epoch in range(3):
        rows = batches._permutation(epoch)
        assert sorted(rows.tolist()) == list(range(batches.rows))
        assert (np.diff(scores[rows]) >= -1e-5).all()


def test_frequent_first_is_the_reverse_of_rare_first():
    shards = Text()
    assert np.array_equal(order.row_scores(shards, 16, "frequent-first"), -order.row_scores(shards, 16, "rare-first"))


def test_the_seed_and_the_epoch_decide_between_equal_rows():
    shards = Text()
    shards.piece_documents[:] = 0                                          # one document: all rows are alike
    first, second = (Batches(shards, Objective(), row=16, seed=seed, order="short-first") for seed in (1, 2))
    assert not np.array_equal(first._permutation(0), second._permutation(0))
    assert not np.array_equal(first._permutation(0), first._permutation(1))
    shuffled = Batches(shards, Objective(), row=16, seed=1)
    assert np.array_equal(first._permutation(0), shuffled._permutation(0))


def test_an_unknown_order():
    with pytest.raises(ValueError, match="no order of rows 'sorted'"):
        order.row_scores(Text(), 16, "sorted")
