"""Hidden tokens: which are chosen, and what the model sees in their place (BERT, Devlin et al. 2019, section 3.1, task 1).

In training every token of a step has its own random numbers (``Noise``), drawn at once for the whole step. What becomes
of a token then depends on nothing but them and its row: not on the micro-batch that the row is in, nor on the process.

Axes: R rows, T tokens a row, N = R T, K predictions (a fixed number, so that shapes stay static).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

IGNORE = -100  # label of a slot without a prediction, as in torch.nn.functional.cross_entropy
BARRED = np.uint64(2**63)  # this bit of a key puts a token that may not be hidden behind all that may
PLACE = np.uint64(2**32 - 1)  # these bits of a key are the token's place in its row, so no two are equal


@dataclass(frozen=True)
class Corruption:
    """Of the hidden tokens, mask_fraction become mask_id, random_fraction an ordinary token of the vocabulary, the rest
    stay. Ids below ``protected`` (the special tokens) are never hidden."""

    mask_id: int
    protected: int
    vocab_size: int
    mask_fraction: float = 0.8
    random_fraction: float = 0.1

    def __call__(self, ids_K: np.ndarray, fate_K: np.ndarray, random_K: np.ndarray) -> np.ndarray:
        """What stands in place of ids_K, by fates in [0, 1) and random ordinary ids."""
        kept_K = np.where(fate_K < self.mask_fraction + self.random_fraction, random_K, ids_K)
        return np.where(fate_K < self.mask_fraction, self.mask_id, kept_K)


@dataclass(frozen=True)
class Noise:
    """Random numbers, one of each kind a token: order uint32 (the smallest of a row are hidden), fate float32, id uint32."""

    order_RT: np.ndarray
    fate_RT: np.ndarray
    random_RT: np.ndarray

    @classmethod
    def draw(cls, rng: np.random.Generator, rows: int, length: int, corruption: Corruption) -> Noise:
        shape = rows, length
        return cls(rng.integers(2**31, size=shape, dtype=np.uint32), rng.random(shape, np.float32),
                   rng.integers(corruption.protected, corruption.vocab_size, shape, np.uint32))

    def rows(self, first: int, count: int) -> Noise:
        part = slice(first, first + count)
        return Noise(self.order_RT[part], self.fate_RT[part], self.random_RT[part])


def hidden_count(mask_rate: float, length: int) -> int:
    """Tokens hidden in a row of ``length``: the nearest whole number to mask_rate of them, and at least one."""
    return max(1, round(mask_rate * length))


def hide_tokens(ids_RT: np.ndarray, allowed_RT: np.ndarray, count: int, noise: Noise, corruption: Corruption,
                padding_R: Optional[np.ndarray] = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hide ``count`` tokens of each row, of those that are allowed and not special; in a row with padding (padding_R: how
    many tokens of it) so much fewer.

    Returns inputs int64 [N], positions int64 [K = R count], ascending within a row, and labels int64 [K]. In a row where
    fewer than ``count`` can be hidden, the surplus slots point at position 0 with label IGNORE.
    """
    rows, length = ids_RT.shape
    key_RT = noise.order_RT.astype(np.uint64) << np.uint64(32) | np.arange(length, dtype=np.uint64)
    key_RT[~allowed_RT | (ids_RT < corruption.protected)] |= BARRED
    key_RC = np.partition(key_RT, count - 1, axis=1)[:, :count]
    if padding_R is not None and padding_R.any():
        most_R = np.maximum(1, np.rint(count * (1 - padding_R / length))).astype(np.int64)
        key_RC = np.where(np.arange(count) < most_R[:, None], np.sort(key_RC, axis=1), BARRED)
    place_RC = np.sort(np.where(key_RC < BARRED, key_RC & PLACE, length).astype(np.int64), axis=1)
    real_K = (place_RC < length).reshape(-1)
    hidden = (place_RC + np.arange(rows)[:, None] * length).reshape(-1)[real_K]

    inputs_N, original = ids_RT.reshape(-1).astype(np.int64), ids_RT.reshape(-1)[hidden].astype(np.int64)
    inputs_N[hidden] = corruption(original, noise.fate_RT.reshape(-1)[hidden], noise.random_RT.reshape(-1)[hidden])
    positions_K, labels_K = np.zeros(len(real_K), np.int64), np.full(len(real_K), IGNORE, np.int64)
    positions_K[real_K], labels_K[real_K] = hidden, original
    return inputs_N, positions_K, labels_K


def hide_once(ids_N: np.ndarray, count: int, rng: np.random.Generator, corruption: Corruption
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hide ``count`` tokens of a whole text, or all that are not special when those are fewer: evaluation's masks.

    Returns inputs int64 [N], positions int64 [K] ascending, labels int64 [K]. The draws must never change: scores of
    different runs are compared.
    """
    eligible = np.flatnonzero(ids_N >= corruption.protected)
    positions_K = np.sort(rng.permutation(eligible)[:count])
    inputs_N, labels_K = ids_N.astype(np.int64), ids_N[positions_K].astype(np.int64)
    fate_K = rng.random(len(positions_K))
    random_K = rng.integers(corruption.protected, corruption.vocab_size, len(positions_K))
    inputs_N[positions_K] = corruption(labels_K, fate_K, random_K)
    return inputs_N, positions_K, labels_K
