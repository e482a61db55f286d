"""batch = f(seed, step): the same whoever asks, every token once an epoch, documents kept apart."""

import numpy as np
import pytest
import torch
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
    batch, = batches.step(0, 0, rows=24, micro_rows=24, mask_rate=0.5, prefetch=False)
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
    shape = dict(rows=8, micro_rows=4, mask_rate=0.3)
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
        0, 0, rows=8, micro_rows=8, mask_rate=0.0, prefetch=False)[0]
    ids, labels = batch.ids_N.numpy(), batch.labels_K.numpy()
    assert batch.positions_K is None and batch.predicted == (labels != IGNORE).sum()
    assert ((labels == IGNORE) == (ids == SEP)).all()  # only after a document's end is nothing predicted
    inner = np.arange(len(ids) - 1) % 16 != 15
    known = (labels[:-1] != IGNORE) & inner
    assert (labels[:-1][known] == ids[1:][known]).all()


@pytest.mark.parametrize("length, count", [(16, 5), (8, 2), (2, 1)])
def test_the_number_of_predictions_is_fixed(length, count):
    batches = Batches(FakeShards(), Objective(), row=16, seed=0)
    for step in range(3):
        for micro in batches.step(step, step * 8, rows=8, micro_rows=4, mask_rate=0.3, length=length):
            assert len(micro.positions_K) == len(micro.labels_K) == 4 * (16 // length) * count
            row_K = micro.positions_K[micro.labels_K != IGNORE] // length
            assert row_K.bincount().max() <= count
    batches.close()


def test_a_corpus_shorter_than_a_row_is_refused():
    with pytest.raises(CramError, match="train.sequence_length"):
        Batches(FakeShards(documents=1), Objective(), row=4096, seed=0)


def test_masks_differ_between_rows_and_steps():
    """The same row again and again: only its number and the step tell its masks apart."""
    shards = FakeShards()
    shards.tokens[:160] = np.tile([CLS, *range(100, 115)], 10)
    shards.n_tokens = 160
    batches = Batches(shards, Objective(), row=16, seed=0)
    micros = [batches.step(step, 0, rows=10, micro_rows=10, mask_rate=0.3, prefetch=False)[0] for step in range(3)]
    chosen = [tuple(row % 16) for micro in micros for row in micro.positions_K.numpy().reshape(10, 5)]
    assert len(set(chosen)) > 25  # 30 draws of 5 of 15: two are alike now and then


def everything(micros):
    """All tensors of some micro-batches end to end, their positions and bounds counted through."""
    parts, offset = [], 0
    for micro in micros:
        n = len(micro.ids_N)
        positions_K = torch.arange(n) if micro.positions_K is None else micro.positions_K
        parts.append((micro.ids_N, micro.documents.start_N + offset, micro.documents.end_N + offset,
                      torch.where(micro.labels_K != IGNORE, positions_K + offset, -1), micro.labels_K))
        offset += n
    return [torch.cat(column) for column in zip(*parts)]


@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(["masked", "causal"]),
       split=st.sampled_from([(1, 1), (2, 1), (4, 1), (1, 8), (4, 2), (2, 4), (1, 2)]), length=st.sampled_from([16, 8, 4]), step=st.integers(0, 3), text=st.sampled_from([FakeShards(), FakeRows()]))
def test_neither_micro_batches_nor_processes_change_a_step(kind, split, length, step, text):
    shape = dict(rows=8, mask_rate=0.4, length=length, prefetch=False)
    micro_rows, world = split
    whole = Batches(text, Objective(type=kind), row=16, seed=3).step(step, step * 8, micro_rows=8, **shape)
    shares = [Batches(text, Objective(type=kind), row=16, seed=3, rank=rank, world=world).step(
        step, step * 8, micro_rows=micro_rows, **shape) for rank in range(world)]
    assert {len(share) for share in shares} == {8 // micro_rows // world}
    for one, many in zip(everything(whole), everything([micro for share in shares for micro in share]), strict=True):
        assert one.dtype == many.dtype and one.equal(many)


@pytest.mark.parametrize("length", [16, 8, 2])
def test_pieces_of_rows_are_rows_of_their_own(length):
    """Same text in the same order, same labels; only the bounds of documents tell that rows were cut."""
    batches = Batches(FakeShards(), Objective(type="causal"), row=16, seed=0)
    whole, = batches.step(0, 0, rows=8, micro_rows=8, mask_rate=0.0, prefetch=False)
    cut, = batches.step(0, 0, rows=8, micro_rows=8, mask_rate=0.0, length=length, prefetch=False)
    assert cut.ids_N.equal(whole.ids_N) and cut.labels_K.equal(whole.labels_K) and cut.documents.row == length
    border_N = torch.arange(128, dtype=torch.int32) // length * length
    assert cut.documents.start_N.equal(torch.maximum(whole.documents.start_N, border_N))
    assert cut.documents.end_N.equal(torch.minimum(whole.documents.end_N, border_N + length))


@pytest.mark.parametrize("wrong", [{"micro_rows": 3}, {"micro_rows": 8}, {"length": 5}])
def test_what_cannot_be_divided_is_refused(wrong):
    batches = Batches(FakeShards(), Objective(), row=16, seed=0, world=2)
    with pytest.raises(ValueError, match="8 rows of 16 tokens cannot be divided"):
        batches.step(0, 0, **{"rows": 8, "micro_rows": 4, "mask_rate": 0.3, **wrong})


@pytest.mark.parametrize("text", [FakeShards(), FakeRows()])
@pytest.mark.parametrize("length", [16, 4])
def test_hybrid_predicts_each_hidden_token_at_the_position_before_it(text, length):
    batches = Batches(text, Objective(type="hybrid", mask_token_fraction=1.0, random_token_fraction=0.0), row=16, seed=0)
    micros = batches.step(0, 0, rows=8, micro_rows=2, mask_rate=0.5, length=length, prefetch=False)
    assert [micro.causal for micro in micros] == [False, True, False, True]
    for i, micro in enumerate(micros):
        original = batches.read_rows(2 * i, 2)[:, :-1].reshape(-1)
        if micro.causal:
            assert micro.positions_K is None and np.array_equal(micro.ids_N, original)
            continue
        real = micro.labels_K != IGNORE
        at = micro.positions_K[real].numpy()
        assert real.any() and np.array_equal(original[at + 1], micro.labels_K[real]) and (micro.positions_K[~real] == 0).all()
        assert sorted(at + 1) == np.flatnonzero(micro.ids_N.numpy() != original).tolist()  # those and no others are hidden
        start = micro.documents.start_N.numpy()
        assert (start[at] == start[at + 1]).all()  # in the same document, within the same row


def test_hybrid_steps_have_kinds_of_their_own():
    """With one micro-batch a step, steps take turns; a process knows which of them it gets."""
    objective, shape = Objective(type="hybrid", causal_share=0.5), dict(mask_rate=0.3, prefetch=False)
    batches = Batches(FakeShards(), objective, row=16, seed=0)
    assert [batches.step(i, 0, rows=2, micro_rows=2, **shape)[0].causal for i in range(4)] == [False, True, False, True]
    second = Batches(FakeShards(), objective, row=16, seed=0, rank=1, world=2)
    assert [micro.causal for micro in second.step(0, 0, rows=6, micro_rows=1, **shape)] == [True, False, True]


def test_micro_batches_follow_each_other_in_the_order_of_rows():
    batches = Batches(FakeShards(), Objective(type="causal"), row=16, seed=0)
    micros = batches.step(0, 8, rows=12, micro_rows=4, mask_rate=0.0, prefetch=False)
    ids = np.concatenate([micro.ids_N.numpy() for micro in micros]).reshape(-1, 16)
    assert np.array_equal(ids, batches.read_rows(8, 12)[:, :-1])


def test_the_fractions_are_the_configured_ones():
    for fractions, expected in (((1.0, 0.0), "mask"), ((0.0, 0.0), "same")):
        objective = Objective(mask_token_fraction=fractions[0], random_token_fraction=fractions[1])
        batch, = Batches(FakeShards(), objective, row=16, seed=0).step(
            0, 0, rows=8, micro_rows=8, mask_rate=0.3, prefetch=False)
        hidden = batch.ids_N[batch.positions_K]
        assert (hidden == 4).all() if expected == "mask" else hidden.equal(batch.labels_K)


def test_slots_without_a_prediction_are_not_counted():
    batch, = Batches(FakeShards(), Objective(), row=16, seed=0).step(
        0, 0, rows=8, micro_rows=8, mask_rate=1.0, prefetch=False)
    assert batch.predicted == (batch.labels_K != IGNORE).sum() < len(batch.labels_K)


def test_nothing_is_predicted_after_the_end_of_the_text():
    shards = FakeShards()
    shards.tokens = np.concatenate([shards.tokens[:159], [SEP]]).astype(np.uint16)
    shards.n_tokens = 160
    batches = Batches(shards, Objective(type="causal"), row=16, seed=0)
    batch, = batches.step(0, 0, rows=10, micro_rows=10, mask_rate=0.0, prefetch=False)
    last = next(r for r in range(10) if np.array_equal(batch.ids_N.numpy().reshape(10, 16)[r], shards.tokens[-16:]))
    assert batch.labels_K.reshape(10, 16)[last, -1] == IGNORE


def test_the_next_step_is_prepared_ahead():
    batches, made = Batches(FakeShards(), Objective(), row=16, seed=0), []
    make = batches._make
    batches._make = lambda *shape: made.append(shape) or make(*shape)
    for step in range(4):
        batches.step(step, step * 8, rows=8, micro_rows=4, mask_rate=0.3)
    batches.close()
    assert [shape[0] for shape in made] in ([0, 1, 2, 3], [0, 1, 2, 3, 4])  # each once; the fifth may have begun
