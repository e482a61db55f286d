"""Ways to attend over packed documents, side by side: forward and backward, with and without QK-norm and rotary positions.

Norm and rotation are part of our kernels ("triton fused") or code of torch's in front of them ("triton unfused") and
of every other path: compiled on a card, its cost counted, forward and backward, gradients of the gains included.
TFLOP/s count the two matrix products of the forward pass over all pairs that see each other, 4 K a head and pair, and
two and a half times as many in the backward pass; a causal case counts half the pairs. Norm and rotation count nothing.

Before a path is timed its output and gradients are compared with float64 on one document and head. A path that is
wrong is not timed.

Axes: N tokens, H heads, K head dimension, E = K / 2, L tokens of one document, B documents of equal length T.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Callable, Iterator, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cram.batches import document_bounds
from cram.bench.measure import CudaTimer, HostTimer, Timing, Unavailable, attempt, no_silent_fallback, race
from cram.ops import Documents, QKNorm, Rope, Sight, attention, sight, why_not

RAW, ROTARY = "raw", "with rotary + QK-norm"
WRONG = 0.03  # relative error beyond which a path computes something else; bfloat16 leaves about 0.005
EPS, ROPE_BASE = 1e-6, 10000.0
BACKWARD = 2.5  # matrix products of the backward pass over those of the forward pass
VIEW = {"title": "Attention over packed documents", "panel": "head dimension {head_dim}, {direction}, {setting}",
        "x": "length", "line": "path", "kind": "lines", "baseline": "sdpa flash",
        "y": [["forward.tflops", "forward, TFLOP/s"], ["backward.tflops", "backward, TFLOP/s"]],
        "columns": [["tokens a document", "length", ""], ["path", "path", ""], ["forward, ms (quartiles)", "forward", "spread"],
                    ["backward, ms", "backward", "spread"], ["both, ms", "both", "spread"],
                    ["both - forward, ms", "difference_ms", ".3f"], ["forward, TFLOP/s", "forward.tflops", ".3g"],
                    ["backward, TFLOP/s", "backward.tflops", ".3g"], ["both, TFLOP/s", "both.tflops", ".3g"],
                    ["mask, ms", "mask_ms", ".3f"], ["error of o", "deviation.o", ".1e"], ["of dq", "deviation.dq", ".1e"],
                    ["of dk", "deviation.dk", ".1e"], ["of dv", "deviation.dv", ".1e"], ["warm-up, s", "warm_up_s", ".1f"]]}
NOTES = ["Errors are relative, in the Euclidean norm, to float64 on one document and head.",
         "mask: what a model makes once a batch and shares between its layers, no part of the other columns.",
         "Our backward pass gives the same bits every time; flash, cudnn and varlen are free to add up in any order."]
REPEATS = {"cuda": 10, "cpu": 5}


@dataclass(frozen=True)
class Case:
    """Documents of ``length`` tokens each; None: of realistic lengths, packed into rows of ``row``."""

    head_dim: int
    heads: int
    causal: bool
    length: Optional[int]
    tokens: int
    row: int

    def documents(self) -> Documents:
        """On the CPU; start and end are given in any case."""
        opens_N = document_starts(self.tokens) if self.length is None else np.arange(self.tokens) % self.length == 0
        bounds = document_bounds(opens_N.reshape(-1, self.length or self.row), True)
        return Documents(*map(torch.from_numpy, bounds), self.length or self.row)

    def flops(self) -> float:
        """Of the forward pass."""
        documents = self.documents()
        pairs = int((documents.end_N - documents.start_N).long().sum())  # every token of a document counts its length
        return 4.0 * pairs * self.heads * self.head_dim * (0.5 if self.causal else 1.0)


def document_starts(tokens: int, seed: int = 0) -> np.ndarray:
    """Where documents of log-normal length (median 600 tokens, mean about 1,000) start, end to end: bool [tokens]."""
    lengths = np.random.default_rng(seed).lognormal(math.log(600), 1.0, size=tokens // 8 + 1).astype(np.int64) + 1
    starts = np.concatenate([[0], lengths.cumsum()])
    opens_N = np.zeros(tokens, dtype=bool)
    opens_N[starts[starts < tokens]] = True
    return opens_N


def cases(device: str, quick: bool) -> list[Case]:
    """What is measured: on a card width 768 and 32,768 tokens, on the CPU a small sample of it."""
    width, tokens, row, head_dims, lengths = 768, 32768, 1024, (64, 128), (128, 256, 512, 1024, 2048, 4096, 8192)
    if device == "cpu":
        width, tokens, row, lengths = 128, 2048, 512, (128, 512, 2048)
    if quick:
        head_dims, lengths = head_dims[:1], (512, 2048) if device == "cuda" else (128,)
    return [Case(head_dim, width // head_dim, causal, length, tokens, row)
            for head_dim in head_dims for causal in (False, True) for length in (*lengths, None)]


class Problem:
    """The tensors of a case, the same every time: bfloat16 on a card, float32 on the CPU; gains in float32."""

    def __init__(self, case: Case, device: str):
        generator = torch.Generator(device).manual_seed(0)
        self.case, self.device, self.dtype = case, device, torch.bfloat16 if device == "cuda" else torch.float32
        shape = (case.tokens, case.heads, case.head_dim)
        self.do, *qkv = (torch.randn(shape, generator=generator, device=device).to(self.dtype) for _ in range(4))
        gains = (1 + 0.1 * torch.randn(case.head_dim, generator=generator, device=device) for _ in range(2))
        self.q, self.k, self.v, self.q_gain, self.k_gain = (x.requires_grad_() for x in (*qkv, *gains))
        documents = case.documents()
        self.documents = Documents(documents.start_N.to(device), documents.end_N.to(device), documents.row)
        self.rope = Rope.table(documents.row, case.head_dim, ROPE_BASE, device)
        self.position_N = self.documents.positions(case.tokens, device)
        self.angles = [table_TE[self.position_N][:, None] for table_TE in self.rope]

    def inputs(self, setting: str) -> tuple[Tensor, ...]:
        """What gradients are wanted of; the first three are q, k, v."""
        return (self.q, self.k, self.v) if setting == RAW else (self.q, self.k, self.v, self.q_gain, self.k_gain)

    def sight(self, name: str) -> Sight:
        """The mask of one back end. varlen takes documents of one length as they are; others are padded with empty ones."""
        documents = Documents(None, None, self.case.length) if name == "varlen" and self.case.length else self.documents
        return sight(documents, self.case.tokens, causal=self.case.causal, window=None, rope=None, backend=name,
                     device=self.device)

    def gradients(self, o: Tensor, setting: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(o, self.inputs(setting), self.do.view(o.shape))


# ---- the paths: each takes a problem and returns a function of q, k, v, [N, H, K] each


def backend(p: Problem, name: str) -> Callable[..., Tensor]:
    """One of cram's back ends. fused=True: nothing is done to q and k before it."""
    if reason := why_not(name, p.device, p.case.head_dim):
        raise Unavailable("not timed on the CPU: there its plain twin computes, a reference" if name == "triton" and
                          p.device == "cpu" else reason)
    seen = Sight(True, p.sight(name).mask, p.position_N.int())
    return partial(attention, documents=p.documents, causal=p.case.causal, backend=name, seen=seen)


def equal_lengths(p: Problem, kernel: SDPBackend) -> Callable[..., Tensor]:
    """A kernel of scaled_dot_product_attention that takes documents of one length, as rows of a batch."""
    if p.case.length is None:
        raise Unavailable("takes documents of one length only")
    if kernel == SDPBackend.CUDNN_ATTENTION and p.device == "cpu":
        raise Unavailable("needs a CUDA card")

    def run(*qkv: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            rows = (x.unflatten(0, (-1, p.case.length)).transpose(1, 2) for x in qkv)
            return F.scaled_dot_product_attention(*rows, is_causal=p.case.causal).transpose(1, 2)  # [B, T, H, K]
    return run


PATHS = {"triton": partial(backend, name="triton"), "sdpa flash": partial(equal_lengths, kernel=SDPBackend.FLASH_ATTENTION),
         "sdpa cudnn": partial(equal_lengths, kernel=SDPBackend.CUDNN_ATTENTION), "sdpa mask": partial(backend, name="sdpa"),
         "varlen": partial(backend, name="varlen"), "flex": partial(backend, name="flex")}
MASKS = {"triton": "triton", "sdpa mask": "sdpa", "varlen": "varlen", "flex": "flex"}


def normalise_and_rotate(q: Tensor, k: Tensor, q_gain_K: Tensor, k_gain_K: Tensor, cos_N1E: Tensor, sin_N1E: Tensor
                         ) -> list[Tensor]:
    """What stands in front of the others: as ``cram.ops.attention`` does it outside a kernel, for q and k at once."""
    done = []
    for x, gain_K in ((q, q_gain_K), (k, k_gain_K)):
        low, high = F.rms_norm(x.float(), gain_K.shape, gain_K, EPS).chunk(2, dim=-1)
        done.append(torch.cat((low * cos_N1E - high * sin_N1E, high * cos_N1E + low * sin_N1E), dim=-1).type_as(x))
    return done


def forwards(p: Problem, setting: str) -> dict[str, tuple[Optional[Callable[[], Tensor]], Optional[str]]]:
    """Every path's forward pass over the problem, or the reason why it has none."""
    made = {name: attempt(make, p) for name, make in PATHS.items()}
    if setting == RAW:
        return {name: (run and partial(run, p.q, p.k, p.v), error) for name, (run, error) in made.items()}
    front = torch.compile(normalise_and_rotate, dynamic=False) if p.device == "cuda" else normalise_and_rotate
    ours, error = made.pop("triton")
    fused = ours and partial(ours, p.q, p.k, p.v, rope=p.rope, qk_norm=QKNorm(p.q_gain, p.k_gain, EPS))

    def behind(run: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: run(*front(p.q, p.k, p.q_gain, p.k_gain, *p.angles), p.v)

    made = {"triton unfused": (ours, error), **made}
    return {"triton fused": (fused, error)} | {name: (run and behind(run), error) for name, (run, error) in made.items()}


# ---- the truth


def truth(p: Problem, setting: str) -> dict[str, Tensor]:
    """o, dq, dk, dv of the last head of the longest document in float64, [L, K] each."""
    q, k, v = (part(p, x).detach().double().requires_grad_() for x in (p.q, p.k, p.v))
    hats = [q, k]
    if setting == ROTARY:  # a rotation is a product of complex numbers
        e = torch.arange(p.case.head_dim // 2, device=p.device, dtype=torch.float64)
        angle_LE = torch.arange(len(q), device=p.device)[:, None] * ROPE_BASE ** (-2 * e / p.case.head_dim)
        for i, gain_K in enumerate((p.q_gain, p.k_gain)):
            unit_LK = hats[i] * torch.rsqrt(hats[i].square().mean(-1, keepdim=True) + EPS) * gain_K.detach().double()
            z_LE = torch.complex(*unit_LK.chunk(2, -1)) * torch.polar(torch.ones_like(angle_LE), angle_LE)
            hats[i] = torch.cat((z_LE.real, z_LE.imag), -1)
    s_LL = hats[0] @ hats[1].T * p.case.head_dim ** -0.5
    if p.case.causal:
        s_LL = s_LL.masked_fill(torch.ones_like(s_LL, dtype=torch.bool).triu(1), -math.inf)
    o = s_LL.softmax(-1) @ v
    dq, dk, dv = torch.autograd.grad(o, (q, k, v), part(p, p.do).double())
    return {"o": o.detach(), "dq": dq, "dk": dk, "dv": dv}


def part(p: Problem, x: Tensor) -> Tensor:
    """The last head of the longest document, of a tensor over all tokens: [L, K]."""
    longest = int((p.documents.end_N - p.documents.start_N).argmax())
    return x.reshape(p.do.shape)[int(p.documents.start_N[longest]):int(p.documents.end_N[longest]), -1]


def deviation(p: Problem, setting: str, forward: Callable[[], Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors of a path. Unavailable when it computes something else."""
    o = forward()
    found = dict(zip(true, (o.detach(), *p.gradients(o, setting)), strict=False))  # gradients of gains are left out
    errors = {name: float((part(p, found[name]).double() - true[name]).norm() / true[name].norm()) for name in true}
    if not all(error < WRONG for error in errors.values()):
        raise Unavailable("wrong, not timed: " + ", ".join(f"error of {name} {error:.1e}" for name, error in errors.items()))
    return errors


# ---- the measurement: what is timed of a path, and what is made ready before


def _forward(p: Problem, setting: str, forward: Callable[[], Tensor]) -> Callable[[], object]:
    return forward


def _backward(p: Problem, setting: str, forward: Callable[[], Tensor]) -> Callable[[], object]:
    return partial(p.gradients, forward(), setting)


def _both(p: Problem, setting: str, forward: Callable[[], Tensor]) -> Callable[[], object]:
    return lambda: p.gradients(forward(), setting)


PASSES = {"forward": _forward, "backward": _backward, "both": _both}


def measure(device: str, quick: bool, repeats: int, say: Callable[[str], None]) -> Iterator[list[dict]]:
    """The rows of one case after another: one for each setting and path."""
    timer = CudaTimer() if device == "cuda" else HostTimer()
    for case in cases(device, quick):
        with no_silent_fallback():
            p = Problem(case, device)
            masks = race({name: partial(mask_maker, p, end) for name, end in MASKS.items()}, timer, repeats)
            rows = [row for setting in (RAW, ROTARY) for row in measure_case(p, setting, timer, repeats, masks)]
        say(f"attention: head dimension {case.head_dim}, {rows[0]['direction']}, {rows[0]['length']}: "
            f"{sum('error' not in row for row in rows)} of {len(rows)} paths timed")
        yield rows


def mask_maker(p: Problem, name: str) -> Callable[[], object]:
    """The call that makes a back end's mask; FlexAttention's is compiled, since it holds all N x N pairs otherwise."""
    if reason := why_not(name, p.device, p.case.head_dim):
        raise Unavailable(reason)
    if name != "flex":
        return partial(p.sight, name)
    return partial(torch.compile(_flex_mask, dynamic=False), p.documents.start_N, p.documents.end_N, p.case.causal)


def _flex_mask(start_N: Tensor, end_N: Tensor, causal: bool) -> list[Tensor]:
    mask = sight(Documents(start_N, end_N, len(start_N)), len(start_N), causal=causal, window=None, rope=None, backend="flex",
                 device=start_N.device).mask
    return [x for x in mask.as_tuple() if isinstance(x, Tensor)]


def measure_case(p: Problem, setting: str, timer: HostTimer, repeats: int, masks: dict[str, Timing | str]) -> list[dict]:
    """One row for each path."""
    case, true = p.case, truth(p, setting)
    facts = {"head_dim": case.head_dim, "heads": case.heads, "direction": "causal" if case.causal else "bidirectional",
             "length": case.length or "mixture", "tokens": case.tokens, "dtype": str(p.dtype).removeprefix("torch."),
             "setting": setting}
    rows, competitors = {}, {}
    for path, (forward, error) in forwards(p, setting).items():
        rows[path], started = {**facts, "path": path}, time.perf_counter()
        if error is None:
            rows[path]["deviation"], error = attempt(deviation, p, setting, forward, true)
        if error is not None:
            rows[path] |= {"error": error}
            continue
        rows[path]["warm_up_s"] = time.perf_counter() - started
        mask = masks.get(path if path in MASKS else path.split()[0])
        if mask is not None:
            rows[path] |= {"mask_ms": 1e3 * mask.median} if isinstance(mask, Timing) else {"remark": f"mask: {mask}"}
        competitors |= {(path, what): partial(ready, p, setting, forward) for what, ready in PASSES.items()}
    parts = {"forward": 1.0, "backward": BACKWARD, "both": 1 + BACKWARD}
    for (path, what), timing in race(competitors, timer, repeats).items():
        if isinstance(timing, str):
            rows[path]["error"] = f"{what}: {timing}"
            continue
        rows[path][what] = timing.milliseconds() | {"tflops": parts[what] * case.flops() / timing.median / 1e12}
        rows[path]["warm_up_s"] += timing.warm_up
    for row in rows.values():
        if "forward" in row and "both" in row:
            row["difference_ms"] = row["both"]["ms"] - row["forward"]["ms"]
    return list(rows.values())
