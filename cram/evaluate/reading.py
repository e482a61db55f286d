"""Texts as a model reads them: token ids without padding, hidden states, and what fits in one forward pass.

Sequences are documents of one packed stream, ``[CLS] a [SEP] b [SEP]``. Masked models read them from both sides, causal ones
from the left; hybrid models, which were trained both ways, from both sides, as GPT-BERT does (Charpentier & Samuel 2024).

What stands for a sequence is the mean of its hidden states; or one token's: [CLS], as in BERT, which pretraining never asks of
our models, or the last one of causal models, the only one that has seen everything.

Axes: N tokens, B examples, S sequences (B x ways), D width.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, replace
from typing import Any, Callable, ContextManager, Iterator, NamedTuple, Optional, Sequence, TypeVar

import numpy as np
import torch
from torch import Tensor

from cram.device import is_out_of_memory
from cram.errors import CramError
from cram.evaluate.subject import Subject
from cram.ops import Documents

PASS_TOKENS = {"cpu": 512, "cuda": 65536}  # of a forward pass; the mask of one packed row is its square on the CPU
Result = TypeVar("Result")


class Example(NamedTuple):
    """texts: the sequences that it is made of, each a sentence or two; several where one is to be chosen. label: the class,
    the number, or which of the sequences is right."""

    texts: tuple[tuple[str, ...], ...]
    label: float


@dataclass(frozen=True)
class Encoded:
    """Examples as token ids: sequences [S], ``ways`` of them an example; labels float64 [B]; cut: how many lost tokens."""

    sequences: list[np.ndarray]
    labels_B: np.ndarray
    ways: int
    cut: int

    def __len__(self) -> int:
        return len(self.labels_B)

    def size(self, number: int) -> int:
        """Tokens of an example."""
        return sum(map(len, self.sequences[number * self.ways:(number + 1) * self.ways]))


class Reading(NamedTuple):
    """How a model reads: which token stands for a sequence, the last or the first; causal as in ``Transformer.forward``."""

    at_end: bool
    causal: Optional[bool]


READINGS = {"masked": Reading(False, None), "causal": Reading(True, None), "hybrid": Reading(False, False)}


def shorten(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Cut the longer of the two, token by token from its end, until both fit; the second where they are equal."""
    keep = min(len(a), max(room - len(b), room - room // 2))
    return a[:keep], b[:room - keep]


def encode(subject: Subject, examples: Sequence[Example], length: int) -> Encoded:
    """Examples as the model reads them, of ``length`` tokens at most. All have as many sequences as the first."""
    cls, sep, sequences, cut = subject.special["cls"], subject.special["sep"], [], 0
    for example in examples:
        for texts in example.texts:
            first, *second = (subject.encode(text) for text in texts)
            kept, other = shorten(first, second[0] if second else [], length - 2 - len(second))
            cut += len(kept) + len(other) < len(first) + sum(map(len, second))
            tail = [*other, sep] if second else []
            sequences.append(np.array([cls, *kept, sep, *tail], dtype=np.int64))
    labels_B = np.array([example.label for example in examples], dtype=np.float64)
    return Encoded(sequences, labels_B, len(examples[0].texts), cut)


def precision(device: str) -> ContextManager:
    """bfloat16 matrix products on a card that has them, else float32."""
    if torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.autocast("cuda", torch.bfloat16)
    return contextlib.nullcontext()


def read(model: Any, sequences: Sequence[np.ndarray], reading: Reading, device: str) -> Tensor:
    """Hidden states [N, D] of sequences end to end, each a document; in rows of their own where all have one length, for the
    CPU computes the scores of whole rows."""
    documents = Documents.from_lengths([len(ids) for ids in sequences], device)
    if len({len(ids) for ids in sequences}) == 1:
        documents = replace(documents, row=len(sequences[0]))
    with precision(device):
        return model(torch.from_numpy(np.concatenate(sequences)).to(device), documents, reading.causal)


def pool(model: Any, sequences: Sequence[np.ndarray], reading: Reading, device: str, pooling: str = "mean") -> Tensor:
    """What stands for each sequence, float32 [S, D]: the mean of its hidden states, or that of one ``token``."""
    hidden_ND = read(model, sequences, reading, device)
    length_S = torch.tensor([len(ids) for ids in sequences], device=device)
    if pooling == "mean":
        return torch.segment_reduce(hidden_ND.float(), "mean", lengths=length_S)
    end_S = length_S.cumsum(0)
    return hidden_ND.index_select(0, end_S - 1 if reading.at_end else end_S - length_S).float()


def passes(data: Encoded, which: Sequence[int], tokens: int) -> Iterator[np.ndarray]:
    """Cut a list of examples into forward passes of ``tokens`` at most, or of one example."""
    here, held = [], 0
    for number in which:
        size = data.size(number)
        if here and held + size > tokens:
            yield np.array(here)
            here, held = [], 0
        here.append(number)
        held += size
    yield np.array(here)


def passes_of_one_size(data: Encoded, tokens: int) -> Iterator[np.ndarray]:
    """All examples by their size, no pass with two sizes: the fastest way where the order does not matter."""
    by_size = sorted(range(len(data)), key=data.size)
    for _, alike in itertools.groupby(by_size, key=data.size):
        yield from passes(data, list(alike), tokens)


def halving(attempt: Callable[[int], Result], tokens: int, least: int, say: Callable[[str], None]) -> tuple[Result, int]:
    """(attempt(tokens), tokens), with half the tokens each time that memory runs out. CramError below ``least``."""
    while True:
        try:
            return attempt(tokens), tokens
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, where the error and the tensors that it held are gone.
        if tokens // 2 < least:
            raise CramError(f"out of memory with {tokens:,} tokens at once; shorten evaluate.finetune.length or "
                            "train.sequence_length, or use the CPU")
        tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        say(f"out of memory: forward passes of {tokens:,} tokens from now on, not {2 * tokens:,}; the batch stays")
