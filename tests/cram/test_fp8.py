"""8-bit products against float32: the bounds of the formats, the dequantised twin, and a model that trains."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cram import fp8
from cram.model import build
from cram.ops import Documents
from cram.schema import Model

# (format, relative error of rounding, half the spacing below the smallest normal number, largest number)
FORMATS = [(torch.float8_e4m3fn, 2**-4, 2**-10, 448.0), (torch.float8_e5m2, 2**-3, 2**-17, 57344.0)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def back(x):
    return x.data.float() * x.unit


@pytest.mark.parametrize("dtype, relative, absolute, top", FORMATS)
@pytest.mark.parametrize("size", [1e-10, 1.0, 1e30])
def test_rounding_stays_within_the_format(dtype, relative, absolute, top, size):
    x = (draw(64, 64) * torch.exp(3 * draw(64, 64, seed=1))).double() * size  # many orders of magnitude
    quantised = fp8.quantise(x.float(), dtype)
    assert quantised.data.float().abs().max() == top
    error = (back(quantised).double() - x).abs()
    share = error / (relative * x.abs()).clamp(min=absolute * x.abs().max() / top)
    assert 0.85 < share.max() < 1 + 1e-4  # reached just above the middle of two neighbours, but for 1 part in 9 or 17


def test_quantising_knows_zeros_layouts_and_what_is_not_finite():
    zeros = fp8.quantise(torch.zeros(2, 3), fp8.FORWARD)
    assert not back(zeros).any() and zeros.unit.isfinite() and zeros.unit.dtype == torch.float32
    assert fp8.quantise(draw(3, 5).t(), fp8.FORWARD).data.is_contiguous()
    for bad in (float("inf"), float("nan")):
        for dtype in (fp8.FORWARD, fp8.BACKWARD):
            assert back(fp8.quantise(torch.tensor([bad, 1.0]), dtype)).isnan().any()


@pytest.mark.parametrize("tokens", [32, 33, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_three_products_equal_those_of_the_dequantised_numbers(tokens, dtype):
    x_ND, w_FD = draw(tokens, 48).to(dtype).requires_grad_(), draw(64, 48, seed=1).requires_grad_()
    dy_NF = 1e-4 * draw(tokens, 64, seed=2)
    y_NF = fp8.Product.apply(x_ND, w_FD, dtype)
    y_NF.backward(dy_NF.to(dtype))
    x, w = back(fp8.quantise(x_ND.detach(), fp8.FORWARD)), back(fp8.quantise(w_FD.detach(), fp8.FORWARD))
    dy = back(fp8.quantise(dy_NF.to(dtype), fp8.BACKWARD))
    rounding = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 1e-3}
    assert y_NF.dtype == x_ND.grad.dtype == dtype and w_FD.grad.dtype == torch.float32
    torch.testing.assert_close(y_NF.float(), x @ w.T, **rounding)
    torch.testing.assert_close(x_ND.grad.float() * 1e4, dy @ w * 1e4, **rounding)
    torch.testing.assert_close(w_FD.grad * 1e4, dy.T @ x * 1e4, rtol=1e-4, atol=1e-4)


def test_products_are_as_near_to_float32_as_the_formats_allow():
    """|error| <= sum |a| |b| (relative errors added) elementwise; on random numbers rounding errors mostly cancel."""
    x, w, dy = draw(64, 96), draw(128, 96, seed=1), draw(64, 128, seed=2)
    layer, exact = nn.Linear(96, 128, bias=False), nn.Linear(96, 128, bias=False)
    layer.__class__ = fp8.Float8Linear
    found = []
    for linear in (layer, exact):
        linear.weight.data = w.clone()
        x_ND = x.clone().requires_grad_()
        (y := linear(x_ND)).backward(dy)
        found.append((y.detach(), x_ND.grad, linear.weight.grad))
    sizes = (x.abs() @ w.abs().T, dy.abs() @ w.abs(), dy.abs().T @ x.abs())
    for ours, theirs, size, relative in zip(*found, sizes, (2 * 2**-4, 2**-3 + 2**-4, 2**-3 + 2**-4), strict=True):
        assert ((ours - theirs).abs() <= 1.1 * relative * size).all()
        assert 0.01 < (ours - theirs).norm() / theirs.norm() < 0.08


def test_the_layouts_are_those_the_tensor_cores_take(monkeypatch):
    """Row-major times column-major, the summed axis a multiple of 16, never e5m2 twice: what cuBLAS demands."""
    seen, scaled_mm = [], torch._scaled_mm

    def watch(a, b, **options):
        seen.append((a.dtype, b.dtype))
        assert a.is_contiguous() and b.t().is_contiguous() and a.shape[1] % 16 == 0 and b.shape[1] % 16 == 0
        assert options["scale_a"].numel() == options["scale_b"].numel() == 1
        return scaled_mm(a, b, **options)

    monkeypatch.setattr(torch, "_scaled_mm", watch)
    x_DN, w_FD = draw(48, 33).requires_grad_(), draw(64, 48).requires_grad_()
    fp8.Product.apply(x_DN.t(), w_FD, torch.float32).backward(draw(64, 33).t())
    assert seen == [(fp8.FORWARD, fp8.FORWARD), (fp8.BACKWARD, fp8.FORWARD), (fp8.BACKWARD, fp8.FORWARD)]


def make(**changes):
    return build(Model(**{"layers": 2, "width": 32, "heads": 4} | changes), 50, causal=True, seed=0)


def test_converting_changes_no_parameter_and_says_what_stays():
    model = make(value_embeddings=True, mlp_width=48)
    before, ids = dict(model.named_parameters()), torch.arange(32)
    expected = model.flops_per_token(16)
    with pytest.warns(UserWarning, match="1 linear layers stay as they are, a side being no multiple of 16: .*gate"):
        assert fp8.convert(model) == ["blocks.1.attention.value_embedding.gate"]
    after = dict(model.named_parameters())
    assert list(before) == list(after) and all(before[name] is after[name] for name in before)
    assert model.flops_per_token(16) == expected
    layers = [module for module in model.modules() if isinstance(module, fp8.Float8Linear)]
    assert len(layers) == 2 * 7 and type(model.head) is nn.Linear
    with pytest.warns(UserWarning):
        assert len(fp8.convert(model)) == 1  # a second time changes nothing
    with torch.autocast("cpu", torch.bfloat16):
        assert layers[0](draw(32, 32)).dtype == torch.bfloat16
    biased = nn.Linear(32, 32)
    biased.__class__ = fp8.Float8Linear
    assert torch.equal(biased(draw(3, 32)), fp8.Product.apply(draw(3, 32), biased.weight, torch.float32) + biased.bias)
    make(value_embeddings=True, mlp_width=48).load_state_dict(model.state_dict())
    assert model(ids, Documents(None, None, 16)).isfinite().all()


def test_a_model_learns_as_in_float32():
    ids, last = torch.randint(0, 50, (64,), generator=torch.Generator().manual_seed(0)), []
    for eight_bit in (False, True):
        model = make(bias=True)
        if eight_bit:
            assert fp8.convert(model) == []
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(20):
            loss = F.cross_entropy(model.logits(model(ids, Documents(None, None, 16)))[:-1], ids[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        last.append(loss.item())
    assert last[0] < 2 and last[1] == pytest.approx(last[0], rel=0.05) and last[1] != last[0]


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_it_has_the_same_bits(recompute, autocast):
    model, ids, found = make(zero_init=False), torch.arange(33), []
    fp8.convert(model)
    for model.recompute in ("none", recompute):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.logits(model(ids, Documents(None, None, 33))).logsumexp(-1).sum()
        found.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_compiled_it_has_the_same_bits():
    torch._dynamo.reset()  # its limit of graphs counts those of other tests
    layer, found = nn.Linear(32, 48), []
    layer.__class__ = fp8.Float8Linear
    for forward in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)):
        x_ND = draw(33, 32).requires_grad_()
        y_NF = forward(x_ND)
        found.append([y_NF, *torch.autograd.grad(y_NF.square().sum(), [x_ND, layer.weight, layer.bias])])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_a_card_must_have(monkeypatch):
    assert fp8.why_not("cpu") == "needs a CUDA card of compute capability 8.9 (Ada, Hopper) or newer"
    for capability, runs in (((8, 6), False), ((8, 9), True), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        assert (fp8.why_not("cuda") is None) == runs
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    assert "this card has 8.6" in fp8.why_not("cuda")
