"""What the same held-out text costs without a model: the lines a score has to beat.

uniform: every token of the vocabulary is equally likely. unigram: the counts of the
training tokens, add-one smoothed, over the kinds of token that are ever predicted.
xz and gzip compress the very documents scored, joined by newlines; they see nothing
of the training text. A model must code each token on from what it learned; they may
look things up in what they have just compressed. All are in bits of the documents'
own UTF-8 bytes.
"""

from __future__ import annotations

import json
import lzma
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from cram.errors import CramError
from cram.evaluate.heldout import PROTECTED, Targets, bits_per_byte


def token_baselines(targets: Targets, shards: Any, counts_V: np.ndarray, *, causal: bool) -> dict[str, dict]:
    """Uniform and unigram on the predicted tokens: {"uniform": {"loss", "bits_per_byte"}, "unigram": {...}}.

    counts_V: int64 [V], tokens of the training split. ``loss`` in nats per predicted token; ``bits_per_byte`` for
    causal models only, None with a lossy tokenizer.
    """
    counts_V = counts_V.astype(np.float64)
    if causal:
        counts_V[shards.special["cls"]] = 0
    else:
        counts_V[:PROTECTED] = 0
    log_p_V = {
        "uniform": np.full(shards.vocab_size, -np.log(shards.vocab_size)),
        "unigram": np.log(counts_V + 1) - np.log(counts_V.sum() + shards.vocab_size)}
    scores: dict[str, dict] = {}
    for name, log_p in log_p_V.items():
        nats_K = -log_p[targets.labels_K]
        scores[name] = {"loss": float(nats_K.mean())}
        if causal:
            scores[name]["bits_per_byte"] = bits_per_byte(nats_K, targets, shards)
    return scores


def compression_baselines(targets: Targets, validation: Path) -> dict[str, dict]:
    """``xz -9e`` and ``gzip -9`` on the documents scored: {name: {"bits_per_byte"}}.

    validation: ``validation.jsonl``, one {"text"} a line in the order of the shards. Raises CramError when it does
    not hold the bytes that the shards were packed from.
    """
    with open(validation, encoding="utf-8") as file:
        texts = [json.loads(line)["text"].encode() for line, _ in zip(file, range(targets.documents))]
    if (len(texts), sum(map(len, texts))) != (targets.documents, targets.bytes):
        raise CramError(f"{validation}: {sum(map(len, texts))} bytes in the first {len(texts)} documents, but the shards "
                        f"were packed from {targets.bytes} in {targets.documents}; run the data stage again")
    joined = b"\n".join(texts)
    sizes = {"xz -9e": len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME)),
             "gzip -9": len(zlib.compress(joined, level=9))}
    return {name: {"bits_per_byte": 8 * size / targets.bytes} for name, size in sizes.items()}
