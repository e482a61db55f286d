"""batch = f(seed, step): rows of the packed stream in a seeded order, with their targets.

There is no loader state to save. Row number i of the run (counting over all epochs) is
row ``permutation(epoch)[i mod rows]`` of the stream (order.py), and the masks of a step come
from a generator keyed by (seed, step). Neither depends on how a step is split into
micro-batches, nor on the processes that share these.

Rows can be cut into shorter pieces for a while (train.sequence_schedule). Each is then a row
of its own, while rows are counted and ordered as before.

Text packed by best fit ends some rows with [PAD]: a document of its own, which nothing else sees
and in which nothing is predicted.

Axes: B rows, T tokens a row; R pieces of rows of L tokens; N = B T = R L, K predictions.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from cram.errors import CramError
from cram.masking import IGNORE, Corruption, Noise, hidden_count, hide_tokens
from cram.objective import causal_labels, step_kinds
from cram.ops import Documents
from cram.order import row_scores, shuffled
from data_prep.shards import Shards

MASKING = 1  # a random stream of the seed; order.py has another


@dataclass
class MicroBatch:
    """One forward/backward: ids int64 [N], documents, positions int64 [K] or None, labels int64 [K]."""

    ids_N: Tensor
    documents: Documents
    positions_K: Optional[Tensor]
    labels_K: Tensor
    predicted: int  # labels that count
    causal: bool  # may a token see only what is before it?


def document_bounds(ids_BT: np.ndarray, cls: int, pad: Optional[int] = None) -> tuple[np.ndarray, np.ndarray]:
    """Start and end of each token's document, int32 [B T] each, from the [CLS] that opens every document.

    A row may begin in the middle of a document: that fragment starts with the row. The ``pad`` tokens that end a row
    make a document of their own.
    """
    rows, length = ids_BT.shape
    opens_BT = ids_BT == cls
    if pad is not None:
        opens_BT[:, 1:] |= (ids_BT[:, 1:] == pad) & (ids_BT[:, :-1] != pad)
    opens_BT[:, 0] = True
    index_BT = np.arange(rows * length, dtype=np.int32).reshape(rows, length)
    start_BT = np.maximum.accumulate(np.where(opens_BT, index_BT, 0), axis=1)
    closes_BT = np.roll(opens_BT, -1, axis=1)  # the row's first token opens, so its last one closes
    end_BT = np.minimum.accumulate(np.where(closes_BT, index_BT + 1, rows * length)[:, ::-1], axis=1)[:, ::-1]
    return start_BT.reshape(-1), end_BT.reshape(-1).astype(np.int32)


class Batches:
    """Training batches from the packed shards. objective: ``cram.schema.Objective``; order: as train.order.

    Process ``rank`` of ``world`` makes its share of the micro-batches of every step. Raises CramError when there is not
    one row, or the text was fitted into rows of another length.
    """

    def __init__(self, shards: Shards, objective, *, row: int, seed: int, device: str | torch.device = "cpu",
                 order: str = "shuffled", rank: int = 0, world: int = 1):
        self.rank, self.world = rank, world
        self.shards, self.objective, self.row, self.seed = shards, objective, row, seed
        self.device = torch.device(device)
        self.rows = shards.n_tokens // row
        if not self.rows:
            raise CramError(f"training text has {shards.n_tokens} tokens, not one row of train.sequence_length={row}: "
                            "add text or shorten the rows")
        if shards.row_tokens not in (None, row):
            raise CramError(f"the training text was fitted into rows of {shards.row_tokens} tokens (data.packing=best-fit), "
                            f"but train.sequence_length is {row}: run cram data again, or pack it as a stream")
        self.corruption = Corruption(shards.special["mask"], len(shards.special), shards.vocab_size,
                                     objective.mask_token_fraction, objective.random_token_fraction)
        self._score = row_scores(shards, row, order)
        self._order: dict[int, np.ndarray] = {}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: Optional[tuple[tuple, Future]] = None

    def step(self, step: int, first_row: int, *, rows: int, micro_rows: int, mask_rate: float, length: Optional[int] = None,
             prefetch: bool = True) -> list[MicroBatch]:
        """This process's micro-batches of an optimizer step of ``rows`` rows, from number ``first_row`` of the run on.

        micro_rows: rows in each micro-batch; length: tokens in each piece of a row (None: rows stay whole). With
        ``prefetch`` the next step of the same shape is prepared in the background. Raises ValueError when the rows cannot
        be divided into equal micro-batches, those among the processes, or a row into pieces.
        """
        wanted = (step, first_row, rows, micro_rows, mask_rate, length or self.row)
        if rows % micro_rows or rows // micro_rows % self.world or self.row % wanted[-1]:
            raise ValueError(f"{rows} rows of {self.row} tokens cannot be divided into micro-batches of {micro_rows} rows for "
                             f"{self.world} processes, in pieces of {wanted[-1]} tokens")
        key, future = self._ahead or (None, None)
        arrays = future.result() if future else None  # also when it is not the wanted one: one maker at a time
        if key != wanted:
            arrays = self._make(*wanted)
        self._ahead = None
        if prefetch:
            following = (step + 1, first_row + rows, *wanted[2:])
            self._ahead = following, self._worker.submit(self._make, *following)
        return [self._to_device(array, wanted[-1], causal) for causal, array in arrays]

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def read_rows(self, first_row: int, count: int) -> np.ndarray:
        """Rows first_row ... of the run with the successor of each last token: the shards' type [count, T + 1]."""
        out = np.empty((count, self.row + 1), dtype=self.shards.dtype)
        for i, number in enumerate(range(first_row, first_row + count)):
            start = int(self._permutation(number // self.rows)[number % self.rows]) * self.row
            tokens = self.shards.read(start, min(start + self.row + 1, self.shards.n_tokens))
            out[i, :len(tokens)] = tokens
            out[i, len(tokens):] = self.shards.special["cls"]  # nothing follows the last document
        return out

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._order:
            self._order = {e: order for e, order in self._order.items() if e == epoch - 1}
            order = shuffled(self.rows, self.seed, epoch)
            if self._score is not None:  # stable: the seed decides between equal rows
                order = order[np.argsort(self._score[order], kind="stable")]
            self._order[epoch] = order
        return self._order[epoch]

    def _make(self, step: int, first_row: int, rows: int, micro_rows: int, mask_rate: float, length: int
              ) -> list[tuple[bool, tuple]]:
        kinds = step_kinds(self.objective, step, rows // micro_rows)
        share, pieces, noise = len(kinds) // self.world, self.row // length, None
        mine = range(self.rank * share, (self.rank + 1) * share)
        if not all(kinds[i] for i in mine):
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, MASKING, step])))
            noise = Noise.draw(rng, rows * pieces, length, self.corruption)  # of all processes: each keeps its share
        made = []
        for i in mine:
            tokens_BT1 = self.read_rows(first_row + i * micro_rows, micro_rows)
            made.append((kinds[i], self._causal(tokens_BT1, length) if kinds[i] else self._masked(
                tokens_BT1, length, hidden_count(mask_rate, length), noise.rows(i * micro_rows * pieces, micro_rows * pieces))))
        return made

    def _causal(self, tokens_BT1: np.ndarray, length: int) -> tuple:
        ids_RL, special = tokens_BT1[:, :-1].reshape(-1, length), self.shards.special
        labels_N = causal_labels(tokens_BT1[:, 1:].reshape(-1), special["cls"], special["pad"])
        return ids_RL.reshape(-1).astype(np.int64), *document_bounds(ids_RL, special["cls"], special["pad"]), None, labels_N

    def _masked(self, tokens_BT1: np.ndarray, length: int, count: int, noise: Noise) -> tuple:
        ids_RL, special, hybrid = tokens_BT1[:, :-1].reshape(-1, length), self.shards.special, self.objective.type == "hybrid"
        start_N, end_N = document_bounds(ids_RL, special["cls"], special["pad"])
        allowed_N = start_N < np.arange(len(start_N)) if hybrid else np.ones(len(start_N), bool)  # has it a position before?
        padding_R = np.count_nonzero(ids_RL == special["pad"], axis=1)
        inputs_N, positions_K, labels_K = hide_tokens(ids_RL, allowed_N.reshape(ids_RL.shape), count, noise, self.corruption,
                                                      padding_R)
        return inputs_N, start_N, end_N, np.where(labels_K != IGNORE, positions_K - hybrid, 0), labels_K

    def _to_device(self, arrays: tuple, length: int, causal: bool) -> MicroBatch:
        def move(array: Optional[np.ndarray]) -> Optional[Tensor]:
            if array is None:
                return None
            tensor = torch.from_numpy(np.ascontiguousarray(array))
            if self.device.type == "cuda":
                return tensor.pin_memory().to(self.device, non_blocking=True)
            return tensor
        ids, start, end, positions, labels = arrays
        return MicroBatch(move(ids), Documents(move(start), move(end), length), move(positions), move(labels),
                          int((labels != IGNORE).sum()), causal)
