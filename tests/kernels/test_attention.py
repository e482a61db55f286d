"""Attention over packed documents, every back end that runs here, against a float64 loop over documents."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cram._kernels import attention_twin
from cram._kernels.attention import FUSED_ROW, attention_backward, attention_forward
from cram.ops import Documents, QKNorm, Rope, attention, sight
from tests.kernels.attention_cases import cases, excess

HERE = ("sdpa", "triton")  # triton: its twin on the CPU


def pack(lengths, row):
    """Documents laid end to end, cut at row borders, the last row filled with single-token documents."""
    starts, at = [], 0
    for length in lengths:
        for position in range(at, at + length):
            if position == at or position % row == 0:
                starts.append(position)
        at += length
    n = max(row, math.ceil(at / row) * row)
    starts += range(at, n)
    ends = [*starts[1:], n]
    start = torch.zeros(n, dtype=torch.int32)
    end = torch.zeros(n, dtype=torch.int32)
    for a, b in zip(starts, ends):
        start[a:b], end[a:b] = a, b
    return Documents(start, end, row), list(zip(starts, ends))


def oracle(q, k, v, spans, causal, window, scale):
    """One softmax a query, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    groups = q.shape[1] // k.shape[1]
    for a, b in spans:
        for i in range(a, b):
            low = a if window is None else max(a, i - window)
            high = i + 1 if causal else b if window is None else min(b, i + window + 1)
            for h in range(q.shape[1]):
                scores = k[low:high, h // groups] @ q[i, h] * scale
                out[i, h] = torch.softmax(scores, 0) @ v[low:high, h // groups]
    return out


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), row=st.sampled_from([8, 16, 32]), causal=st.booleans(),
       window=st.sampled_from([None, 0, 3, 100]), heads=st.sampled_from([(2, 2), (4, 2), (4, 1)]), seed=st.integers(0, 9),
       backend=st.sampled_from(HERE))
def test_forward_equals_the_oracle(lengths, row, causal, window, heads, seed, backend):
    documents, spans = pack(lengths, row)
    generator = torch.Generator().manual_seed(seed)
    n = len(documents.start_N)
    q = torch.randn(n, heads[0], 8, generator=generator)
    k, v = torch.randn(n, heads[1], 8, generator=generator), torch.randn(n, heads[1], 8, generator=generator)
    out = attention(q, k, v, documents=documents, causal=causal, window=window, backend=backend)
    torch.testing.assert_close(out.double(), oracle(q, k, v, spans, causal, window, 8 ** -0.5), rtol=1e-5, atol=1e-5)


@settings(max_examples=120, deadline=None)
@given(case=cases)
def test_the_twin_keeps_the_error_rule(case):
    """Output and all gradients, with norm, rotation, window, softcap, groups and padding, against autograd in float64."""
    problem = case.problem()
    tensors = (problem.position, problem.cos, problem.sin, problem.q_gain, problem.k_gain)
    o, lse = attention_twin.forward(problem.q, problem.k, problem.v, problem.sees, *tensors, **problem.numbers)
    gradients = attention_twin.backward(problem.do, problem.q, problem.k, problem.v, o, lse, problem.sees, *tensors,
                                        **problem.numbers)
    assert max(excess([o, *gradients], problem, case.dtype), default=0.0) <= 1.0


@settings(max_examples=40, deadline=None)
@given(case=cases)
def test_back_ends_agree(case):
    """sdpa with norm and rotation in front, and the twin with both inside: outputs and gradients."""
    case = dataclasses.replace(case, softcap=0.0, unseen=(), dtype=torch.float64)
    problem, results = case.problem(), []
    for backend in HERE:
        leaves = [x.detach().clone().requires_grad_() for x in (problem.q, problem.k, problem.v)]
        gains = [x.double().requires_grad_() for x in (problem.q_gain, problem.k_gain)] if case.norm else []
        o = attention(*leaves, documents=case.documents(), causal=case.causal, window=case.window, scale=case.scale,
                      rope=Rope(problem.cos, problem.sin) if case.rope else None,
                      qk_norm=QKNorm(*gains, 1e-6) if case.norm else None, backend=backend)
        results.append([o, *torch.autograd.grad(o, leaves + gains, problem.do)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", HERE)
def test_gradients(causal, backend):
    documents, _ = pack([5, 1, 9], 8)
    tensors = [torch.randn(16, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention(q, k, v, documents=documents, causal=causal, backend=backend), tensors)


def everything(n=12):
    """Arguments with every feature on: (differentiable tensors, function of them)."""
    generator = torch.Generator().manual_seed(0)
    documents = Documents.from_lengths([5, 0, 1, n - 6])
    leaves = [torch.randn(n, h, 8, dtype=torch.float64, generator=generator) for h in (4, 2, 2)]
    leaves += [torch.rand(8, dtype=torch.float64, generator=generator) + 0.5 for _ in range(2)]
    rope = Rope(*(x.double() for x in Rope.table(n, 8, 100.0, "cpu")))

    def function(q, k, v, q_gain, k_gain):
        return attention(q, k, v, documents=documents, causal=True, window=3, rope=rope, softcap=2.0, scale=0.4,
                         qk_norm=QKNorm(q_gain, k_gain, 1e-6), backend="triton")
    return [x.requires_grad_() for x in leaves], function, documents, rope


def test_gradients_with_everything_on():
    leaves, function, _, _ = everything()
    assert torch.autograd.gradcheck(function, leaves)


def test_opcheck_forward_and_backward():
    leaves, _, documents, rope = everything()
    seen = sight(documents, 12, causal=True, window=3, rope=rope, backend="triton", device="cpu")
    tail = (*seen.mask, seen.position_N, *rope, *leaves[3:], 0.4, 2.0, 1e-6, True)
    plain = (*seen.mask, None, None, None, None, None, 0.4, 0.0, 0.0, True)
    for rest in (tail, plain):
        passed = torch.library.opcheck(attention_forward, (*leaves[:3], *rest))
        assert list(passed.values()) == ["SUCCESS"] * 4
        detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in (*leaves[:3], *rest)]
        o, lse = attention_forward(*detached)
        passed = torch.library.opcheck(attention_backward, (torch.ones_like(o), *detached[:3], o, lse, *detached[3:]))
        assert list(passed.values()) == ["SUCCESS"] * 4


@pytest.mark.parametrize("backend", HERE)
def test_compiles_whole_and_never_again_when_documents_change(backend):
    torch._dynamo.reset()
    rope, gains = Rope.table(32, 8, 100.0, "cpu"), [torch.ones(8, requires_grad=True) for _ in range(2)]

    def function(q, k, v, start_N, end_N):
        return attention(q, k, v, documents=Documents(start_N, end_N, 32), causal=True, rope=rope,
                         qk_norm=QKNorm(*gains, 1e-6), backend=backend)

    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in ([32], [5, 27], [1] * 32, [31, 1], [0, 32]):
            documents = Documents.from_lengths(lengths)
            leaves = [torch.randn(32, 2, 8, requires_grad=True) for _ in range(3)]
            out = compiled(*leaves, documents.start_N, documents.end_N)
            plain = function(*leaves, documents.start_N, documents.end_N)
            torch.testing.assert_close(out, plain)
            for a, b in zip(torch.autograd.grad(out.sum(), leaves + gains), torch.autograd.grad(plain.sum(), leaves + gains)):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", HERE)
def test_nothing_leaks_between_documents(backend):
    documents, spans = pack([5, 7, 4], 16)
    q, k, v = (torch.randn(16, 2, 4) for _ in range(3))
    before = attention(q, k, v, documents=documents, causal=False, backend=backend)
    k[5:12], v[5:12] = 1e4, 1e4
    after = attention(q, k, v, documents=documents, causal=False, backend=backend)
    assert torch.equal(before[:5], after[:5]) and torch.equal(before[12:], after[12:])
    assert not torch.allclose(before[5:12], after[5:12])


@pytest.mark.parametrize("backend", HERE)
def test_whole_rows_equal_explicit_bounds(backend):
    whole, (explicit, _) = Documents(None, None, 8), pack([8, 8], 8)
    q, k, v = (torch.randn(16, 2, 4) for _ in range(3))
    for causal, window in ((False, None), (True, None), (False, 2)):
        rule = {"causal": causal, "window": window, "backend": backend}
        torch.testing.assert_close(attention(q, k, v, documents=whole, **rule), attention(q, k, v, documents=explicit, **rule))


def test_in_long_rows_norm_and_rotation_happen_before_the_kernel():
    """The same numbers either way; which way is decided by the length of a row alone."""
    gains = QKNorm(torch.rand(8) + 0.5, torch.rand(8) + 0.5, 1e-6)
    results = []
    for row in (FUSED_ROW, 2 * FUSED_ROW):
        documents = Documents.from_lengths([100, 156]).start_N, Documents.from_lengths([100, 156]).end_N
        start_N = torch.cat([documents[0] + at for at in range(0, 2 * FUSED_ROW, 256)])
        end_N = torch.cat([documents[1] + at for at in range(0, 2 * FUSED_ROW, 256)])
        packed, n = Documents(start_N, end_N, row), 2 * FUSED_ROW
        rope, generator = Rope.table(row, 8, 100.0, "cpu"), torch.Generator().manual_seed(0)
        seen = sight(packed, n, causal=False, window=None, rope=rope, backend="triton", device="cpu")
        assert seen.fused == (row == FUSED_ROW)
        q, k, v = (torch.randn(n, 1, 8, generator=generator) for _ in range(3))
        results.append(attention(q, k, v, documents=packed, causal=False, rope=rope, qk_norm=gains, backend="triton"))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_the_scale_is_the_one_given():
    documents, spans = pack([5, 3, 8], 8)
    q, k, v = (torch.randn(16, 2, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    for backend in HERE:
        out = attention(q, k, v, documents=documents, causal=True, scale=0.2, backend=backend)
        torch.testing.assert_close(out.double(), oracle(q, k, v, spans, True, None, 0.2), rtol=1e-5, atol=1e-5)


SQUARE = torch.zeros(8, 2, 4)


@pytest.mark.parametrize("message, change", [
    ("no whole number", {"q": torch.zeros(8, 3, 4)}), ("no whole number", {"documents": Documents(None, None, 3)}),
    ("expected [N, H, K], [N, G, K]", {"k": torch.zeros(7, 2, 4)}), ("expected [N, H, K]", {"v": torch.zeros(8, 1, 4)}),
    ("expected [N, H, K]", {"q": torch.zeros(8, 8)}), ("no whole number", dict.fromkeys("kv", torch.zeros(8, 0, 4))),
    ("floating-point", dict.fromkeys("qkv", SQUARE.long())), ("window -1 must not", {"window": -1}),
    ("scale nan must be", {"scale": math.nan}), ("expected [4] each", {"qk_norm": QKNorm(torch.ones(1), torch.ones(1), 1e-6)}),
    ("expected [8 or more, 4 / 2]", {"rope": Rope.table(8, 2, 100.0, "cpu")}),
    ("expected [8 or more, 4 / 2]", {"rope": Rope.table(7, 4, 100.0, "cpu")}),
    ("documents of 1 and 1 tokens", {"documents": Documents(*[torch.zeros(1, dtype=torch.int32)] * 2, 8)}),
    ("give one floating-point dtype", {"k": SQUARE.half()}), ("scale -1 must be more than 0", {"scale": -1}),
    ("softcap 0 must be", {"softcap": 0}), ("use triton or flex", {"softcap": 2.0, "backend": "sdpa"}),
    ("none of triton", {"backend": "cudnn"}), ("eps 0 must be", {"qk_norm": QKNorm(torch.ones(4), torch.ones(4), 0)}),
    ("even ones up to 128", {"q": torch.zeros(8, 2, 5), "k": torch.zeros(8, 2, 5), "v": torch.zeros(8, 2, 5)}),
    ("even ones up to 128", dict.fromkeys("qkv", torch.zeros(8, 2, 130)))])
def test_what_does_not_fit_is_refused(message, change):
    arguments = {"q": SQUARE, "k": SQUARE, "v": SQUARE, "documents": Documents(None, None, 8), "causal": True} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


def test_padding_without_a_document_needs_no_angle():
    """Its position is 0, wherever it lies: a table as long as a row is enough."""
    start = torch.zeros(8, dtype=torch.int32)
    end = torch.tensor([4] * 4 + [0] * 4, dtype=torch.int32)
    q = torch.randn(8, 2, 4)
    for backend in HERE:
        o = attention(q, q, q, documents=Documents(start, end, 4), causal=False, rope=Rope.table(4, 4, 100.0, "cpu"),
                      backend=backend)
        assert o[:4].abs().min() > 0 and not o[4:].any()


def test_the_log_sum_exp_is_no_way_back():
    documents = Documents.from_lengths([8])
    q = torch.randn(8, 2, 4, requires_grad=True)
    seen = sight(documents, 8, causal=False, window=None, rope=None, backend="triton", device="cpu")
    o, lse = attention_forward(q, q, q, *seen.mask, None, None, None, None, None, 0.5, 0.0, 0.0, False)
    assert o.requires_grad and not lse.requires_grad


def test_the_dtype_of_q_comes_back_under_autocast():
    q = torch.randn(8, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for backend in HERE:
            assert attention(q, q, q, documents=Documents(None, None, 8), causal=False, backend=backend).dtype == torch.float32
