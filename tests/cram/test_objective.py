"""Losses against slow oracles, and which micro-batches are causal."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.errors import CramError
from cram.model import build
from cram.objective import IGNORE, Loss, causal_labels, predicted_fraction, step_kinds
from cram.ops import Documents
from cram.schema import Distill, Model, Objective


def test_causal_labels_stop_at_documents():
    assert causal_labels(np.array([7, 3, 2, 9], dtype=np.uint16), cls=2).tolist() == [7, 3, IGNORE, 9]


class Toy(torch.nn.Module):
    def __init__(self, vocab=11, width=4, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.nn.Parameter(torch.randn(vocab, width, generator=generator))
        self.vocab_size, self.asked = vocab, []

    def forward(self, ids_N, documents, causal=None):
        self.asked.append(causal)
        return self.table[ids_N]

    def logits(self, x):
        return x @ self.table.T


IDS, ROW = torch.arange(8), Documents(None, None, 8)
POSITIONS, LABELS = torch.tensor([1, 3, 0, 6]), torch.tensor([5, 2, IGNORE, 10])
KEPT = [0, 1, 3]


def oracle(table, teacher, z_loss, weight, temperature):
    """float64: (1 - w) CE + w T^2 KL(teacher || student) + z log(Z)^2, and CE, term by term."""
    def probabilities(table):
        logits = table[POSITIONS] @ table.T / temperature
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    table, teacher = (x.detach().double().numpy() for x in (table, teacher))
    total = nats = 0.0
    for k in KEPT:
        logits = table[POSITIONS[k]] @ table.T
        log_z = np.log(np.exp(logits).sum())
        p, q = probabilities(teacher)[k], probabilities(table)[k]
        nats += log_z - logits[LABELS[k]]
        total += ((1 - weight) * (log_z - logits[LABELS[k]]) + weight * temperature**2 * (p * np.log(p / q)).sum()
                  + z_loss * log_z**2)
    return total, nats


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_loss_is_the_sum_over_predicted_tokens(z_loss):
    model = Toy()
    total, nats = Loss(model, Objective(z_loss=z_loss), chunked=False)(IDS, ROW, POSITIONS, LABELS, False)
    expected = oracle(model.table, model.table, z_loss, weight=0.0, temperature=1.0)
    assert (total.item(), nats.item()) == pytest.approx(expected, rel=1e-5) and not nats.requires_grad
    assert model.asked == [False]


@pytest.mark.parametrize("weight, temperature, z_loss", [(0.5, 1.0, 0.0), (0.3, 2.5, 0.1), (1.0, 0.7, 0.0)])
def test_a_teacher_as_by_definition(weight, temperature, z_loss):
    model, teacher = Toy(), Toy(seed=1).train()
    loss = Loss(model, Objective(z_loss=z_loss), False, teacher, Distill(weight=weight, temperature=temperature))
    total, nats = loss(IDS, ROW, POSITIONS, LABELS, True)
    expected = oracle(model.table, teacher.table, z_loss, weight, temperature)
    assert (total.item(), nats.item()) == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert teacher.table.grad is None and model.table.grad.abs().max() > 0
    assert not teacher.training and model.asked == teacher.asked == [True]  # it sees what the student sees


def test_a_teacher_is_no_part_of_what_is_trained_or_saved():
    loss = Loss(Toy(), Objective(), False, Toy(seed=1), Distill())
    assert [name for name, _ in loss.named_parameters()] == list(loss.state_dict()) == ["model.table"]
    assert not loss.train()._teacher[0].training


def test_a_teacher_without_weight_changes_nothing():
    results = []
    for teacher in (None, Toy(seed=1)):
        model = Toy()
        total, nats = Loss(model, Objective(z_loss=0.1), False, teacher, Distill(weight=0.0))(IDS, ROW, POSITIONS, LABELS, None)
        total.backward()
        results.append((total.detach(), nats, model.table.grad))
    assert all(plain.equal(taught) for plain, taught in zip(*results))


def test_nothing_is_left_to_learn_from_oneself():
    model = Toy()
    loss = Loss(model, Objective(), False, Toy(), Distill(weight=1.0))
    total, nats = loss(IDS, ROW, POSITIONS, LABELS, None)
    total.backward()
    assert abs(total.item()) < 1e-6 < nats.item() and model.table.grad.abs().max() < 1e-6


def test_teachers_that_cannot_teach_are_refused():
    with pytest.raises(CramError, match="train.loss=plain"):
        Loss(Toy(), Objective(), True, Toy(), Distill())
    with pytest.raises(CramError, match="12 tokens, the model 11"):
        Loss(Toy(), Objective(), False, Toy(vocab=12), Distill())


def test_the_split_into_micro_batches_does_not_change_the_gradient():
    model, ids, labels = Toy(), torch.arange(10) % 11, torch.arange(1, 11)
    labels[:4] = IGNORE  # an uneven number of predictions in each part
    loss = Loss(model, Objective(), False, Toy(seed=1), Distill())
    whole, *parts = (torch.autograd.grad(loss(ids[part], Documents(None, None, 5), None, labels[part])[0] / 6, model.table)[0]
                     for part in (slice(0, 10), slice(0, 5), slice(5, 10)))
    torch.testing.assert_close(whole, sum(parts))


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("changes", [{}, {"tied": False, "logit_softcap": 3.0}])
def test_the_chunked_loss_trains_the_same_model(changes, z_loss):
    model = build(Model(layers=1, width=32, heads=2, zero_init=False, init_std=0.3, **changes), 50, False, seed=0)
    ids, positions, labels = torch.arange(16), torch.tensor([1, 4, 9, 0]), torch.tensor([7, 3, 3, IGNORE])
    results = []
    for chunked in (False, True):
        total, nats = Loss(model, Objective(z_loss=z_loss), chunked)(ids, Documents(None, None, 8), positions, labels, False)
        assert not nats.requires_grad and (nats.item() < total.item()) == bool(z_loss)
        results.append([total, nats, *torch.autograd.grad(total / 3, list(model.parameters()))])
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["chunked", "taught"])
def test_compiled_whole_whatever_the_direction(how):
    """One graph for each direction of attention and no break in it, with a teacher too."""
    from torch._dynamo.utils import counters
    torch._dynamo.reset()
    counters.clear()
    model, teacher = (build(Model(layers=1, width=32, heads=2, zero_init=False), 50, True, seed=seed) for seed in (0, 1))
    loss = Loss(model, Objective(z_loss=0.1), how == "chunked", *((teacher, Distill()) if how == "taught" else ()))
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="eager")
    start_N = torch.arange(16, dtype=torch.int32) // 8 * 8
    for seed in range(4):
        ids, causal = torch.arange(seed, seed + 16), seed % 2 == 1
        positions = None if causal else torch.tensor([1, 4, 9, 0])
        arguments = ids, Documents(start_N, start_N + 8, 8), positions, ids if causal else ids[:4], causal
        torch.testing.assert_close(compiled(*arguments), loss(*arguments))
    assert counters["stats"]["unique_graphs"] == 2


def test_kinds_of_the_plain_objectives():
    assert step_kinds(Objective(type="causal"), 3, 2) == [True, True]
    assert step_kinds(Objective(type="masked"), 3, 2) == [False, False]


@settings(deadline=None)
@given(hundredths=st.integers(0, 100), micro_batches=st.integers(1, 9), steps=st.integers(1, 40))
def test_causal_micro_batches_are_spread_evenly(hundredths, micro_batches, steps):
    """Of the first g, floor(g share) are causal, exactly, however they are divided into steps."""
    objective, share = Objective(type="hybrid", causal_share=hundredths / 100), Fraction(hundredths, 100)
    kinds = [kind for step in range(steps) for kind in step_kinds(objective, step, micro_batches)]
    assert all(sum(kinds[:g]) == int(g * share) for g in range(len(kinds) + 1))


def test_the_share_of_predicted_tokens():
    assert predicted_fraction(True, 0.3, 16) == 1.0
    assert predicted_fraction(False, 0.3, 16) == 5 / 16 and predicted_fraction(False, 0.01, 16) == 1 / 16
