"""Masking as published, and losses against a slow oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.model import build
from cram.objective import IGNORE, causal_labels, cross_entropy_sum, mask_tokens
from cram.ops import Documents
from cram.schema import Model

SPECIAL = 5


def mask(ids, count, seed=0, **more):
    return mask_tokens(ids, count=count, vocab_size=1000, mask_id=4, protected=SPECIAL, rng=np.random.default_rng(seed), **more)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 999), min_size=1, max_size=200), rate=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_masks_never_touch_special_tokens_and_change_nothing_else(ids, rate, seed):
    ids = np.array(ids, dtype=np.uint16)
    count = max(1, round(rate * len(ids)))
    inputs, positions, labels = mask(ids, count, seed)
    real = labels != IGNORE
    assert real.sum() == min(count, (ids >= SPECIAL).sum()) and len(positions) == len(labels) == count
    assert len(set(positions[real])) == real.sum()
    assert (ids[positions[real]] == labels[real]).all() and (labels[real] >= SPECIAL).all()
    untouched = np.setdiff1d(np.arange(len(ids)), positions[real])
    assert (inputs[untouched] == ids[untouched]).all()


def test_eighty_ten_ten():
    ids = np.full(200_000, 77, dtype=np.uint16)
    inputs, positions, labels = mask(ids, 100_000)
    hidden = inputs[positions]
    share_mask, share_kept = (hidden == 4).mean(), (hidden == 77).mean()
    assert share_mask == pytest.approx(0.8, abs=0.006)
    assert share_kept == pytest.approx(0.1, abs=0.005)
    random = hidden[(hidden != 4) & (hidden != 77)]
    assert random.min() >= SPECIAL and len(np.unique(random)) > 900


def test_causal_labels_stop_at_documents():
    assert causal_labels(np.array([7, 3, 2, 9], dtype=np.uint16), cls=2).tolist() == [7, 3, IGNORE, 9]


class Toy(torch.nn.Module):
    def __init__(self, vocab=11, width=4):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Parameter(torch.randn(vocab, width, generator=generator))

    def forward(self, ids_N, documents):
        return self.table[ids_N]

    def logits(self, x):
        return x @ self.table.T


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_is_the_sum_over_predicted_tokens(z_loss):
    model, ids = Toy(), torch.arange(8)
    positions, labels = torch.tensor([1, 3, 0]), torch.tensor([5, 2, IGNORE])
    loss = cross_entropy_sum(model, ids, Documents(None, None, 8), positions, labels, z_loss)
    logits = (model.table.double() @ model.table.double().T)[[1, 3]]
    log_z = torch.logsumexp(logits, -1)
    expected = (log_z - logits[[0, 1], [5, 2]]).sum() + z_loss * log_z.square().sum()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_split_into_micro_batches_does_not_change_the_gradient():
    model, ids, labels = Toy(), torch.arange(10) % 11, torch.arange(1, 11)
    labels[:4] = IGNORE  # an uneven number of predictions in each part
    whole = torch.autograd.grad(cross_entropy_sum(model, ids, Documents(None, None, 5), None, labels) / 6, model.table)[0]
    parts = sum(torch.autograd.grad(cross_entropy_sum(model, ids[part], Documents(None, None, 5), None, labels[part]) / 6,
                                    model.table)[0] for part in (slice(0, 5), slice(5, 10)))
    torch.testing.assert_close(whole, parts)


def test_every_token_is_equally_likely_to_be_chosen():
    ids, times = np.full(20, 77, dtype=np.uint16), np.zeros(20)
    for seed in range(400):
        times[mask(ids, 5, seed)[1]] += 1
    assert times.sum() == 2000 and 60 < times.min() and times.max() < 140  # 100 each, standard deviation 8.7


def test_random_replacements_cover_all_ordinary_tokens():
    ids = np.full(200_000, 77, dtype=np.uint16)
    hidden = mask(ids, 200_000, mask_fraction=0.0, random_fraction=1.0)[0]
    assert set(np.unique(hidden)) == set(range(SPECIAL, 1000))


@pytest.mark.parametrize("changes", [{}, {"tied": False, "logit_softcap": 3.0}])
def test_the_chunked_loss_trains_the_same_model(changes):
    model = build(Model(layers=1, width=32, heads=2, zero_init=False, init_std=0.3, **changes), 50, False, seed=0)
    ids, positions, labels = torch.arange(16), torch.tensor([1, 4, 9, 0]), torch.tensor([7, 3, 3, IGNORE])
    results = []
    for chunked in (False, True):
        loss = cross_entropy_sum(model, ids, Documents(None, None, 8), positions, labels, 0.1, chunked)
        results.append([loss, *torch.autograd.grad(loss / 3, list(model.parameters()))])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-5, atol=1e-5)
