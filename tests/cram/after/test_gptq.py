"""GPTQ against the paper's algorithm written out slowly in float64, and against rounding to nearest."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cram.after.gptq import DAMPING, gptq, gptq_blocks, second_moment
from cram.after.quantized import matrices
from cram.after.round_to_nearest import decode, encode, find_levels
from cram.errors import CramError
from cram.layers import View
from cram.model import build
from cram.ops import Documents
from cram.schema import Model


def problem(outputs, inputs, seed=0, tokens=400):
    """A matrix, and inputs that go together as a model's do: mixtures of fewer causes, some channels loud."""
    generator = torch.Generator().manual_seed(seed)
    causes, mix, loud = (torch.randn(*shape, generator=generator) for shape in (
        (tokens, inputs // 2), (inputs // 2, inputs), (inputs,)))
    x_NC = causes @ mix * loud.exp() + 0.1 * torch.randn(tokens, inputs, generator=generator)
    return torch.randn(outputs, inputs, generator=generator), x_NC


def rounded(weight, bits, group):
    levels = find_levels(weight, bits, group)
    return encode(weight, levels, bits), levels


def lost(weight, quantized, x_NC):
    return float(((weight - decode(*quantized)) @ x_NC.T).square().sum())


def slow(weight, hessian, bits, group):
    """Section 3 of the paper: after each column the inverse Hessian of the columns that are left, by elimination."""
    weight, hessian = weight.double().clone(), hessian.double().clone()
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    inverse, codes = torch.linalg.inv(hessian), []
    for column in range(weight.shape[1]):
        if column % group == 0:
            levels = find_levels(weight[:, column:column + group], bits, group)
        w = weight[:, column:column + 1]
        codes.append(encode(w, levels, bits))
        weight = weight - (w - decode(codes[-1], levels, torch.float64)) / inverse[column, column] * inverse[column][None]
        inverse = inverse - inverse[:, column:column + 1] @ inverse[column:column + 1] / inverse[column, column]
    return torch.cat(codes, 1)


@pytest.mark.parametrize("bits", [4, 3])
@pytest.mark.parametrize("group", [8, 32])
def test_codes_are_those_of_the_slow_algorithm(bits, group):
    weight, x_NC = problem(24, 32)
    hessian = x_NC.T.double() @ x_NC.double()
    codes, _ = gptq(weight, hessian, bits, group)
    assert (codes == slow(weight, hessian, bits, group)).float().mean() > 0.995  # float32 may fall to the other side
    assert (codes != rounded(weight, bits, group)[0]).any()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group", [16, 64])
def test_what_it_is_for_correlated_inputs(bits, group):
    """||(W - Wq) X||^2, the calibration objective, is well below that of rounding to nearest; greedy, it may rarely not be."""
    ratios = []
    for seed in range(20):
        weight, x_NC = problem(32, 64, seed)
        found = lost(weight, gptq(weight, x_NC.T.double() @ x_NC.double(), bits, group), x_NC)
        ratios.append(float(found / lost(weight, rounded(weight, bits, group), x_NC)))
    assert sum(ratios) / 20 < 0.75 and max(ratios) < 1.05


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([1e-6, 1.0, 1e6]))
def test_without_correlation_it_is_rounding_to_nearest(seed, factor):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(16, 64, generator=generator)
    hessian = torch.diag(torch.rand(64, generator=generator).double() * factor)
    (codes, levels), (nearest, wanted) = gptq(weight, hessian, 4, 32), rounded(weight, 4, 32)
    assert torch.equal(codes, nearest) and torch.equal(levels.scale, wanted.scale) and torch.equal(levels.low, wanted.low)


def test_inputs_that_never_came_and_factors_of_the_hessian():
    weight, x_NC = problem(8, 32)
    x_NC[:, 5] = 0
    hessian = x_NC.T.double() @ x_NC.double()
    codes, levels = gptq(weight, hessian, 4, 16)
    assert torch.equal(codes, gptq(weight, 1000 * hessian, 4, 16)[0])
    assert (decode(codes, levels)[:, 5] - weight[:, 5]).abs().max() <= levels.scale[:, 0].max() * 0.51
    codes, levels = gptq(weight, torch.zeros_like(hessian), 4, 16)
    assert torch.equal(codes, rounded(weight, 4, 16)[0])
    with pytest.raises(CramError, match="not finite"):
        gptq(weight, hessian * torch.nan, 4, 16)


@pytest.mark.parametrize("changes", [{}, {"mlp": "relu2", "kv_heads": 2, "bias": True},
                                     {"value_embeddings": True, "residual_scalars": True, "document_mask": False,
                                      "bigram_rows": 31}])
def test_every_matrix_sees_what_the_rounded_ones_before_it_give(changes):
    """The Hessians are those of a model whose earlier matrices are rounded already; later ones do not matter."""
    shape = {"layers": 2, "width": 32, "heads": 2, "zero_init": False, "init_std": 0.2}
    model = build(Model(**shape | changes), 50, True, seed=0)
    ids = torch.randint(5, 50, (48,), generator=torch.Generator().manual_seed(0))
    documents = Documents.from_lengths([20, 28])
    view = View(model.config, ids, documents, causal=True, window=None, rope_base=model.rope_base, backend="sdpa")
    found, codes_by_name = [], {}

    def replace(block, name, codes, levels):
        linear = block.get_submodule(name)
        hessian = second_moment(linear, [lambda: model(ids, documents)])
        assert torch.equal(gptq(linear.weight, hessian, 4, 16)[0], codes), name
        found.append(name)
        codes_by_name[id(block), name] = (linear, decode(codes, levels))
        if name.split(".")[1] not in ("q", "k", "gate"):
            flush()

    def flush():  # those that read the same inputs are rounded together
        for linear, weight in codes_by_name.values():
            linear.weight.data.copy_(weight)
        codes_by_name.clear()

    with torch.no_grad():
        gptq_blocks(model, [view], 4, dict.fromkeys(matrices(model), 16), replace)
    gate = ["mlp.gate"] if model.config.mlp == "geglu" else []
    assert found == 2 * ["attention.q", "attention.k", "attention.v", "attention.out", *gate, "mlp.up", "mlp.down"]
