"""Attention over packed documents against a float64 loop over documents."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.ops import Documents, attention, attention_mask


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


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), row=st.sampled_from([8, 16, 32]), causal=st.booleans(),
       window=st.sampled_from([None, 0, 3, 100]), heads=st.sampled_from([(2, 2), (4, 2), (4, 1)]), seed=st.integers(0, 9))
def test_forward_equals_the_oracle(lengths, row, causal, window, heads, seed):
    documents, spans = pack(lengths, row)
    generator = torch.Generator().manual_seed(seed)
    n = len(documents.start_N)
    q = torch.randn(n, heads[0], 8, generator=generator)
    k, v = torch.randn(n, heads[1], 8, generator=generator), torch.randn(n, heads[1], 8, generator=generator)
    out = attention(q, k, v, documents=documents, causal=causal, window=window)
    torch.testing.assert_close(out.double(), oracle(q, k, v, spans, causal, window, 8 ** -0.5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients(causal):
    documents, _ = pack([5, 1, 9], 8)
    tensors = [torch.randn(16, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, documents=documents, causal=causal), tensors)


def test_nothing_leaks_between_documents():
    documents, spans = pack([5, 7, 4], 16)
    q, k, v = (torch.randn(16, 2, 4) for _ in range(3))
    before = attention(q, k, v, documents=documents, causal=False)
    k[5:12], v[5:12] = 1e4, 1e4
    after = attention(q, k, v, documents=documents, causal=False)
    assert torch.equal(before[:5], after[:5]) and torch.equal(before[12:], after[12:])
    assert not torch.allclose(before[5:12], after[5:12])


def test_whole_rows_need_no_mask_and_equal_explicit_bounds():
    whole = Documents(None, None, 8)
    explicit, _ = pack([8, 8], 8)
    assert attention_mask(whole, 16, causal=False, window=None, device="cpu") is None
    q, k, v = (torch.randn(16, 2, 4) for _ in range(3))
    for causal, window in ((False, None), (True, None), (False, 2)):
        torch.testing.assert_close(attention(q, k, v, documents=whole, causal=causal, window=window),
                                   attention(q, k, v, documents=explicit, causal=causal, window=window))


def test_positions_count_from_each_document():
    documents, _ = pack([3, 2, 3], 8)
    assert documents.positions(8, "cpu").tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert Documents(None, None, 4).positions(8, "cpu").tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_shapes_that_do_not_fit_are_refused():
    q = torch.zeros(10, 3, 4)
    with pytest.raises(ValueError, match="no whole number"):
        attention(q, q, q, documents=Documents(None, None, 8), causal=True)
    with pytest.raises(ValueError, match="no whole number"):
        attention(torch.zeros(8, 3, 4), torch.zeros(8, 2, 4), torch.zeros(8, 2, 4), documents=Documents(None, None, 8), causal=True)


def test_the_scale_is_the_one_given():
    documents, spans = pack([5, 3, 8], 8)
    q, k, v = (torch.randn(16, 2, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    out = attention(q, k, v, documents=documents, causal=True, scale=0.2)
    torch.testing.assert_close(out.double(), oracle(q, k, v, spans, True, None, 0.2), rtol=1e-5, atol=1e-5)
