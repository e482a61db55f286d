"""The loss scale and the moving average, which live on the device beside the optimizers."""

import pytest
import torch
from torch import nn

from cram.ema import EMA
from cram.loss_scale import LossScale
from cram.model import build
from cram.schema import Model


def flags(text: str) -> list[torch.Tensor]:
    """"+" a step taken, "-" one skipped."""
    return [torch.tensor(1.0 if mark == "-" else 0.0) for mark in text]


def test_loss_scale_halves_and_recovers():
    scale = LossScale(enabled=True, patience=3)
    expected = {"-": 32768, "+++": 65536, "++-": 32768, "++": 32768, "+": 65536, "-" * 40: 1, "+" * 100: 2**24}
    for events, value in expected.items():
        for skip in flags(events):
            scale.update(skip)
        assert scale.scale.item() == value, events


def test_loss_scale_is_one_tensor_throughout_and_1_when_off():
    on, off = LossScale(enabled=True), LossScale(enabled=False)
    for scale in (on, off):
        held = scale.scale
        scale.update(torch.tensor(1.0))
        scale.load_state_dict(scale.state_dict())
        assert scale.scale is held and held.dtype == torch.float32 and held.shape == ()
    assert off.scale == 1.0


def test_a_loss_scale_continues_where_it_was_saved():
    straight, first, second = (LossScale(enabled=True, patience=5) for _ in range(3))
    events = flags("++-++++++")
    for skip in events:
        straight.update(skip)
    for skip in events[:6]:
        first.update(skip)
    saved = first.state_dict()
    first.update(torch.tensor(1.0))  # no longer concerns what was saved
    second.load_state_dict(saved)
    for skip in events[6:]:
        second.update(skip)
    assert second.state_dict() == straight.state_dict() == {"scale": 65536.0, "good_steps": 1}


def small():
    return build(Model(layers=2, width=16, heads=2), vocab_size=32, causal=True, seed=0)


def move(model: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += by


def test_ema_equals_the_sum_written_out():
    model, decay = small(), 0.15
    start = model.final_norm.weight.detach().double().clone()
    ema, expected, weight = EMA(model, decay), start.clone(), start.clone()
    for by, used in ((0.5, 1 / 10), (-2.0, 0.15), (3.0, 0.15)):  # 2 / 11 in the second update is more than the decay
        move(model, by)
        ema.update(model)
        weight = weight + by
        expected = used * expected + (1 - used) * weight
    torch.testing.assert_close(ema.weights()["final_norm.weight"].double(), expected, rtol=1e-6, atol=0)


def test_ema_holds_every_parameter_once_and_loads_into_a_model():
    model, other = small(), small()
    ema = EMA(model, 0.5)
    move(model, 1.0)
    ema.update(model)
    assert sum(average.numel() for average in ema.averages.values()) == model.parameter_count()
    assert set(ema.weights()) == set(model.state_dict())  # tied names included
    other.load_state_dict(ema.weights())
    for average, before, after in zip(other.parameters(), small().parameters(), model.parameters()):
        torch.testing.assert_close(average, before / 10 + after * 9 / 10)


def test_an_average_continues_where_it_was_saved():
    model = small()
    first, second = EMA(model, 0.9), EMA(model, 0.9)
    move(model, 1.0)
    first.update(model)
    second.load_state_dict(first.state_dict())
    assert second.updates == 1
    for ema in (first, second):
        move(model, 0.25)
        ema.update(model)
        move(model, -0.25)
    assert all(torch.equal(a, b) for a, b in zip(first.averages.values(), second.averages.values()))
    with pytest.raises(KeyError):
        second.load_state_dict({})


def test_stacked_layers_take_the_average_of_those_they_copy():
    model = small()
    ema = EMA(model, 0.5)
    move(model.blocks[0], 1.0)
    ema.update(model)
    pairs = list(zip(model.blocks[0].parameters(), model.blocks[1].parameters()))
    ema.copy(model, pairs)
    weights = ema.weights()
    for name, _ in model.blocks[0].named_parameters():
        assert torch.equal(weights[f"blocks.1.{name}"], weights[f"blocks.0.{name}"])
    move(model.blocks[1], 1.0)
    ema.update(model)
    assert not torch.equal(weights["blocks.1.attention.q.weight"], weights["blocks.0.attention.q.weight"])
