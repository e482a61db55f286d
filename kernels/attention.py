"""Attention over packed documents: one function, four back ends.

    o = softmax(scale q' k'^T) v  inside each document, q' and k' normalised and rotated on request

The back ends: ``triton`` (ours, ``attention_triton.py``: norm and rotation happen as q and k are loaded, deterministic
backward), ``sdpa`` (PyTorch's scaled_dot_product_attention with an explicit mask: every device), ``flex``
(FlexAttention) and ``varlen`` (FlashAttention behind cumulative lengths); the last two are for comparison, on a card.

Ours is registered with torch as two operations, ``cram::attention_forward`` and ``cram::attention_backward``, so that
torch.compile sees each as one node: nothing is traced into, nothing recompiles when documents change. On the CPU both
run the plain PyTorch twin (``attention_twin.py``).

Axes: N packed tokens, H query heads, G key/value heads (H is a multiple of G), K head dimension, E = K / 2,
T positions.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from . import attention_backends as backends
from . import attention_twin, launch
from .documents import Documents

BACKENDS = ("triton", "sdpa", "flex", "varlen")
FUSED_ROW = 512  # in longer rows many tiles load the same key: norm and rotation once, before. A guess: no card has judged it


class Rope(NamedTuple):
    """Rotary positions (Su et al. 2021): cos_TE, sin_TE float32 [T, K/2], the angles of positions 0 .. T."""

    cos_TE: Tensor
    sin_TE: Tensor

    @classmethod
    def table(cls, positions: int, head_dim: int, base: float, device: torch.device | str) -> Rope:
        """Angle of position t and pair e: t * base^(-2e/K)."""
        half = head_dim // 2
        frequency_E = base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angle_TE = torch.arange(positions, device=device, dtype=torch.float32)[:, None] * frequency_E
        return cls(angle_TE.cos(), angle_TE.sin())


class QKNorm(NamedTuple):
    """RMS norm of every head's queries and keys (Dehghani et al. 2023): the gains, [K] each, and epsilon > 0."""

    q_gain_K: Tensor
    k_gain_K: Tensor
    eps: float


class Sight(NamedTuple):
    """What a back end needs to know of who sees whom; made once and shared by all layers.

    fused: norm and rotation happen inside the kernel, at position_N, int32 [N]; otherwise before it, by ``angles``,
    the cosines and sines of every token [N, 1, E]. mask: what the back end calls a mask (triton: sees and seen_by,
    int32 [2, N] each, see ``documents.py``).
    """

    fused: bool
    mask: Any
    position_N: Optional[Tensor] = None
    angles: Optional[tuple[Tensor, Tensor]] = None


def sight(documents: Documents, n: int, *, causal: bool, window: Optional[int], rope: Optional[Rope], backend: str,
          device: torch.device | str) -> Sight:
    """Describe the view of n packed tokens for one back end."""
    rule = {"causal": causal, "window": window, "device": device}
    if backend == "triton":
        mask = documents.sees(n, **rule), documents.seen_by(n, **rule)
    elif backend == "sdpa":
        mask = backends.attention_mask(documents, n, **rule)
    elif backend == "flex":
        mask = backends.block_mask(documents.sees(n, **rule))
    else:
        # here, not as its decorator: that would load the compiler, seconds, into every process that imports this file
        mask = torch.compiler.disable(backends.cumulative_lengths)(documents, n, device)
    if rope is None:
        return Sight(backend == "triton" and documents.row <= FUSED_ROW, mask)
    position_N = documents.positions(n, device)
    if backend == "triton" and documents.row <= FUSED_ROW:
        return Sight(True, mask, position_N.int())
    return Sight(False, mask, angles=(rope.cos_TE[position_N][:, None], rope.sin_TE[position_N][:, None]))


def why_not(backend: str, device: torch.device | str, head_dim: int) -> Optional[str]:
    """Why this back end cannot train a model here; None when it can."""
    kind = torch.device(device).type
    if backend == "sdpa":
        return None
    if kind != "cuda":
        return "needs a CUDA card"
    if backend == "triton" and head_dim > launch.HEAD_DIMS[-1]:
        return f"holds head dimensions up to {launch.HEAD_DIMS[-1]}, not {head_dim}"
    if backend == "triton" and head_dim % 2:
        return f"needs an even head dimension, not {head_dim}"
    return backends.why_not(backend, head_dim)


def attention(q: Tensor, k: Tensor, v: Tensor, *, documents: Documents, causal: bool, window: Optional[int] = None,
              rope: Optional[Rope] = None, qk_norm: Optional[QKNorm] = None, softcap: Optional[float] = None,
              scale: Optional[float] = None, backend: str = "triton", seen: Optional[Sight] = None) -> Tensor:
    """Attention inside each document; returns [N, H, K] in the dtype of q.

    q: [N, H, K], k and v: [N, G, K], float32, float16 or bfloat16 (the CPU also float64), any strides.
    window: tokens visible to each side (causal: to the left only). rope: rotate q and k by their position in the
    document; qk_norm: normalise them before. softcap: c tanh(score / c) (Gemma 2). scale: 1 / sqrt(K) unless given.
    seen: what ``sight`` returned for the same arguments, to share it between layers; made here when absent.

    A token that sees nothing gets zeros (varlen refuses such). Values must be finite, in padding too: what is hidden is
    weighted with zero. Gradients flow to q, k, v and the gains. Raises ValueError for shapes, dtypes and values that do
    not fit.
    """
    _check(q, k, v, documents, rope, qk_norm, window, softcap, scale, backend)
    n, heads, head_dim = q.shape
    scale, softcap = head_dim ** -0.5 if scale is None else scale, softcap or 0.0
    if seen is None:
        seen = sight(documents, n, causal=causal, window=window, rope=rope, backend=backend, device=q.device)
    q_gain, k_gain, eps = qk_norm or (None, None, 0.0)
    if not seen.fused and (qk_norm or seen.angles):
        q, k = (_normalise_and_rotate(x, gain, eps, seen.angles) for x, gain in ((q, q_gain), (k, k_gain)))
        rope = q_gain = k_gain = None
    if backend == "triton":
        cos_TE, sin_TE = rope or (None, None)
        if rope and q.dtype == torch.bfloat16:  # finer than bfloat16, and half of what every tile of keys loads
            cos_TE, sin_TE = cos_TE.half(), sin_TE.half()
        return attention_forward(q, k, v, *seen.mask, rope and seen.position_N, cos_TE, sin_TE, q_gain, k_gain,
                                 scale, softcap, eps, causal)[0]
    if backend == "sdpa":
        return backends.sdpa(q, k, v, seen.mask, documents.row, scale)
    if backend == "flex":
        return backends.flex(q, k, v, seen.mask, scale, softcap)
    return backends.varlen(q, k, v, *seen.mask, causal=causal, window=window, scale=scale)


def _normalise_and_rotate(x_NHK: Tensor, gain_K: Optional[Tensor], eps: float,
                          angles: Optional[tuple[Tensor, Tensor]]) -> Tensor:
    """What the kernels do on loading, by torch's own operations, in float32 at least; torch.compile fuses them."""
    wide_NHK = x_NHK if x_NHK.dtype == torch.float64 else x_NHK.float()
    if gain_K is not None:
        wide_NHK = F.rms_norm(wide_NHK, gain_K.shape, gain_K.type_as(wide_NHK), eps)
    if angles is not None:
        wide_NHK = attention_twin.rotate(wide_NHK, *angles)
    return wide_NHK.type_as(x_NHK)


def _check(q: Tensor, k: Tensor, v: Tensor, documents: Documents, rope: Optional[Rope], qk_norm: Optional[QKNorm],
           window: Optional[int], softcap: Optional[float], scale: Optional[float], backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend '{backend}' is none of {', '.join(BACKENDS)}")
    if q.ndim != 3 or k.ndim != 3 or k.shape[::2] != q.shape[::2] or v.shape != k.shape:
        raise ValueError(f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}: expected [N, H, K], [N, G, K], [N, G, K]")
    (n, heads, head_dim), groups = q.shape, k.shape[1]
    if not documents.row or n % documents.row or not groups or heads % groups:
        raise ValueError(f"{n} tokens in rows of {documents.row}, {heads} heads in {groups} groups: no whole number")
    if documents.start_N is not None and not documents.start_N.shape == documents.end_N.shape == (n,):
        raise ValueError(f"documents of {len(documents.start_N)} and {len(documents.end_N)} tokens, but q has {n}")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: give one floating-point dtype")
    if backend == "triton" and q.is_cuda and q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q is {q.dtype}: the triton kernels compute in float32, float16 or bfloat16")
    if backend == "triton" and (head_dim > launch.HEAD_DIMS[-1] or head_dim % 2):
        raise ValueError(f"head dimension {head_dim}: the triton kernels hold even ones up to {launch.HEAD_DIMS[-1]}; "
                         "use backend='sdpa'")
    if rope is not None and not (rope.cos_TE.shape == rope.sin_TE.shape == (len(rope.cos_TE), head_dim // 2)
                                 and len(rope.cos_TE) >= documents.row and head_dim % 2 == 0):
        raise ValueError(f"rope tables {list(rope.cos_TE.shape)} and {list(rope.sin_TE.shape)}: expected "
                         f"[{documents.row} or more, {head_dim} / 2] each")
    if qk_norm is not None and not qk_norm.q_gain_K.shape == qk_norm.k_gain_K.shape == (head_dim,):
        raise ValueError(f"gains {list(qk_norm.q_gain_K.shape)} and {list(qk_norm.k_gain_K.shape)}: expected [{head_dim}] each")
    if qk_norm is not None and not qk_norm.eps > 0:
        raise ValueError(f"qk_norm.eps {qk_norm.eps} must be more than 0")
    if window is not None and window < 0:
        raise ValueError(f"window {window} must not be negative; None for no window")
    if scale is not None and not scale > 0:
        raise ValueError(f"scale {scale} must be more than 0")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap {softcap} must be more than 0")
    if softcap is not None and backend in ("sdpa", "varlen"):
        raise ValueError(f"softcap {softcap}: backend '{backend}' has none; use triton or flex")


_FORWARD = ("(Tensor q, Tensor k, Tensor v, Tensor sees, Tensor seen_by, Tensor? position, Tensor? cos, Tensor? sin, "
            "Tensor? q_gain, Tensor? k_gain, float scale, float softcap, float eps, bool causal) -> (Tensor, Tensor)")
_BACKWARD = ("(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor sees, Tensor seen_by, Tensor? position, "
             "Tensor? cos, Tensor? sin, Tensor? q_gain, Tensor? k_gain, float scale, float softcap, float eps, bool causal) "
             "-> (Tensor, Tensor, Tensor, Tensor, Tensor)")


@torch.library.custom_op("cram::attention_forward", mutates_args=(), device_types="cuda", schema=_FORWARD)
def attention_forward(q, k, v, sees, seen_by, position, cos, sin, q_gain, k_gain, scale, softcap, eps, causal):
    """o [N, H, K] and the log-sum-exp in base 2, [H, N]. seen_by is kept for the backward pass."""
    return launch.forward(q, k, v, sees, position, cos, sin, q_gain, k_gain, scale=scale, softcap=softcap, eps=eps,
                          causal=causal)


@attention_forward.register_kernel("cpu")
def _(q, k, v, sees, seen_by, position, cos, sin, q_gain, k_gain, scale, softcap, eps, causal):
    o, lse = attention_twin.forward(q, k, v, sees, position, cos, sin, q_gain, k_gain, scale=scale, softcap=softcap, eps=eps)
    return o.contiguous(), lse.contiguous()


@attention_forward.register_fake
def _(q, k, v, sees, seen_by, position, cos, sin, q_gain, k_gain, scale, softcap, eps, causal):
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=wide)


@torch.library.custom_op("cram::attention_backward", mutates_args=(), device_types="cuda", schema=_BACKWARD)
def attention_backward(do, q, k, v, o, lse, sees, seen_by, position, cos, sin, q_gain, k_gain, scale, softcap, eps, causal):
    """Gradients of q, k, v and of the gains (empty without gains)."""
    gradients = launch.backward(do, q, k, v, o, lse, sees, seen_by, position, cos, sin, q_gain, k_gain, scale=scale,
                                softcap=softcap, eps=eps, causal=causal)
    return tuple(q.new_empty(0) if x is None else x for x in gradients)


@attention_backward.register_kernel("cpu")
def _(do, q, k, v, o, lse, sees, seen_by, position, cos, sin, q_gain, k_gain, scale, softcap, eps, causal):
    gradients = attention_twin.backward(do, q, k, v, o, lse, sees, position, cos, sin, q_gain, k_gain, scale=scale,
                                        softcap=softcap, eps=eps)
    return tuple(q.new_empty(0) if x is None else x.contiguous() for x in gradients)


@attention_backward.register_fake
def _(do, q, k, v, o, lse, sees, seen_by, position, cos, sin, q_gain, k_gain, scale, softcap, eps, causal):
    gains = (q.new_empty(0) if gain is None else torch.empty_like(gain) for gain in (q_gain, k_gain))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *gains


def _save(ctx, inputs, output):
    *tensors, ctx.scale, ctx.softcap, ctx.eps, ctx.causal = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx, do, _):
    q, k, v, sees, seen_by, position, cos, sin, q_gain, k_gain, o, lse = ctx.saved_tensors
    dq, dk, dv, dq_gain, dk_gain = attention_backward(do, q, k, v, o, lse, sees, seen_by, position, cos, sin, q_gain, k_gain,
                                                      ctx.scale, ctx.softcap, ctx.eps, ctx.causal)
    if q_gain is None:
        dq_gain = dk_gain = None
    return dq, dk, dv, None, None, None, None, None, dq_gain, dk_gain, None, None, None, None


attention_forward.register_autograd(_differentiate, setup_context=_save)
