"""The attention kernels beside float64: on tensors with guard bands around them, with tiles of any shape."""

import dataclasses

import torch
from torch.overrides import TorchFunctionMode

from cram._kernels import launch
from cram._kernels.launch import Launch
from tests.kernels.attention_cases import BLOCK, excess

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
