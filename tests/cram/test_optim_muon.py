"""Muon against torch's own, by the singular values of its update, and by fault."""

import pytest
import torch
from torch import nn

from cram.muon import Muon, orthogonalise


@pytest.mark.parametrize("iteration", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_muon_equals_torch_muon(shape, iteration):
    """The oracle is torch.optim.Muon with the same update size; it iterates in bfloat16, so the bar is its rounding."""
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), None
    theirs = nn.Parameter(ours.detach().clone())
    mine = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.1, iteration=iteration)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = ours.detach().clone()
    for _ in range(3):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step(), reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() / moved < 0.02


def test_orthogonalise_brings_singular_values_near_one_and_keeps_directions():
    torch.manual_seed(1)
    u, _, vh = torch.linalg.svd(torch.randn(2, 40, 24), full_matrices=False)
    singular = torch.logspace(-1, 1, 24).expand(2, 24)
    out = orthogonalise(u * singular[:, None] @ vh)
    values = torch.linalg.svdvals(out)
    assert values.max() < 1.3 and values.min() > 0.5
    inner = (u.mT @ out @ vh.mT)
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4


def test_the_iteration_keeps_to_its_dtype():
    """In bfloat16 the result is a number of bfloat16, kept as float32; without being told the CPU stays in float32."""
    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    low, full = orthogonalise(matrix, dtype=torch.bfloat16), orthogonalise(matrix)
    assert low.dtype == full.dtype == torch.float32
    assert torch.equal(low, low.bfloat16().float()) and not torch.equal(full, full.bfloat16().float())
    assert (low - full).norm() / full.norm() < 0.05


def test_muon_update_has_the_stated_size():
    parameter = nn.Parameter(torch.zeros(64, 256))
    parameter.grad = torch.randn(64, 256)
    Muon([parameter], lr=0.5).step()
    assert parameter.detach().square().mean().sqrt().item() == pytest.approx(0.2 * 0.5, rel=0.2)


def test_matrices_of_one_shape_move_as_if_alone():
    torch.manual_seed(0)
    together = [nn.Parameter(torch.randn(16, 8)) for _ in range(3)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    for a, b in zip(together, alone):
        a.grad = torch.randn(16, 8)
        b.grad = a.grad.clone()
    Muon(together, lr=0.1).step()
    for parameter in alone:
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("cautious", [False, True])
def test_a_skipped_step_changes_no_bit_whatever_the_gradient(cautious):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 4))
    optimizer = Muon([parameter], lr=0.1, weight_decay=0.5, cautious=cautious)
    for skip in (0.0, 1.0):
        before, parameter.grad = parameter.detach().clone(), torch.randn(6, 4)
        if skip:
            momentum = optimizer.state[parameter]["momentum"].clone()
            parameter.grad[1, 2], parameter.grad[0, 0] = torch.nan, torch.inf
        optimizer.found_inf = torch.tensor(skip)
        optimizer.step()
        assert torch.equal(parameter, before) == bool(skip)
    assert torch.equal(optimizer.state[parameter]["momentum"], momentum)


def test_a_flag_that_is_down_changes_no_bit_of_a_step():
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(6, 4)) for _ in range(2)]
    parameters[1].data.copy_(parameters[0].data)
    optimizers = [Muon([p], lr=0.1, weight_decay=0.5) for p in parameters]
    optimizers[1].found_inf = torch.tensor(0.0)
    for _ in range(2):
        gradient = torch.randn(6, 4)
        for parameter, optimizer in zip(parameters, optimizers):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(*parameters)


def test_cautious_decay_spares_the_weights_that_the_update_opposes():
    """The oracle moves without decay, then takes lr x decay x weight off wherever weight and update have one sign."""
    torch.manual_seed(0)
    start, gradient, lr, decay = torch.randn(5, 7), torch.randn(5, 7), 0.1, 0.5
    moved = {}
    for settings in ({"weight_decay": 0.0}, {"weight_decay": decay, "cautious": True}):
        parameter = nn.Parameter(start.clone())
        parameter.grad = gradient.clone()
        Muon([parameter], lr=lr, **settings).step()
        moved[len(settings)] = parameter.detach()
    expected = moved[1].clone()
    for i in range(5):
        for j in range(7):
            falls = (start[i, j] - moved[1][i, j]) * start[i, j] > 0  # the update pulls the weight towards 0
            expected[i, j] -= lr * decay * start[i, j] if falls else 0.0
    torch.testing.assert_close(moved[2], expected)
    assert not torch.equal(expected, moved[1])
