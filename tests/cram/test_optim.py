"""Groups partition the model; all optimizers as one: skipping, exact continuation, stacking, gradients."""

import copy
import io
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cram.ema import EMA
from cram.errors import CramError
from cram.loss_scale import LossScale
from cram.model import build
from cram.optim import Optimizers, finish_gradients, partition
from cram.schema import Model, Optimizer

ONE, ZERO = torch.tensor(1.0), torch.tensor(0.0)
KINDS = {"adamw": dict(type="adamw"), "muon": dict(type="muon"), "adalomo": dict(type="adalomo"),
         "8-bit": dict(type="adamw", state_bits=8), "offload": dict(type="adamw", offload=True),
         "muon, offload": dict(type="muon", offload=True), "cautious adamw": dict(type="adamw", cautious=True),
         "cautious muon": dict(type="muon", cautious=True), "cautious adalomo": dict(type="adalomo", cautious=True),
         "cautious offload": dict(type="adamw", offload=True, cautious=True)}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def needs_package(request):
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("kind") == "8-bit":
        pytest.importorskip("bitsandbytes")


def settings(kind: str) -> Optimizer:
    return Optimizer(lr=0.01, muon_lr=0.02, weight_decay=0.1, **KINDS[kind])


def small(**changes):
    return build(Model(**{"layers": 2, "width": 64, "heads": 2} | changes), vocab_size=64, causal=True, seed=0)


def set_gradients(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def steps(model, optimizers, numbers, skip=ZERO) -> None:
    for number in numbers:
        set_gradients(model, number)
        optimizers.set_learning_rate(1 / (1 + number))
        optimizers.step(skip)
        optimizers.zero_grad()


def on_disk(state):
    """Saved and loaded again, as a checkpoint is."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def bits(state) -> bytes:
    """What torch.save writes of every number in a state."""
    if isinstance(state, dict):
        return b"".join(str(key).encode() + bits(value) for key, value in state.items())
    if isinstance(state, (list, tuple)):
        return b"".join(bits(value) for value in state)
    return state.detach().numpy().tobytes() if torch.is_tensor(state) else str(state).encode()


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"bias": True, "norm": "layernorm"},
                                     {"position": "scaled_sinusoidal"}])
@pytest.mark.parametrize("kind", ["adamw", "muon", "adalomo", "8-bit"])
def test_groups_partition_the_parameters(changes, kind):
    model = small(**changes)
    groups = list(Optimizers(model, settings(kind)).groups())
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert all(p.ndim == 2 for p in partition(model)["matrices"])
    undecayed = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert undecayed and all(p.ndim == 1 for p in undecayed)


def test_learning_rate_share_scales_every_group_from_its_peak():
    optimizers = Optimizers(small(), Optimizer(lr=0.1, embedding_lr=0.3, muon_lr=0.2))
    for share in (0.5, 0.0, 1.0):
        optimizers.set_learning_rate(share)
        assert sorted(group["lr"] for group in optimizers.groups()) == pytest.approx([0.1 * share, 0.2 * share, 0.3 * share])
        assert optimizers.rates() == pytest.approx({"lr": 0.1 * share, "muon_lr": 0.2 * share})
    assert Optimizers(small(), Optimizer(type="adamw", lr=0.1)).rates() == {"lr": 0.1, "muon_lr": None}


def test_every_setting_reaches_its_optimizer():
    config = Optimizer(lr=0.1, muon_lr=0.2, beta1=0.7, beta2=0.8, eps=1e-3, momentum=0.6, weight_decay=0.3, cautious=True)
    model = small()
    muon, adamw = Optimizers(model, config).members
    assert all(group["betas"] == (0.7, 0.8) and group["eps"] == 1e-3 for group in adamw.param_groups)
    assert [(group["momentum"], group["cautious"]) for group in muon.param_groups] == [(0.6, True)]
    groups = [*muon.param_groups, *adamw.param_groups]
    decay = {id(p): group.get("cautious_decay", group["weight_decay"]) for group in groups for p in group["params"]}
    assert all(decay[id(p)] == (0.3 if p.ndim == 2 else 0.0) for p in model.parameters())
    assert all(group["weight_decay"] == 0 for group in adamw.param_groups)  # the kernel leaves decay to us


@every_kind
def test_a_saved_run_continues_bit_for_bit(kind):
    straight, resumed = small(), small()
    whole = Optimizers(straight, settings(kind))
    steps(straight, whole, range(6))

    first = Optimizers(resumed, settings(kind))
    steps(resumed, first, range(3))
    weights, state = on_disk(resumed.state_dict()), on_disk(first.state_dict())
    other = small()
    second = Optimizers(other, settings(kind))
    steps(other, second, [9])  # what it did before is forgotten
    second.load_state_dict(state)  # in either order
    other.load_state_dict(weights)
    assert second.rates() == first.rates()
    steps(other, second, range(3, 6))
    assert bits(other.state_dict()) == bits(straight.state_dict())
    assert bits(second.state_dict()) == bits(whole.state_dict())


@every_kind
def test_a_skipped_step_changes_no_bit_even_when_no_gradient_is_a_number(kind):
    model = small()
    optimizers = Optimizers(model, settings(kind))
    steps(model, optimizers, range(2))
    before = bits(model.state_dict()), bits([o.state_dict()["state"] for o in optimizers.members])
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizers.step(ONE)
    assert (bits(model.state_dict()), bits([o.state_dict()["state"] for o in optimizers.members])) == before


@every_kind
def test_a_skipped_step_leaves_no_trace_in_what_follows(kind):
    """Also when it is the very first, which makes the states."""
    models = [small(), small()]
    for model, skipped in zip(models, ([], [7])):
        optimizers = Optimizers(model, settings(kind))
        steps(model, optimizers, skipped, ONE)
        steps(model, optimizers, range(2))
        steps(model, optimizers, skipped, ONE)
        steps(model, optimizers, range(2, 4))
    assert bits(models[0].state_dict()) == bits(models[1].state_dict())


class NeverAsks(TorchDispatchMode):
    """Fails where the host would read a tensor's value, which on a card makes it wait."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "8-bit"])
def test_the_host_never_waits_for_a_value(kind):
    model = small()
    optimizers, scale, ema = Optimizers(model, settings(kind)), LossScale(enabled=True), EMA(model, 0.9)
    for number in range(2):
        set_gradients(model, number)
        with NeverAsks():
            finish_gradients(list(model.parameters()), scale.scale, clip=1.0)
            optimizers.step(ONE if number else ZERO)
            scale.update(ONE if number else ZERO)
            ema.update(model)
    with pytest.raises(AssertionError, match="waits"), NeverAsks():
        bool(ONE + 1)


def test_offload_equals_the_plain_step_bit_for_bit():
    models = [small(), small()]
    optimizers = [Optimizers(model, settings(kind)) for model, kind in zip(models, ("adamw", "offload"))]
    for model, optimizer in zip(models, optimizers):
        steps(model, optimizer, range(3))
    assert bits(models[0].state_dict()) == bits(models[1].state_dict())
    masters = sum(p.nbytes for p in models[1].parameters())
    assert optimizers[1].memory() == optimizers[0].memory() + masters
    assert optimizers[1].memory("cuda") == 0


def test_memory_is_two_moments_for_adamw_one_for_muon_and_rows_and_columns_for_adalomo():
    model = small()
    kinds = {kind: sum(p.nbytes for p in parameters) for kind, parameters in partition(model).items()}
    tensors, size = len(list(model.parameters())), {}
    for kind in ("adamw", "muon", "adalomo"):
        trained = small()
        optimizers = Optimizers(trained, settings(kind))
        steps(trained, optimizers, [0])
        size[kind] = optimizers.memory()
    counters = 4 * tensors
    assert size["adamw"] == 2 * sum(kinds.values()) + counters
    assert size["muon"] == kinds["matrices"] + 2 * (kinds["embeddings"] + kinds["vectors"]) + 4 * (
        tensors - len(partition(model)["matrices"]))
    assert size["adalomo"] == kinds["vectors"] + counters + sum(4 * sum(p.shape) for p in model.parameters() if p.ndim == 2)


@pytest.mark.parametrize("kind", ["8-bit"])
def test_8_bit_moments_take_a_quarter_of_the_room_and_spare_the_embeddings(kind):
    model, plain = small(), small()
    low, high = Optimizers(model, settings(kind)), Optimizers(plain, settings("adamw"))
    for one, optimizers in ((model, low), (plain, high)):
        steps(one, optimizers, range(2))
    matrices = sum(p.nbytes for p in partition(model)["matrices"])
    assert high.memory() - low.memory() == pytest.approx(2 * matrices * 3 / 4, rel=0.1)
    assert torch.equal(model.embedding.weight, plain.embedding.weight)
    for ours, theirs, start in zip(model.parameters(), plain.parameters(), small().parameters()):
        assert (ours - theirs).norm() < 0.1 * (theirs - start).norm() + 1e-9


def test_8_bits_without_the_package_name_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(CramError, match="pip install 'bitsandbytes"):
        Optimizers(small(), settings("8-bit"))


@every_kind
def test_stacked_layers_take_the_state_of_those_they_copy(kind):
    """After copying block 0 onto block 1, equal gradients keep the two equal."""
    model = small()
    optimizers = Optimizers(model, settings(kind))
    lower, upper = ([*block.parameters()] for block in model.blocks)
    steps(model, optimizers, range(2))
    with torch.no_grad():
        for source, target in zip(lower, upper):
            target.copy_(source)
    optimizers.copy_state(list(zip(lower, upper)))
    for _ in range(2):
        set_gradients(model, 5)
        for source, target in zip(lower, upper):
            target.grad = source.grad.clone()
        optimizers.step(ZERO)
        assert all(torch.equal(source, target) for source, target in zip(lower, upper))
    set_gradients(model, 6)  # and from there each goes its own way: nothing is shared
    optimizers.step(ZERO)
    states = [state for o in optimizers.members for state in o.state.values()]
    held = [x.data_ptr() for state in states for name, x in state.items() if torch.is_tensor(x) and "qmap" not in name]
    assert len(held) == len(set(held))


def test_a_stacked_layer_without_a_source_state_starts_afresh():
    model = small()
    optimizers = Optimizers(model, settings("muon"))
    source, target = model.blocks[0].mlp.up.weight, model.blocks[1].mlp.up.weight
    target.grad = torch.ones_like(target)
    optimizers.step(ZERO)
    optimizers.copy_state([(source, target)])
    assert target not in optimizers.members[0].state


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_clipping_equals_torch(scale):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(2))]
    reference = copy.deepcopy(parameters)
    for p, r in zip(parameters[:2], reference):
        r.grad = torch.randn(p.shape)
        p.grad = r.grad * scale
    norm = finish_gradients(parameters, torch.tensor(scale), clip=0.5)
    expected = torch.nn.utils.clip_grad_norm_(reference, 0.5)
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close([p.grad for p in parameters[:2]], [r.grad for r in reference[:2]])


def test_without_a_clip_only_the_scale_is_undone_and_without_gradients_the_norm_is_0():
    parameter = nn.Parameter(torch.zeros(2))
    assert finish_gradients([parameter], torch.tensor(8.0), clip=None) == 0
    parameter.grad = torch.tensor([24.0, 32.0])
    assert finish_gradients([parameter], torch.tensor(8.0), clip=None) == 5
    assert parameter.grad.tolist() == [3, 4]
