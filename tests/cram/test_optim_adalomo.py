"""AdaLomo against its algorithm written out in float64 NumPy, and fused into the backward pass against itself."""

import numpy as np
import pytest
import torch
from torch import nn

from cram.adalomo import AdaLomo
from cram.optim import Optimizers
from cram.schema import Optimizer


def reference(theta, gradients, lr: float, decay: float, cautious: bool):
    """Lv et al. 2023, algorithm 1, with Adafactor's beta = 1 - t^-0.8."""
    theta = theta.copy()
    row = column = second = 0.0
    for t, g in enumerate(gradients, start=1):
        beta = 1 - t**-0.8
        if g.ndim == 2:
            row = beta * row + (1 - beta) * (g**2).sum(axis=1)
            column = beta * column + (1 - beta) * (g**2).sum(axis=0)
            v = np.outer(row, column) / row.sum()
        else:
            v = second = beta * second + (1 - beta) * g**2
        u = g / np.sqrt(v)
        u /= max(1.0, np.sqrt((u**2).mean()))
        rate = lr * max(1e-3, np.sqrt((theta**2).mean()))
        pull = decay * theta * (u * theta >= 0) if cautious else decay * theta
        theta -= rate * (u + pull)
    return theta


@pytest.mark.parametrize("cautious", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5,)])
@pytest.mark.parametrize("size", [1.0, 1e-5])  # above and below the smallest root mean square
def test_adalomo_equals_its_algorithm_in_float64(shape, size, cautious):
    random = np.random.default_rng(0)
    start, gradients = size * random.standard_normal(shape), random.standard_normal((5, *shape)) * 10.0 ** np.arange(
        5).reshape(-1, *[1] * len(shape))  # growing tenfold: the clip of the update matters
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = AdaLomo([parameter], lr=0.3, weight_decay=0.2, cautious=cautious)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    expected = reference(start, gradients, 0.3, 0.2, cautious)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=2e-5, atol=2e-6 * np.abs(expected).max())


def test_a_gradient_of_zeros_moves_nothing_but_the_decay():
    parameter = nn.Parameter(torch.ones(3, 2))
    parameter.grad = torch.zeros(3, 2)
    AdaLomo([parameter], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((3, 2), 0.95))


class Chain(nn.Module):
    """Layers one after another, with embeddings whose table is also the head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(8, 6), nn.Linear(6, 8, bias=False)
        self.head.weight = self.embedding.weight
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(5))

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x).logsumexp(-1).mean()


def train(fused: bool, skips: list[float]) -> tuple[Chain, Optimizers, int]:
    """The model and the most bytes of gradients that were alive after any gradient was there."""
    model = Chain()
    optimizers = Optimizers(model, Optimizer(type="adalomo", lr=0.1, fused_backward=fused))
    alive = []
    for parameter in model.parameters():
        parameter.register_hook(lambda _: alive.append(sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)))
    for step, skip in enumerate(skips):
        ids = torch.arange(8).roll(step)[:5]
        optimizers.set_learning_rate(1 / (step + 1))
        loss = model(ids)
        optimizers.before_backward(torch.tensor(skip))
        loss.backward()
        optimizers.step(torch.tensor(skip))
        optimizers.zero_grad()
    return model, optimizers, max(alive)


def test_fused_into_the_backward_pass_it_moves_the_same_bits_with_fewer_gradients_alive():
    skips = [0.0, 0.0, 1.0, 0.0]
    (plain, before, plain_bytes), (fused, after, fused_bytes) = train(False, skips), train(True, skips)
    for ours, theirs in zip(fused.parameters(), plain.parameters()):
        assert torch.equal(ours, theirs)
    assert before.memory() == after.memory() and after.fused
    largest = max(p.nbytes for p in plain.parameters())
    assert fused_bytes <= largest < plain_bytes


def test_a_fused_update_keeps_its_learning_rate_after_a_state_is_loaded():
    model, optimizers, _ = train(True, [0.0])
    optimizers.load_state_dict(optimizers.state_dict())
    optimizers.set_learning_rate(0.0)
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.arange(4)).backward()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
