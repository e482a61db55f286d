"""How the attention kernels are launched: tile sizes, warps and pipeline stages, and the launches themselves.

The table ``launch_table.json`` is keyed by architecture, head dimension, causal or not, and direction (forward,
dq, dkv). ``scripts/tune.py`` writes it. What the table does not hold gets a safe choice, said once.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from pathlib import Path
from typing import NamedTuple, Optional

import torch
from torch import Tensor

HEAD_DIMS = (32, 64, 128)  # others up to 128 are padded to the next of these inside the kernels
TABLE = Path(__file__).with_name("launch_table.json")


class Launch(NamedTuple):
    """Queries a tile, keys a tile, warps a program, stages of the software pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int


SAFE = {"forward": Launch(64, 32, 4, 2), "dq": Launch(64, 32, 4, 1), "dkv": Launch(32, 64, 4, 1)}
FLOAT32 = Launch(32, 32, 4, 1)  # operands twice as wide, and no tensor cores unless torch allows TF32: right, not fast


@functools.cache
def table() -> dict[str, Launch]:
    """The tuned launches by key, such as 'sm_90 64 causal dq'."""
    rows = json.loads(TABLE.read_text())["launches"]
    return {key: Launch(*(row[field] for field in Launch._fields)) for key, row in rows.items()}


def padded(head_dim: int) -> int:
    """The head dimension a kernel is compiled for: the next of HEAD_DIMS."""
    return next(size for size in HEAD_DIMS if head_dim <= size)


def key(architecture: str, head_dim: int, causal: bool, direction: str) -> str:
    return f"{architecture} {head_dim} {'causal' if causal else 'full'} {direction}"


@functools.cache
def choose(architecture: str, head_dim: int, causal: bool, direction: str, dtype: torch.dtype) -> Launch:
    """The launch for this card and shape; a safe one, said once, where the table has none."""
    if dtype == torch.float32:
        return FLOAT32
    wanted = key(architecture, padded(head_dim), causal, direction)
    if wanted in table():
        return table()[wanted]
    warnings.warn(f"attention kernels: no tuned launch for '{wanted}', taking a safe, slower one ({SAFE[direction]}); "
                  "scripts/tune.py measures this card", stacklevel=2)
    return SAFE[direction]


@functools.cache
def architecture(device: torch.device) -> str:
    """Such as sm_90; 'cpu' inside Triton's interpreter."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def scalars(scale: float, softcap: float) -> dict[str, float]:
    """``unit`` makes a product (or its tanh) a score in base 2; ``inner`` goes inside the tanh."""
    return {"unit": (softcap or scale) / math.log(2), "inner": scale / softcap if softcap else 0.0}


def interpreted(x: Tensor) -> bool:
    """Whether kernels on x run in Triton's interpreter, which computes on the bits of bfloat16: widen those first."""
    return x.device.type == "cpu"


def constants(q: Tensor, k: Tensor, *, norm: bool, rope: bool, softcap: float) -> dict:
    """What a kernel is compiled for, besides its tile."""
    import triton.language as tl

    dot = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}[q.dtype]
    head_dim = q.shape[2]
    return {"GROUP": q.shape[1] // k.shape[1], "E": head_dim // 2, "HALF": padded(head_dim) // 2,
            "NORM": norm, "ROPE": rope, "SOFTCAP": bool(softcap),
            "DOT": tl.float32 if interpreted(q) and q.dtype == torch.bfloat16 else dot,
            "PRECISION": "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"}


def _rows(x: Tensor) -> Tensor:
    """x [N, H, K] as the kernels address it: K contiguous, and a tile of 128 rows within 32 bits of its first."""
    return x if x.stride(2) == 1 and 128 * x.stride(0) < 2**31 else x.contiguous()


def _dense(*tensors: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    """Tables and gains are addressed without strides."""
    return tuple(None if x is None else x.contiguous() for x in tensors)


def _strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    return (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])


def _options(launch: Launch) -> dict[str, int]:
    return {"BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "num_warps": launch.warps, "num_stages": launch.stages}


def forward(q: Tensor, k: Tensor, v: Tensor, sees: Tensor, position: Optional[Tensor], cos: Optional[Tensor],
            sin: Optional[Tensor], q_gain: Optional[Tensor], k_gain: Optional[Tensor], *, scale: float, softcap: float,
            eps: float, causal: bool, launch: Optional[Launch] = None) -> tuple[Tensor, Tensor]:
    """o [N, H, K] and the log-sum-exp in base 2, float32 [H, N]. causal only chooses the launch; ``sees`` is the mask."""
    from . import attention_triton

    q, k, v = map(_rows, (q, k, v))
    sees, position, cos, sin, q_gain, k_gain = _dense(sees, position, cos, sin, q_gain, k_gain)
    n, heads, head_dim = q.shape
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty((heads, n), dtype=torch.float32, device=q.device)
    launch = launch or choose(architecture(q.device), head_dim, causal, "forward", q.dtype)
    if n:
        attention_triton.forward_kernel[(-(-n // launch.block_m), heads)](
            q, k, v, o, lse, sees, position, cos, sin, q_gain, k_gain, *_strides(q, k, v), n, eps=eps,
            **scalars(scale, softcap), **constants(q, k, norm=q_gain is not None, rope=position is not None, softcap=softcap),
            **_options(launch))
    return o, lse


def backward(do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, sees: Tensor, seen_by: Tensor,
             position: Optional[Tensor], cos: Optional[Tensor], sin: Optional[Tensor], q_gain: Optional[Tensor],
             k_gain: Optional[Tensor], *, scale: float, softcap: float, eps: float, causal: bool,
             dq_launch: Optional[Launch] = None, dkv_launch: Optional[Launch] = None
             ) -> tuple[Tensor, Tensor, Tensor, Optional[Tensor], Optional[Tensor]]:
    """Gradients of q, k, v and of the gains (or None). dQ runs first: it leaves delta for dK and dV."""
    from . import attention_triton

    q, k, v = map(_rows, (q, k, v))
    do, o, lse, sees, seen_by, position, cos, sin, q_gain, k_gain = _dense(do, o, lse, sees, seen_by, position, cos, sin,
                                                                          q_gain, k_gain)
    (n, heads, head_dim), groups, norm = q.shape, k.shape[1], q_gain is not None
    new = functools.partial(torch.empty, device=q.device)
    dq, dk, dv = (new(x.shape, dtype=x.dtype) for x in (q, k, v))
    delta = new(heads, n, dtype=torch.float32)
    plain = position is None and not norm
    q_hat = q if plain else new(q.shape, dtype=torch.float32 if interpreted(q) and q.dtype == torch.bfloat16 else q.dtype)
    dq_launch = dq_launch or choose(architecture(q.device), head_dim, causal, "dq", q.dtype)
    dkv_launch = dkv_launch or choose(architecture(q.device), head_dim, causal, "dkv", q.dtype)
    query_tiles, key_tiles = -(-n // dq_launch.block_m), -(-n // dkv_launch.block_n)
    dq_gain = new(query_tiles, heads, head_dim, dtype=torch.float32) if norm else None
    dk_gain = new(key_tiles, groups, head_dim, dtype=torch.float32) if norm else None
    shared = {**scalars(scale, softcap), **constants(q, k, norm=norm, rope=position is not None, softcap=softcap),
              "scale": scale, "eps": eps}
    if n:
        attention_triton.dq_kernel[(query_tiles, heads)](
            q, k, v, o, do, lse, delta, q_hat, dq, dq_gain, sees, position, cos, sin, q_gain, k_gain, *_strides(q, k, v), n,
            **shared, **_options(dq_launch))
        attention_triton.dkv_kernel[(key_tiles, groups)](
            q_hat, k, v, do, lse, delta, dk, dv, dk_gain, seen_by, position, cos, sin, k_gain, *_strides(q_hat, k, v), n,
            **shared, **_options(dkv_launch))
    if not norm:
        return dq, dk, dv, None, None
    return dq, dk, dv, dq_gain.sum((0, 1)).to(q_gain.dtype), dk_gain.sum((0, 1)).to(k_gain.dtype)
