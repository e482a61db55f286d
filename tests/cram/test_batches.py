"""batch = f(seed, step): the same whoever asks, every token once an epoch, documents kept apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.batches import Batches, document_bounds
from cram.errors import CramError
from cram.objective import IGNORE
from cram.schema import Objective

CLS, SEP = 2, 3


class FakeShards:
    """Documents of random lengths in memory, with the interface of data_prep.shards.Shards."""

    def __init__(self, documents=40, seed=0):
        rng = np.random.default_rng(seed)
        parts = [np.array([CLS, *rng.integers(5, 1000, rng.integers(0, 50)), SEP]) for _ in range(documents)]
        self.tokens = np.concatenate(parts).astype(np.uint16)
        self.n_tokens, self.vocab_size = len(self.tokens), 1000
        self.special = {"pad": 0, "unk": 1, "cls": CLS, "sep": SEP, "mask": 4}
        self.dtype, self.row_tokens = np.dtype("<u2"), None

    def read(self, start, stop):
        return self.tokens[start:stop]


class FakeRows(FakeShards):
    """Documents fitted into rows, some of which end with padding."""

    def __init__(self, rows=24, row=16, seed=0):
        super().__init__(seed=seed)
        rng, filled = np.random.default_rng(seed), []
        for _ in range(rows):
            first, second = rng.integers(2, 9, 2)
            content = [CLS, *rng.integers(5, 1000, first - 2), SEP, CLS, *rng.integers(5, 1000, second - 2), SEP]
            filled.append([*content, *[0] * (row - len(content))])
        self.tokens = np.array(filled, np.uint16).reshape(-1)
        self.n_tokens, self.row_tokens = len(self.tokens), row


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(2, 6), min_size=8, max_size=8), min_size=1, max_size=4))
def test_document_bounds_equal_a_slow_scan(rows):
    ids = np.array(rows, dtype=np.uint16)
    start, end = document_bounds(ids, CLS)
    for r, row in enumerate(rows):
        opens = [i for i in range(8) if i == 0 or row[i] == CLS] + [8]
        for i in range(8):
            a = max(o for o in opens[:-1] if o <= i)
            b = min(o for o in opens if o > i)
            assert (start[r * 8 + i], end[r * 8 + i]) == (r * 8 + a, r * 8 + b)


@settings(deadline=None)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4))
def test_padding_is_a_document_of_its_own(widths):
    ids = np.array([[CLS, *[7] * (8 - width)][:8 - width] + [0] * width for width in widths if width < 8] or [[CLS] * 8])
    start, end = (bounds.reshape(ids.shape) % 8 for bounds in document_bounds(ids, CLS, 0))
    for row, first, last in zip(ids, start, end):
        width = np.count_nonzero(row == 0)
        if width:
            assert (first[-width:] == 8 - width).all() and (last[-width:] == 0).all() and (last[:8 - width] == 8 - width).all()


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_padding_is_never_predicted_and_predicts_nothing(kind):
    batches = Batches(FakeRows(), Objective(type=kind), row=16, seed=0)
    batch, = batches.step(0, 0, micro_batches=1, micro_rows=24, mask_rate=0.5, prefetch=False)
    original = batches.read_rows(0, 24)[:, :-1].reshape(-1)
    assert np.count_nonzero(original == 0) > 24 and batch.predicted == (batch.labels_K != IGNORE).sum()
    assert not (batch.labels_K == 0).any()
    assert (batch.ids_N.numpy()[original == 0] == 0).all()                # nor is it chosen to be hidden
    real = original != 0
    start, end = batch.documents.start_N.numpy(), batch.documents.end_N.numpy()
    for token in np.flatnonzero(real):
        assert real[start[token]:end[token]].all()                        # no token sees padding
    if kind == "causal":
        labels = batch.labels_K.numpy()
        assert (labels[~real] == IGNORE).all() and ((labels == IGNORE) == ((original == SEP) | ~real)).all()
    else:
        positions = batch.positions_K[batch.labels_K != IGNORE].numpy()
        assert real[positions].all()


def test_rows_of_another_length_are_refused():
    with pytest.raises(CramError, match="fitted into rows of 16 tokens .* train.sequence_length is 8"):
        Batches(FakeRows(), Objective(), row=8, seed=0)


def test_four_byte_tokens_stay_as_they_are():
    shards = FakeShards()
    shards.tokens, shards.dtype = shards.tokens.astype(np.uint32) + 70_000, np.dtype("<u4")
    rows = Batches(shards, Objective(), row=16, seed=0).read_rows(0, 4)
    assert rows.dtype == np.uint32 and (rows >= 70_000).all()


def test_shuffled_order_has_not_changed():
    """A run that goes on from an earlier version reads the rows that it would have read then."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([7, 2, 3])))
    batches = Batches(FakeShards(), Objective(), row=16, seed=7)
    assert batches._permutation(3).tolist() == rng.permutation(batches.rows).tolist()


def test_an_epoch_holds_every_row_once_and_the_next_is_ordered_anew():
    shards = FakeShards()
    batches = Batches(shards, Objective(type="causal"), row=16, seed=1)
    first, second = batches.read_rows(0, batches.rows), batches.read_rows(batches.rows, batches.rows)
    expected = shards.tokens[:batches.rows * 16].reshape(-1, 16)
    for epoch in (first, second):
        assert sorted(map(tuple, epoch[:, :-1])) == sorted(map(tuple, expected))
    assert not np.array_equal(first, second)
    batches.close()


@pytest.mark.parametrize("kind", ["masked", "causal"])
def test_a_batch_is_a_function_of_seed_and_step(kind):
    shards = FakeShards()
    shape = dict(micro_batches=2, micro_rows=4, mask_rate=0.3)
    straight = Batches(shards, Objective(type=kind), row=16, seed=1)
    wanted = [straight.step(step, step * 8, **shape) for step in range(20)][13]
    resumed = Batches(shards, Objective(type=kind), row=16, seed=1)
    resumed.step(3, 24, **{**shape, "micro_rows": 2})  # something else prepared in the background
    again = resumed.step(13, 13 * 8, **shape, prefetch=False)
    other = Batches(shards, Objective(type=kind), row=16, seed=2).step(13, 13 * 8, **shape, prefetch=False)
    for a, b in zip(wanted, again):
        assert a.ids_N.equal(b.ids_N) and a.labels_K.equal(b.labels_K) and a.predicted == b.predicted
        assert a.documents.start_N.equal(b.documents.start_N)
    assert not wanted[0].ids_N.equal(other[0].ids_N)
    straight.close(), resumed.close()


def test_causal_labels_are_the_next_tokens_within_documents():
    shards = FakeShards()
    batch = Batches(shards, Objective(type="causal"), row=16, seed=0).step(
        0, 0, micro_batches=1, micro_rows=8, mask_rate=0.0, prefetch=False)[0]
    ids, labels = batch.ids_N.numpy(), batch.labels_K.numpy()
    assert batch.positions_K is None and batch.predicted == (labels != IGNORE).sum()
    assert ((labels == IGNORE) == (ids == SEP)).all()  # only after a document's end is nothing predicted
    inner = np.arange(len(ids) - 1) % 16 != 15
    known = (labels[:-1] != IGNORE) & inner
    assert (labels[:-1][known] == ids[1:][known]).all()


def test_the_number_of_predictions_is_fixed():
    batches = Batches(FakeShards(), Objective(), row=16, seed=0)
    for step in range(5):
        micro, = batches.step(step, step * 8, micro_batches=1, micro_rows=8, mask_rate=0.3)
        assert len(micro.positions_K) == len(micro.labels_K) == round(0.3 * 128)
    batches.close()


def test_a_corpus_shorter_than_a_row_is_refused():
    with pytest.raises(CramError, match="train.sequence_length"):
        Batches(FakeShards(documents=1), Objective(), row=4096, seed=0)


def test_masks_differ_between_micro_batches_and_steps():
    """The same rows twice: only the generator's key tells them apart."""
    batches = Batches(FakeShards(), Objective(), row=16, seed=0)
    chosen = [batches._micro(step, index, 0, 8, 0.3)[3].tolist() for step in range(3) for index in range(3)]
    assert len(set(map(tuple, chosen))) == 9


def test_micro_batches_follow_each_other_in_the_order_of_rows():
    batches = Batches(FakeShards(), Objective(type="causal"), row=16, seed=0)
    micros = batches.step(0, 8, micro_batches=3, micro_rows=4, mask_rate=0.0, prefetch=False)
    ids = np.concatenate([micro.ids_N.numpy() for micro in micros]).reshape(-1, 16)
    assert np.array_equal(ids, batches.read_rows(8, 12)[:, :-1])


def test_the_fractions_are_the_configured_ones():
    for fractions, expected in (((1.0, 0.0), "mask"), ((0.0, 0.0), "same")):
        objective = Objective(mask_token_fraction=fractions[0], random_token_fraction=fractions[1])
        batch, = Batches(FakeShards(), objective, row=16, seed=0).step(
            0, 0, micro_batches=1, micro_rows=8, mask_rate=0.3, prefetch=False)
        hidden = batch.ids_N[batch.positions_K]
        assert (hidden == 4).all() if expected == "mask" else hidden.equal(batch.labels_K)


def test_slots_without_a_prediction_are_not_counted():
    batch, = Batches(FakeShards(), Objective(), row=16, seed=0).step(
        0, 0, micro_batches=1, micro_rows=8, mask_rate=1.0, prefetch=False)
    assert batch.predicted == (batch.labels_K != IGNORE).sum() < len(batch.labels_K)


def test_nothing_is_predicted_after_the_end_of_the_text():
    shards = FakeShards()
    shards.tokens = np.concatenate([shards.tokens[:159], [SEP]]).astype(np.uint16)
    shards.n_tokens = 160
    batches = Batches(shards, Objective(type="causal"), row=16, seed=0)
    batch, = batches.step(0, 0, micro_batches=1, micro_rows=10, mask_rate=0.0, prefetch=False)
    last = next(r for r in range(10) if np.array_equal(batch.ids_N.numpy().reshape(10, 16)[r], shards.tokens[-16:]))
    assert batch.labels_K.reshape(10, 16)[last, -1] == IGNORE


def test_the_next_step_is_prepared_ahead():
    batches, made = Batches(FakeShards(), Objective(), row=16, seed=0), []
    make = batches._make
    batches._make = lambda *shape: made.append(shape) or make(*shape)
    for step in range(4):
        batches.step(step, step * 8, micro_batches=2, micro_rows=4, mask_rate=0.3)
    batches.close()
    assert [shape[0] for shape in made] in ([0, 1, 2, 3], [0, 1, 2, 3, 4])  # each once; the fifth may have begun
