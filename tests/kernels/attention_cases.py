"""Random packed attention problems, and what is right for them: shared by the tests of the twin and of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import torch
from hypothesis import strategies as st
from torch import Tensor

from cram.ops import Documents, Rope


@dataclass(frozen=True)
class Case:
    """One attention problem; lengths are those of the documents, end to end."""

    lengths: tuple[int, ...]
    heads: tuple[int, int] = (2, 2)      # query heads, key/value heads
    head_dim: int = 16
    causal: bool = False
    window: Optional[int] = None
    norm: bool = True
    rope: bool = True
    softcap: float = 0.0
    dtype: torch.dtype = torch.float32
    scale: float = 0.25
    seed: int = 0
    unseen: tuple[int, ...] = ()         # documents that are padding: their tokens see nothing

    @property
    def n(self) -> int:
        return sum(self.lengths)

    def documents(self) -> Documents:
        documents = Documents.from_lengths(self.lengths)
        start_N, end_N = documents.start_N.clone(), documents.end_N.clone()
        at = 0
        for number, length in enumerate(self.lengths):
            if number in self.unseen:
                end_N[at:at + length] = start_N[at:at + length]
            at += length
        return Documents(start_N, end_N, self.n)

    def problem(self) -> "Problem":
        generator = torch.Generator().manual_seed(self.seed)
        random = lambda *shape: torch.randn(*shape, generator=generator).to(self.dtype)
        (heads, groups), n, k = self.heads, self.n, self.head_dim
        documents, rule = self.documents(), {"causal": self.causal, "window": self.window, "device": "cpu"}
        rope = Rope.table(max(n, 1), k, 100.0, "cpu") if self.rope else (None, None)
        gains = tuple(0.5 + torch.rand(k, generator=generator) if self.norm else None for _ in range(2))
        return Problem(random(n, heads, k), random(n, groups, k), random(n, groups, k), random(n, heads, k),
                       documents.sees(n, **rule), documents.seen_by(n, **rule),
                       documents.positions(n, "cpu").int() if self.rope else None, *rope, *gains,
                       {"scale": self.scale, "softcap": self.softcap, "eps": 1e-6})


@dataclass
class Problem:
    """The tensors of a case; do is the gradient that comes back to the output."""

    q: Tensor
    k: Tensor
    v: Tensor
    do: Tensor
    sees: Tensor
    seen_by: Tensor
    position: Optional[Tensor]
    cos: Optional[Tensor]
    sin: Optional[Tensor]
    q_gain: Optional[Tensor]
    k_gain: Optional[Tensor]
    numbers: dict


def solve(problem: Problem, dtype: torch.dtype, terms: bool = False) -> tuple[list[Optional[Tensor]], float]:
    """[o, dq, dk, dv, dq_gain, dk_gain] by the formulas and autograd, everything in ``dtype``; and the largest score.

    terms: the sizes that rounding errors are relative to. v and do count without their signs, and the softmax's sum as a
    constant, so that ds = p dp instead of p (dp - delta): nothing cancels. (With one key the true gradient is 0.)
    """
    leaf = lambda x: None if x is None else x.detach().to(dtype).requires_grad_()
    v, do = (problem.v.abs(), problem.do.abs()) if terms else (problem.v, problem.do)
    q, k, v, q_gain, k_gain = (leaf(x) for x in (problem.q, problem.k, v, problem.q_gain, problem.k_gain))
    scale, softcap, eps = (problem.numbers[name] for name in ("scale", "softcap", "eps"))
    (n, heads, _), groups = q.shape, k.shape[1]

    def ready(x, gain):
        if gain is not None:
            x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain
        if problem.position is not None:  # pairs are complex numbers, turned by their angle
            angle = torch.complex(problem.cos.double(), problem.sin.double())[problem.position.long()][:, None]
            turned = torch.complex(*(half.double() for half in x.chunk(2, -1))) * angle
            x = torch.cat((turned.real, turned.imag), -1).to(dtype)
        return x

    q_ready, k_ready = ready(q, q_gain), ready(k, k_gain).repeat_interleave(heads // groups, 1)
    s = torch.einsum("mhk,nhk->hmn", q_ready, k_ready) * scale
    largest = s.detach().abs().max().item() if s.numel() else 0.0
    if softcap:
        s = softcap * torch.tanh(s / softcap)
    key = torch.arange(n)
    seen = (key >= problem.sees[0, :, None]) & (key < problem.sees[1, :, None])
    s = s.masked_fill(~seen & seen.any(1)[:, None], float("-inf"))
    p = torch.exp(s - torch.logsumexp(s, -1, keepdim=True).detach()) if terms else torch.softmax(s, -1)
    p = p.masked_fill(~seen.any(1)[:, None], 0.0)
    o = torch.einsum("hmn,nhk->mhk", p, v.repeat_interleave(heads // groups, 1))
    leaves = [x for x in (q, k, v, q_gain, k_gain) if x is not None]
    found = iter(torch.autograd.grad(o, leaves, do.to(dtype)))
    return [o.detach()] + [None if x is None else next(found) for x in (q, k, v, q_gain, k_gain)], largest


def excess(found: list[Optional[Tensor]], problem: Problem, dtype: torch.dtype) -> list[float]:
    """How far each result is over what is allowed, as a ratio (right is at most 1): the error against float64 may be
    twice (gradients: three times) that of torch in the same dtype, and a few units in the last place of the terms: the
    more, the larger the scores are that exp is taken of, and with the root of the number of terms in a sum."""
    (exact, largest), (plain, _) = solve(problem, torch.float64), solve(problem, dtype)
    terms, _ = solve(problem, torch.float64, terms=True)
    first, last = problem.seen_by
    queries = max((last - first).max().item(), 1) * problem.q.shape[1] // problem.k.shape[1] if problem.q.numel() else 1
    summed = (1, 1, queries, queries, problem.q[..., 0].numel(), problem.k[..., 0].numel())  # rows whose errors add up
    ratios = []
    for number, (ours, truth, theirs, size) in enumerate(zip(found, exact, plain, terms, strict=True)):
        if truth is None:
            assert ours is None
            continue
        assert ours.shape == truth.shape and ours.isfinite().all(), "not finite"
        if not ours.numel():
            continue
        allowed = (2 if number == 0 else 3) * (theirs.double() - truth).abs().max()
        fine = torch.finfo(torch.float32).eps * largest  # scores are float32, or as exact as the inputs
        allowed += 3 * (torch.finfo(dtype).eps + fine) * size.abs().max() / summed[number] ** 0.5 + torch.finfo(dtype).tiny
        ratios.append(((ours.double() - truth).abs().max() / allowed).item())
    return ratios


BLOCK = 16
lengths = st.lists(st.sampled_from([0, 1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 23]), min_size=1, max_size=4).filter(
    lambda sizes: 0 < sum(sizes) <= 3 * BLOCK)
cases = st.builds(
    Case, lengths=lengths.map(tuple), heads=st.sampled_from([(1, 1), (2, 2), (2, 1), (4, 2)]),
    head_dim=st.sampled_from([8, 16, 20, 32]), causal=st.booleans(), window=st.sampled_from([None, None, 0, 1, 5, 20]),
    norm=st.booleans(), rope=st.booleans(), softcap=st.sampled_from([0.0, 0.0, 2.0]),
    dtype=st.sampled_from([torch.float32, torch.float16]), scale=st.sampled_from([0.25, 1.0]), seed=st.integers(0, 99),
    unseen=st.sampled_from([(), (), (0,), (1,)]))
