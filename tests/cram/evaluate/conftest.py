"""A held-out split in memory and models whose probabilities are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCAB = 23


class MemoryShards:
    """The part of ``data_prep.shards.Shards`` that evaluation reads."""

    def __init__(self, documents, document_bytes, lossless=True):
        pieces = [np.array([2, *tokens, 3], np.uint16) for tokens in documents]
        self.stream = np.concatenate(pieces) if pieces else np.zeros(0, np.uint16)
        self.document_starts = np.cumsum([0] + [len(piece) for piece in pieces]).astype(np.int64)
        self.document_bytes = np.array(document_bytes, np.int64)
        self.n_documents, self.n_tokens = len(pieces), len(self.stream)
        self.vocab_size, self.special, self.lossless = VOCAB, SPECIAL, lossless

    def read(self, start, stop):
        return self.stream[start:stop]


class BagModel(torch.nn.Module):
    """Hidden state: tanh of the sum of the embeddings that the token may see in its document."""

    def __init__(self, causal, vocab_size=VOCAB, width=8):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.causal, self.vocab_size = causal, vocab_size
        self.embedding = torch.nn.Parameter(torch.randn(vocab_size, width, generator=generator))
        self.head = torch.nn.Parameter(torch.randn(width, vocab_size, generator=generator))
        self.dropout = torch.nn.Dropout(0.5)
        self.shapes = []

    def forward(self, ids_N, documents, causal=None):
        causal = self.causal if causal is None else causal
        self.shapes.append(tuple(ids_N.shape))
        totals = torch.cat([torch.zeros(1, self.embedding.shape[1]), self.embedding[ids_N].cumsum(0)])
        here = torch.arange(1, len(ids_N) + 1)
        stop = here if causal else documents.end_N.long()
        return self.dropout(torch.tanh(totals[stop] - totals[documents.start_N.long()]))

    def logits(self, x_PD):
        return x_PD @ self.head

    def log_probabilities(self, seen):
        """float64 [V] given the ids in sight: the same model, said once more in plain NumPy."""
        hidden = np.tanh(sum(self.embedding.detach().double().numpy()[token] for token in seen))
        logits = hidden @ self.head.detach().double().numpy()
        return logits - np.log(np.sum(np.exp(logits)))


class UniformModel(torch.nn.Module):
    """Every token is equally likely."""

    def __init__(self, causal):
        super().__init__()
        self.causal, self.vocab_size = causal, VOCAB

    def forward(self, ids_N, documents, causal=None):
        return torch.zeros(len(ids_N), 1)

    def logits(self, x_PD):
        return torch.zeros(len(x_PD), self.vocab_size)


@pytest.fixture
def shards():
    rng = np.random.default_rng(5)
    lengths = [3, 17, 1, 40, 8, 26, 5]
    return MemoryShards([rng.integers(5, VOCAB, n) for n in lengths], [4 * n + 1 for n in lengths])


@pytest.fixture
def make():
    return SimpleNamespace(shards=MemoryShards, bag=BagModel, uniform=UniformModel, special=SPECIAL, vocab=VOCAB)
