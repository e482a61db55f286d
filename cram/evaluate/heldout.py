"""Loss on held-out text, counted token by token and, for causal models, byte by byte.

The stream of validation tokens is cut in rows, as in training: a document cut by
a row border is two fragments, the second without the context of the first.
Shapes: N tokens of the stream, K predictions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, replace
from typing import Any, ContextManager, Iterator, Optional

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cram.batches import document_bounds
from cram.errors import CramError
from cram.masking import IGNORE, Corruption, hide_once
from cram.objective import causal_labels
from cram.ops import Documents

PROTECTED = 5  # ids below are [PAD] [UNK] [CLS] [SEP] [MASK]
CHUNK_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}  # logits held at once: what a CPU's cache holds, what keeps a card busy


@dataclass(frozen=True)
class Targets:
    """Which tokens are predicted, and from what. Fixed by the held-out text and the seed alone."""

    inputs_N: np.ndarray  # int64, the stream as the model sees it
    positions_K: np.ndarray  # int64, ascending, where a prediction is made
    labels_K: np.ndarray  # int64, the token that is right there
    documents: int
    bytes: int  # UTF-8 bytes of the text of these documents


def held_out_targets(shards: Any, *, causal: bool, mask_rate: float, max_tokens: int, seed: int = 0) -> Targets:
    """The predictions asked of a model on the first whole documents that hold ``max_tokens`` at most (at least one).

    Causal: every token but [CLS] is predicted once, by the token before it in the stream (the first token of a row,
    in mid-document, by the last position of the row before). Masked: ``mask_rate`` of the tokens that are not
    special, chosen and corrupted 80/10/10 (Devlin et al. 2019, section 3.1) by a private generator.
    Raises CramError when there is no held-out document.
    """
    if shards.n_documents == 0:
        raise CramError("validation: no held-out document; raise data.validation_fraction or bring more text")
    documents = max(1, int(np.searchsorted(shards.document_starts, max_tokens, side="right")) - 1)
    stream_N = shards.read(0, int(shards.document_starts[documents])).astype(np.int64)
    text_bytes = int(np.sum(shards.document_bytes[:documents]))
    if causal:
        labels_N = causal_labels(stream_N[1:], shards.special["cls"])
        positions_K = np.flatnonzero(labels_N != IGNORE)
        return Targets(stream_N, positions_K, labels_N[positions_K], documents, text_bytes)
    count = max(1, round(mask_rate * int(np.sum(stream_N >= PROTECTED))))
    corruption = Corruption(shards.special["mask"], PROTECTED, shards.vocab_size)
    inputs_N, positions_K, labels_K = hide_once(stream_N, count, np.random.default_rng(seed), corruption)
    if not len(positions_K):
        raise CramError("validation: the held-out text holds special tokens only; bring more text")
    return Targets(inputs_N, positions_K, labels_K, documents, text_bytes)


@torch.no_grad()
def predict(model: Any, ids_N: np.ndarray, documents: Documents, positions_K: np.ndarray, labels_K: np.ndarray, *,
            device: str | torch.device = "cpu", autocast: ContextManager = contextlib.nullcontext(),
            causal: Optional[bool] = None) -> tuple[Tensor, Tensor]:
    """Nats (float64 [K]) of the labels at the positions, and whether each is the likeliest token (bool [K]).

    causal: None as the model was built.
    """
    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    chunk = max(1, CHUNK_ELEMENTS[torch.device(device).type] // model.vocab_size)
    nats, hits = [], []
    with autocast:
        hidden_ND = model(move(ids_N), documents, causal)
        for low in range(0, len(positions_K), chunk):
            labels_P = move(labels_K[low:low + chunk])
            logits_PV = model.logits(hidden_ND[move(positions_K[low:low + chunk])]).float()
            nats.append(F.cross_entropy(logits_PV, labels_P, reduction="none").double())
            hits.append(logits_PV.argmax(1) == labels_P)
    return torch.cat(nats), torch.cat(hits)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode for a while; the mode before is restored, come what may."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def score_targets(model: Any, targets: Targets, *, row: int, special: dict[str, int], batch_tokens: int = 8192,
                  device: str | torch.device = "cpu", autocast: ContextManager = contextlib.nullcontext(),
                  causal: Optional[bool] = None) -> tuple[np.ndarray, np.ndarray]:
    """Nats (float64 [K]) and whether the likeliest token is the right one (bool [K]), for every prediction.

    All batches have one shape, so that a compiled model compiles once. The model's training mode is restored and
    no random number is drawn.
    """
    step = max(1, batch_tokens // row) * row
    n_tokens = len(targets.inputs_N)
    ids_N = np.full(-(-n_tokens // step) * step, special["pad"], dtype=np.int64)
    ids_N[:n_tokens] = targets.inputs_N
    if n_tokens < len(ids_N):
        ids_N[n_tokens] = special["cls"]  # opens the padding as a document of its own
    nats, hits = [], []
    with evaluating(model):
        for begin in range(0, len(ids_N), step):
            first, last = np.searchsorted(targets.positions_K, (begin, begin + step))
            if first == last:
                continue
            batch_N = ids_N[begin:begin + step]
            bounds = document_bounds(batch_N.reshape(-1, row), special["cls"])
            documents = Documents(*(torch.from_numpy(bound).to(device) for bound in bounds), row)
            batch = predict(model, batch_N, documents, targets.positions_K[first:last] - begin,
                            targets.labels_K[first:last], device=device, autocast=autocast, causal=causal)
            nats.append(batch[0])
            hits.append(batch[1])
    return torch.cat(nats).cpu().numpy(), torch.cat(hits).cpu().numpy()


def score_heldout(model: Any, shards: Any, *, row: int, mask_rate: float, max_tokens: int, batch_tokens: int = 8192,
                  seed: int = 0, device: str | torch.device = "cpu", autocast: ContextManager = contextlib.nullcontext(),
                  hybrid: bool = False) -> dict:
    """Score ``model`` on the validation ``shards`` (``data_prep.shards.Shards``).

    Causal: ``loss`` (nats per predicted token, [SEP] among them), ``accuracy``, ``predicted``, ``bytes`` and
    ``bits_per_byte``: the bits of the tokens of content alone, over the raw UTF-8 bytes of the documents scored;
    None when the tokenizer is lossy, for then the tokens do not say the text. Masked: ``loss``, ``accuracy``,
    ``predicted``, on the same masks every time. Hybrid, which is built causal: as causal, and ``masked_loss`` and
    ``masked_accuracy`` on the masks of a masked model, each token predicted at the position before it.
    """
    ask = dict(mask_rate=mask_rate, max_tokens=max_tokens, seed=seed)
    how = dict(row=row, special=shards.special, batch_tokens=batch_tokens, device=device, autocast=autocast)
    targets = held_out_targets(shards, causal=model.causal, **ask)
    nats_K, hits_K = score_targets(model, targets, **how)
    scores = {"loss": float(nats_K.mean()), "accuracy": float(hits_K.mean()), "predicted": len(nats_K)}
    if model.causal:
        scores |= {"bytes": targets.bytes, "bits_per_byte": bits_per_byte(nats_K, targets, shards)}
    if hybrid:
        hidden = held_out_targets(shards, causal=False, **ask)
        nats_K, hits_K = score_targets(model, replace(hidden, positions_K=hidden.positions_K - 1), causal=False, **how)
        scores |= {"masked_loss": float(nats_K.mean()), "masked_accuracy": float(hits_K.mean())}
    return scores


def bits_per_byte(nats_K: np.ndarray, targets: Targets, shards: Any) -> float | None:
    """Bits that the content of the documents costs, over their bytes; None when the tokenizer is lossy."""
    if not shards.lossless:
        return None
    content_K = targets.labels_K != shards.special["sep"]
    return float(nats_K[content_K].sum() / math.log(2) / targets.bytes)
