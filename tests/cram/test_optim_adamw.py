"""AdamW against torch's, and cautious decay against a slow loop in float64."""

import math

import pytest
import torch
from torch import nn

from cram.adamw import AdamW


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 4), (5,))]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(shape, generator=generator) for shape in ((6, 4), (5,))]


def walk(held: list[nn.Parameter], optimizer, steps: int = 4) -> list[torch.Tensor]:
    for step in range(steps):
        for parameter, gradient in zip(held, gradients(step)):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in held]


@pytest.mark.parametrize("flag", [None, 0.0])
def test_adamw_is_torch_adamw_bit_for_bit(flag):
    ours, theirs = parameters(), parameters()
    mine = AdamW(ours, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    mine.found_inf = None if flag is None else torch.tensor(flag)
    reference = torch.optim.AdamW(theirs, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, fused=True)
    assert all(torch.equal(a, b) for a, b in zip(walk(ours, mine), walk(theirs, reference)))


def test_cautious_decay_equals_a_slow_loop():
    lr, beta1, beta2, eps, decay = 0.1, 0.8, 0.9, 1e-6, 0.3
    held = parameters()
    expected = [p.detach().double().flatten().tolist() for p in held]
    decayed = 0
    for number, weights in enumerate(expected):
        for i, x in enumerate(weights):
            first = second = 0.0
            for step in range(4):
                g = float(gradients(step)[number].flatten()[i])
                first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g * g
                corrected = math.sqrt(second / (1 - beta2 ** (step + 1))) + eps
                update = first / (1 - beta1 ** (step + 1)) / corrected
                decayed += update * x >= 0
                x -= lr * (update + (decay * x if update * x >= 0 else 0.0))
            weights[i] = x
    assert 0 < decayed < 4 * 29  # the loop takes both branches
    moved = walk(held, AdamW(held, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, cautious=True))
    for ours, theirs in zip(moved, expected):
        torch.testing.assert_close(ours.double().flatten(), torch.tensor(theirs, dtype=torch.float64), rtol=1e-4, atol=1e-5)
