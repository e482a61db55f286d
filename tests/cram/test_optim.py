"""Groups partition the model; Muon and AdamW against torch's own."""

import pytest
import torch
from torch import nn

from cram.model import build
from cram.optim import LossScale, Muon, finish_gradients, make_optimizers, orthogonalise, partition, set_learning_rate
from cram.schema import Model, Optimizer


def small(**changes):
    return build(Model(layers=2, width=32, heads=2, **changes), vocab_size=64, causal=True, seed=0)


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"bias": True, "norm": "layernorm"}, {"position": "scaled_sinusoidal"}])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_groups_partition_the_parameters(changes, kind):
    model = small(**changes)
    optimizers = make_optimizers(model, Optimizer(type=kind))
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for p in partition(model)["matrices"])
    undecayed = [p for o in optimizers for g in o.param_groups if g["weight_decay"] == 0 for p in g["params"]]
    assert undecayed and all(p.ndim == 1 for p in undecayed)


@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_muon_equals_torch_muon(shape):
    """The oracle is torch.optim.Muon with the same update size; it iterates in bfloat16, so the bar is its rounding."""
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(shape)), None
    theirs = nn.Parameter(ours.detach().clone())
    mine = Muon([ours], lr=0.1, momentum=0.9, weight_decay=0.1)
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


def test_learning_rate_share_scales_every_group_from_its_peak():
    optimizers = make_optimizers(small(), Optimizer(lr=0.1, embedding_lr=0.3, muon_lr=0.2))
    for share in (0.5, 0.0, 1.0):
        set_learning_rate(optimizers, share)
        rates = sorted(g["lr"] for o in optimizers for g in o.param_groups)
        assert rates == pytest.approx([0.1 * share, 0.2 * share, 0.3 * share])


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_clipping_equals_torch(scale):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(7))]
    reference = [nn.Parameter(p.detach().clone()) for p in parameters]
    for p, r in zip(parameters, reference):
        r.grad = torch.randn(p.shape)
        p.grad = r.grad * scale
    norm = finish_gradients(parameters, scale, clip=0.5)
    expected = torch.nn.utils.clip_grad_norm_(reference, 0.5)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close([p.grad for p in parameters], [r.grad for r in reference])


def test_loss_scale_halves_and_recovers():
    scale = LossScale(enabled=True, patience=3)
    scale.update(finite=False)
    assert scale.scale == 32768
    for _ in range(3):
        scale.update(finite=True)
    assert scale.scale == 65536
    off = LossScale(enabled=False)
    off.update(finite=False)
    assert off.scale == 1.0


def test_every_setting_reaches_its_optimizer():
    config = Optimizer(lr=0.1, muon_lr=0.2, beta1=0.7, beta2=0.8, eps=1e-3, momentum=0.6, weight_decay=0.3)
    model = small()
    muon, adamw = make_optimizers(model, config)
    assert all(group["betas"] == (0.7, 0.8) and group["eps"] == 1e-3 for group in adamw.param_groups)
    assert [group["momentum"] for group in muon.param_groups] == [0.6]
    decay = {id(p): g["weight_decay"] for o in (muon, adamw) for g in o.param_groups for p in g["params"]}
    assert all(decay[id(p)] == (0.3 if p.ndim == 2 else 0.0) for p in model.parameters())


def test_a_loss_scale_continues_where_it_was_saved():
    straight, first, second = (LossScale(enabled=True, patience=5) for _ in range(3))
    events = [True, True, False, True, True, True, True, True, True]
    for finite in events:
        straight.update(finite)
    for finite in events[:6]:
        first.update(finite)
    second.load_state_dict(first.state_dict())
    for finite in events[6:]:
        second.update(finite)
    assert second.state_dict() == straight.state_dict() == {"scale": 65536.0, "good_steps": 1}
