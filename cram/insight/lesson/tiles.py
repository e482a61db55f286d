"""``cram lesson tiles``: attention in tiles, written out so that every number of it can be looked at.

The same sums as ``kernels/attention_triton.py``, a tile of queries against a tile of keys at a time, the softmax corrected as
larger scores turn up (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022, algorithm 1). Beside it the plain twin, which
holds the whole matrix of scores, and, where triton is installed, our kernel in Triton's interpreter.

Axes: N tokens (M as queries), H heads, K head dimension.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Callable, Sequence

import torch
from torch import Tensor

from cram.errors import CramError
from cram.ops import Documents, attention

HEADS, HEAD_DIM = 2, 32
INTERPRETER = """
import torch
from cram._kernels import launch
from cram.insight.lesson.tiles import difference, problem
q, k, v, documents, scale = problem({lengths})
sees = documents.sees(len(q), causal=False, window=None, device="cpu")
o, _ = launch.forward(q, k, v, sees, None, None, None, None, None, scale=scale, softcap=0.0, eps=0.0, causal=False,
                      launch=launch.Launch({tile}, {tile}, 4, 1))
print(difference(o, q, k, v, documents, scale))
"""


def attend_in_tiles(q: Tensor, k: Tensor, v: Tensor, sees: Tensor, scale: float, tile: int) -> tuple[Tensor, int]:
    """softmax(scale q k^T) v over the keys that each query sees: (o [N, H, K], pairs of tiles that were computed).

    q, k, v: [N, H, K]. sees: int32 [2, N], first key and one past the last of each query (kernels/documents.py).
    """
    o, visited, n = torch.empty_like(q), 0, len(q)
    for top in range(0, n, tile):
        rows = slice(top, min(top + tile, n))
        first_M1, last_M1 = sees[0, rows, None], sees[1, rows, None]
        high_HM1 = q.new_full((q.shape[1], rows.stop - top, 1), float("-inf"))      # the largest score so far
        total_HM1, sum_HMK = torch.zeros_like(high_HM1), q.new_zeros(q.shape[1], rows.stop - top, q.shape[2])
        for left in range(0, n, tile):
            keys = slice(left, min(left + tile, n))
            seen_MN = (torch.arange(n)[keys] >= first_M1) & (torch.arange(n)[keys] < last_M1)
            if not seen_MN.any():
                continue                                                            # no query here sees any key there
            visited += 1
            score_HMN = torch.einsum("mhk,nhk->hmn", q[rows], k[keys]) * scale
            score_HMN = score_HMN.masked_fill(~seen_MN, float("-inf"))
            higher_HM1 = torch.maximum(high_HM1, score_HMN.amax(-1, keepdim=True))
            level_HM1 = higher_HM1.masked_fill(higher_HM1 == float("-inf"), 0.0)    # nothing seen yet
            weight_HMN, old_HM1 = torch.exp(score_HMN - level_HM1), torch.exp(high_HM1 - level_HM1)
            total_HM1 = total_HM1 * old_HM1 + weight_HMN.sum(-1, keepdim=True)
            sum_HMK = sum_HMK * old_HM1 + torch.einsum("hmn,nhk->hmk", weight_HMN, v[keys])
            high_HM1 = higher_HM1
        o[rows] = (sum_HMK / total_HM1).transpose(0, 1)
    return o, visited


def tile_pairs(lengths: Sequence[int], tile: int) -> tuple[int, int]:
    """(pairs of tiles in which some query sees some key, all pairs), without causality."""
    q, k, v, documents, scale = problem(lengths)
    visited = attend_in_tiles(q, k, v, documents.sees(len(q), causal=False, window=None, device="cpu"), scale, tile)[1]
    return visited, (-(-len(q) // tile)) ** 2


def problem(lengths: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Documents, float]:
    """Random queries, keys and values of documents of these lengths, end to end."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), HEADS, HEAD_DIM, generator=generator) for _ in range(3))
    return q, k, v, Documents.from_lengths(lengths), HEAD_DIM ** -0.5


def whole(q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float) -> Tensor:
    """The plain twin, which is what our back end is on a CPU."""
    return attention(q, k, v, documents=documents, causal=False, scale=scale, backend="triton")


def difference(o: Tensor, q: Tensor, k: Tensor, v: Tensor, documents: Documents, scale: float) -> float:
    """The largest error of an output beside the twin in float64."""
    return (o - whole(q.double(), k.double(), v.double(), documents, scale)).abs().max().item()


def show(lengths: Sequence[int], tile: int, say: Callable[[str], None]) -> None:
    """Compute attention over documents of these lengths in three ways, and say what each held and how exact it was."""
    if not lengths or min(lengths) < 1 or not 16 <= tile <= 256 or tile & (tile - 1) or sum(lengths) > 4096:
        raise CramError("documents are of at least one token and 4,096 in all, a tile is 16, 32, 64, 128 or 256 tokens: cram "
                        "lesson tiles --documents 40,24,64 --tile 32")
    q, k, v, documents, scale = problem(lengths)
    n, sees = len(q), documents.sees(len(q), causal=False, window=None, device="cpu")
    o, visited = attend_in_tiles(q, k, v, sees, scale, tile)
    plain = whole(q, k, v, documents, scale)
    say(f"{len(lengths)} documents, {n} tokens, {HEADS} heads of {HEAD_DIM}, tiles of {tile} x {tile}")
    say(f"whole matrix: {HEADS * n * n:,} scores held; error {rounded(difference(plain, q, k, v, documents, scale))}")
    say(f"in tiles: {HEADS * tile * tile:,} scores held; error {rounded(difference(o, q, k, v, documents, scale))}")
    say(f"pairs of tiles computed: {visited} of {(-(-n // tile)) ** 2}")
    if importlib.util.find_spec("triton") is None:
        say("our kernel in Triton's interpreter: skipped, triton is not installed here (it comes with CUDA builds of torch)")
        return
    done = subprocess.run([sys.executable, "-c", INTERPRETER.format(lengths=list(lengths), tile=tile)], capture_output=True,
                          text=True, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
        raise CramError(f"Triton's interpreter failed: {last}; another version of triton may help")
    say(f"our kernel in Triton's interpreter: error {rounded(float(done.stdout))}")


def rounded(error: float) -> str:
    """An error in float32 in words: its digits differ from machine to machine."""
    return "below 1e-5" if error < 1e-5 else f"{error:.0e}: too much for float32"
