"""The attention kernels, run by Triton's interpreter, against float64: random documents, guard bands, strides."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from cram._kernels import launch
from cram._kernels.launch import Launch
from tests.kernels.attention_cases import BLOCK, Case, cases, excess

SMALL = Launch(BLOCK, BLOCK, 4, 1)
GUARD = 64  # elements on each side of a guarded tensor


class GuardedAllocations(TorchFunctionMode):
    """torch.empty inside: a view into the middle of a larger buffer full of NaN, which must stay as it is."""

    def __init__(self):
        super().__init__()
        self.buffers = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function not in (torch.empty, torch.empty_like):
            return function(*arguments, **options)
        like = function(*arguments, **options)
        buffer = torch.full((like.numel() + 2 * GUARD,), float("nan"), dtype=like.dtype)
        self.buffers.append(buffer)
        return buffer[GUARD:GUARD + like.numel()].view(like.shape)

    def intact(self) -> bool:
        return all(edge.isnan().all() for buffer in self.buffers for edge in (buffer[:GUARD], buffer[len(buffer) - GUARD:]))


def guarded(x):
    """The same values inside a larger buffer: NaN around and between the rows (integers: a value that leads astray)."""
    if x is None or not x.numel():
        return x
    poison = float("nan") if x.is_floating_point() else 10 ** 4
    if x.ndim == 3:
        buffer = torch.full((x.shape[0] + 2, x.shape[1] + 1, x.shape[2] + 3), poison, dtype=x.dtype)
        view = buffer[1:-1, :-1, 2:-1]
    elif x.ndim == 2 and not x.is_floating_point():  # intervals stay contiguous
        buffer = torch.full((x.numel() + 2 * GUARD,), poison, dtype=x.dtype)
        view = buffer[GUARD:-GUARD].view(x.shape)
    else:
        buffer = torch.full((x.numel() + 2 * GUARD,), poison, dtype=x.dtype)
        view = buffer[GUARD:-GUARD].view(x.shape)
    view.copy_(x)
    return view


def run(problem, causal, forward=SMALL, dq=SMALL, dkv=SMALL):
    """[o, dq, dk, dv, dq_gain, dk_gain] by the kernels."""
    tensors = (problem.position, problem.cos, problem.sin, problem.q_gain, problem.k_gain)
    o, lse = launch.forward(problem.q, problem.k, problem.v, problem.sees, *tensors, causal=causal, launch=forward,
                            **problem.numbers)
    gradients = launch.backward(problem.do, problem.q, problem.k, problem.v, o, lse, problem.sees, problem.seen_by, *tensors,
                                causal=causal, dq_launch=dq, dkv_launch=dkv, **problem.numbers)
    return [o, *gradients]


def check(case, **launches):
    """The error rule, on guarded tensors."""
    problem = case.problem()
    inside = dataclasses.replace(problem, **{name: guarded(getattr(problem, name)) for name in (
        "q", "k", "v", "do", "sees", "seen_by", "position", "cos", "sin", "q_gain", "k_gain")})
    with GuardedAllocations() as allocations:
        found = run(inside, case.causal, **launches)
    assert allocations.intact(), "written outside a tensor"
    assert max(excess(found, problem, case.dtype), default=0.0) <= 1.0, excess(found, problem, case.dtype)


FUZZ = settings(deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck))


@settings(FUZZ, max_examples=160)
@given(case=cases)
def test_random_documents(case):
    check(case)


@settings(FUZZ, max_examples=30)
@given(case=cases, tiles=st.sampled_from([(16, 32), (32, 16), (32, 32), (64, 16), (16, 64)]))
def test_tiles_of_other_shapes(case, tiles):
    check(case, **dict.fromkeys(("forward", "dq", "dkv"), Launch(*tiles, 4, 1)))


@settings(FUZZ, max_examples=30)
@given(case=cases)
def test_bfloat16(case):
    check(dataclasses.replace(case, dtype=torch.bfloat16))


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
    problem = Case((40, 17, 3), heads=(4, 2), causal=True).problem()
    first = run(problem, True)
    assert all(torch.equal(a, b) for _ in range(3) for a, b in zip(first, run(problem, True)))


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
