"""The attention kernels, run by Triton's interpreter, against float64: the edges of tiles, strides, offsets and scores."""

import pytest
import torch

from cram._kernels import launch
from tests.interpreter.attention_check import check, run
from tests.kernels.attention_cases import BLOCK, Case, excess


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK + 3])
def test_one_document(length, causal):
    check(Case((length,), causal=causal))


@pytest.mark.parametrize("head_dim", [32, 48, 64, 128])
def test_head_dimensions(head_dim):
    check(Case((20, 5, 14), heads=(2, 1), head_dim=head_dim, causal=True))


def test_no_tokens_at_all():
    problem = Case((0,)).problem()
    assert all(x.numel() == 0 or not x.any() for x in run(problem, False))


def test_large_scores_do_not_overflow():
    """Scores of several hundred: exp of one alone would be infinite. Their rounding errors are large in the exponent."""
    problem = Case((30, 9), norm=False, rope=False, scale=40.0).problem()
    assert max(excess(run(problem, False), problem, torch.float32)) <= 10.0


def test_a_running_maximum_that_keeps_rising():
    """Every block raises the maximum, so every block rescales what was there."""
    problem = Case((5 * BLOCK,), heads=(1, 1), norm=False, rope=False).problem()
    problem.k = problem.k * torch.linspace(0.1, 6.0, 5 * BLOCK)[:, None, None]
    assert max(excess(run(problem, False), problem, torch.float32)) <= 1.0


def test_the_same_bits_every_time():
    problem = Case((24, 17, 3), heads=(4, 2), causal=True).problem()
    first = run(problem, True)
    assert all(torch.equal(a, b) for _ in range(2) for a, b in zip(first, run(problem, True)))


def test_views_of_one_fused_projection():
    case = Case((11, 22), heads=(2, 2))
    problem = case.problem()
    fused = torch.cat((problem.q, problem.k, problem.v), dim=1)
    problem.q, problem.k, problem.v = fused[:, :2], fused[:, 2:4], fused[:, 4:]
    assert max(excess(run(problem, False), problem, torch.float32)) <= 1.0
    problem.q = problem.q.transpose(0, 2).contiguous().transpose(0, 2)  # the last axis is not the fast one
    assert max(excess(run(problem, False), problem, torch.float32)) <= 1.0


def test_offsets_beyond_32_bits():
    """Rows so far apart that the last lie past 2^31 elements; only the pages they touch take memory."""
    case = Case((60, 70, 10), heads=(1, 1), causal=True, dtype=torch.float16)
    problem, apart = case.problem(), 16_000_000
    assert (case.n - 1) * apart > 2**31 > 128 * apart  # a tile stays within 32 bits of its first row
    for name in ("q", "k", "v"):
        near = getattr(problem, name)
        far = torch.empty(case.n * apart, dtype=near.dtype).as_strided(near.shape, (apart, 16, 1))
        setattr(problem, name, far.copy_(near))
    assert max(excess(run(problem, True), problem, torch.float16)) <= 1.0


def test_rows_too_far_apart_for_a_tile_are_copied():
    far = torch.empty(2**24 + 16, dtype=torch.float16).as_strided((2, 1, 16), (2**24, 16, 1))
    assert launch._rows(far).stride() == (16, 16, 1)


def test_tables_and_gains_with_strides():
    problem = Case((11, 22), heads=(2, 2)).problem()
    table = torch.cat((problem.cos, problem.sin), -1)
    problem.cos, problem.sin = table.chunk(2, -1)
    problem.q_gain, problem.k_gain = torch.stack((problem.q_gain, problem.k_gain), 1).unbind(1)
    assert not problem.cos.is_contiguous() and not problem.q_gain.is_contiguous()
    assert max(excess(run(problem, False), problem, torch.float32)) <= 1.0
