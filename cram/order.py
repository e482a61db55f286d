"""The order of the rows in an epoch: shuffled, or a curriculum.

shuffled          a permutation of its own for each (seed, epoch)
short-first       rows of short documents first
frequent-first    rows of frequent tokens first: the unigram curriculum of Geiping & Goldstein (2023, section 4.4), who saw
                  some gain from it when the budget ends before the text does
rare-first        the reverse

A curriculum gives every row a score, smallest first; the seed decides between equal ones, and each epoch goes through
it anew. One float32 a row is kept. Axes: R rows, T tokens a row, V vocabulary, P pieces of documents.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from data_prep.shards import Shards

ORDER = 2  # a random stream of the seed; batches.py has another
BLOCK_TOKENS = 2**22  # read at a time


def shuffled(rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the rows, uint32 [R] (uint64 from 2^32 rows on)."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, ORDER, epoch])))
    return rng.permutation(rows).astype(np.uint32 if rows < 2**32 else np.uint64)


def row_scores(shards: Shards, row: int, order: str) -> Optional[np.ndarray]:
    """float32 [R]: rows with small scores come first; None when they are shuffled. Raises ValueError for another order."""
    if order == "shuffled":
        return None
    if order == "short-first":
        return document_lengths(shards, row)
    if order in ("frequent-first", "rare-first"):
        log_probability_R = unigram_scores(shards, row)
        return -log_probability_R if order == "frequent-first" else log_probability_R
    raise ValueError(f"no order of rows {order!r}")


def document_lengths(shards: Shards, row: int) -> np.ndarray:
    """float32 [R]: tokens of the whole document that a token of the row belongs to, on average.

    The sum over the tokens before position x grows along each piece by the length of its document: it is known at the
    borders of pieces and linear in between. Padding counts with the piece before it.
    """
    start_P, length_P = shards.piece_starts, np.diff(shards.piece_starts)
    document_P = np.bincount(shards.piece_documents, weights=length_P).astype(np.int64)[shards.piece_documents]
    before_P = np.cumsum(length_P * document_P) - length_P * document_P
    border_R = np.arange(shards.n_tokens // row + 1) * row
    piece_R = np.clip(np.searchsorted(start_P, border_R, side="right") - 1, 0, len(length_P) - 1)
    sum_R = before_P[piece_R] + (border_R - start_P[piece_R]) * document_P[piece_R]
    return (np.diff(sum_R) / row).astype(np.float32)


def unigram_scores(shards: Shards, row: int) -> np.ndarray:
    """float32 [R]: mean log-probability (nats) of the row's tokens by their frequency; special tokens left out."""
    count_V = shards.token_counts().astype(np.float64)
    count_V[:len(shards.special)] = 0
    log_probability_V = np.log(np.maximum(count_V, 1) / max(count_V.sum(), 1)).astype(np.float32)
    log_probability_V[:len(shards.special)] = 0
    rows = shards.n_tokens // row
    score_R = np.empty(rows, np.float32)
    block = max(1, BLOCK_TOKENS // row)
    for low in range(0, rows, block):
        high = min(low + block, rows)
        ids_BT = shards.read(low * row, high * row).reshape(-1, row)
        ordinary_B = np.count_nonzero(ids_BT >= len(shards.special), axis=1)
        score_R[low:high] = log_probability_V[ids_BT].sum(axis=1) / np.maximum(ordinary_B, 1)
    return score_R
