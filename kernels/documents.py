"""Who sees whom: one interval of keys for every query.

Documents of different lengths lie end to end in rows of ``row`` tokens, and no token may
look into another document. Add causal attention and a sliding window, and still every
query sees one contiguous run of keys, and every key is seen by one contiguous run of
queries:

                        query i sees keys                      key j is seen by queries
    bidirectional       [max(s, i-W), min(e, i+W+1))           [max(s, j-W), min(e, j+W+1))
    causal              [max(s, i-W), min(e, i+1))             [max(s, j), min(e, j+W+1))

with s and e the start and end of the token's document and W the window (N without one). So a mask is two int32 tensors of
N numbers, whatever the rule that made it: changing documents changes values, never shapes,
so nothing recompiles and nothing waits for the device.

Axes: N packed tokens = R rows x T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """How documents are packed into N tokens.

    start_N, end_N: int32 [N], index of the first token of each token's document and one
        past its last; documents are contiguous. Both None: every row is one document. A
        token with end <= start belongs to no document: it sees nothing and gets zeros.
    row: tokens per row T; N is a multiple of it and no document crosses a row border.
    """

    start_N: Optional[Tensor]
    end_N: Optional[Tensor]
    row: int

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Documents:
        """Documents of these lengths (0 allowed) end to end in one row of sum(lengths) tokens."""
        length_B = torch.tensor(lengths, dtype=torch.int32, device=device)
        end_B = length_B.cumsum(0, dtype=torch.int32)
        return cls((end_B - length_B).repeat_interleave(length_B), end_B.repeat_interleave(length_B), sum(lengths))

    def bounds(self, n: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Start and end of each token's document, int32 [N] each."""
        if self.start_N is not None:
            return self.start_N, self.end_N
        start_N = torch.arange(n, device=device, dtype=torch.int32) // self.row * self.row
        return start_N, start_N + self.row

    def positions(self, n: int, device: torch.device | str) -> Tensor:
        """Position of each token in its own document, int64 [N], counting from 0; 0 for a token of no document."""
        index_N = torch.arange(n, device=device)
        if self.start_N is None:
            return index_N % self.row
        return torch.where(self.end_N > self.start_N, index_N - self.start_N, 0)

    def sees(self, n: int, *, causal: bool, window: Optional[int], device: torch.device | str) -> Tensor:
        """First key each query sees and one past the last: int32 [2, N]. Empty where last <= first."""
        return self._interval(n, not causal, True, window, device)

    def seen_by(self, n: int, *, causal: bool, window: Optional[int], device: torch.device | str) -> Tensor:
        """First query that sees each key and one past the last: int32 [2, N]. Empty where last <= first."""
        return self._interval(n, True, not causal, window, device)

    def _interval(self, n: int, ahead: bool, behind: bool, window: Optional[int], device) -> Tensor:
        """The part of each token's document that lies behind it, ahead of it or both, cut to the window."""
        start_N, end_N = self.bounds(n, device)
        index_N = torch.arange(n, device=device, dtype=torch.int32)
        reach = n if window is None else min(window, n)
        first_N = torch.maximum(start_N, index_N - reach if behind else index_N)
        last_N = torch.minimum(end_N, index_N + (reach if ahead else 0) + 1)
        return torch.stack((first_N, last_N))
