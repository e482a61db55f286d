"""What is predicted: hidden tokens (masked) or the next token (causal).

Targets are made on the host with NumPy from a private generator, so a batch is a function
of (seed, step) and torch's generator is never touched. Losses are sums over predicted
tokens; the loop divides by the number predicted in the whole optimizer step, so the split
into micro-batches does not change the gradient.

Axes: N tokens, K predictions (a fixed number, so that shapes stay static), V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cram.ops import Documents, linear_cross_entropy

IGNORE = -100  # label of a slot without a prediction, as in torch.nn.functional.cross_entropy


def mask_tokens(ids_N: np.ndarray, *, count: int, vocab_size: int, mask_id: int, protected: int,
                rng: np.random.Generator, mask_fraction: float = 0.8, random_fraction: float = 0.1
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose ``count`` tokens and hide them (BERT, Devlin et al. 2019, section 3.1, task 1).

    Of the chosen, mask_fraction become mask_id, random_fraction a random ordinary token, the
    rest stay. Ids below ``protected`` (the special tokens) are never chosen. Returns inputs
    int64 [N], positions int64 [count] ascending, labels int64 [count]; where fewer than
    ``count`` tokens can be chosen, the surplus slots point at position 0 with label IGNORE.
    """
    eligible = np.flatnonzero(ids_N >= protected)
    chosen = np.sort(rng.permutation(eligible)[:count])
    inputs_N = ids_N.astype(np.int64)
    fate = rng.random(len(chosen))
    random_ids = rng.integers(protected, vocab_size, len(chosen))
    inputs_N[chosen] = np.where(fate < mask_fraction, mask_id,
                                np.where(fate < mask_fraction + random_fraction, random_ids, ids_N[chosen]))
    positions_K = np.zeros(count, dtype=np.int64)
    labels_K = np.full(count, IGNORE, dtype=np.int64)
    positions_K[:len(chosen)] = chosen
    labels_K[:len(chosen)] = ids_N[chosen]
    return inputs_N, positions_K, labels_K


def causal_labels(next_N: np.ndarray, cls: int, pad: int | None = None) -> np.ndarray:
    """Labels int64 [N] from each token's successor: one that opens a new document, or fills up a row, is not predicted."""
    never_N = next_N == cls
    if pad is not None:
        never_N = never_N | (next_N == pad)
    return np.where(never_N, IGNORE, next_N.astype(np.int64))


def cross_entropy_sum(model, ids_N: Tensor, documents: Documents, positions_K: Tensor | None, labels_K: Tensor,
                      z_loss: float = 0.0, chunked: bool = False) -> Tensor:
    """Sum of the negative log-likelihood (nats) over the labels that are not IGNORE.

    positions_K: where the labels sit; None: at every token (causal). z_loss adds that weight
    times log(Z)^2 (PaLM, Chowdhery et al. 2022, section 5). chunked: never hold all logits.
    """
    x_ND = model(ids_N, documents)
    x_KD = x_ND if positions_K is None else x_ND.index_select(0, positions_K)
    if chunked:
        return linear_cross_entropy(x_KD, model.head.weight, labels_K, ignore_index=IGNORE,
                                    softcap=model.config.logit_softcap, z_loss=z_loss)
    logits_KV = model.logits(x_KD)
    loss = F.cross_entropy(logits_KV, labels_K, ignore_index=IGNORE, reduction="sum")
    if z_loss:
        log_z_K = torch.logsumexp(logits_KV, dim=-1)
        loss = loss + z_loss * (log_z_K.square() * (labels_K != IGNORE)).sum()
    return loss
