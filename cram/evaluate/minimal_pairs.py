"""Minimal pairs: does the model find the grammatical sentence likelier? (BLiMP, Warstadt et al. 2020)

Causal: log p(sentence | [CLS]), the sum over its tokens. Masked: pseudo-log-likelihood (Salazar et al. 2020,
section 2.1): the sum of log p(token | the rest), each token masked once, between [CLS] and [SEP]. No length
normalisation. Chance is 50%.

Every scored sequence is a row of its own, and sequences of one length form a batch: no padding, and the same
numbers for models that do not mask by document.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cram.errors import CramError
from cram.evaluate.heldout import evaluating, predict
from cram.ops import Documents

FOLDER = "nyu-mll/blimp"


def read_pairs(mirror: Path, count: int) -> list[dict]:
    """The first ``count`` pairs of each ``<mirror>/nyu-mll/blimp/*/train.jsonl``: {"good", "bad", "phenomenon"}.

    The phenomenon is ``linguistics_term``, or the name of the folder. Raises CramError (file, line, field).
    """
    pairs = []
    for path in sorted((mirror / FOLDER).glob("*/train.jsonl")):
        with open(path, encoding="utf-8") as file:
            for number, line in zip(range(1, count + 1), file):
                try:
                    row = json.loads(line)
                    pairs.append({"good": row["sentence_good"], "bad": row["sentence_bad"],
                                  "phenomenon": row.get("linguistics_term", path.parent.name)})
                except ValueError as error:
                    raise CramError(f"{path}, line {number}: not JSON ({error}); fetch the file again") from error
                except (KeyError, TypeError, AttributeError) as error:
                    raise CramError(f"{path}, line {number}: a minimal pair needs the fields sentence_good and "
                                    f"sentence_bad (missing: {error}); fetch the file again") from error
    return pairs


def sentence_scores(model: Any, sentences: list[list[int]], special: dict[str, int], *, batch_tokens: int = 8192,
                    device: str | torch.device = "cpu") -> np.ndarray:
    """Log-probability (causal) or pseudo-log-likelihood (masked) of each sentence, nats, float64 [sentences].

    sentences: token ids without special tokens.
    """
    by_length: dict[int, list[tuple[int, list[int], list[int], list[int]]]] = defaultdict(list)
    for number, tokens in enumerate(sentences):
        if model.causal:
            row = [special["cls"], *tokens[:-1]]
            by_length[len(row)].append((number, row, list(range(len(tokens))), tokens))
            continue
        row = [special["cls"], *tokens, special["sep"]]
        for position, token in enumerate(tokens, start=1):
            masked = [*row[:position], special["mask"], *row[position + 1:]]
            by_length[len(row)].append((number, masked, [position], [token]))
    scores = np.zeros(len(sentences))
    with evaluating(model):
        for length, rows in sorted(by_length.items()):
            step = max(1, batch_tokens // length)
            for begin in range(0, len(rows), step):
                numbers, ids, positions, labels = zip(*rows[begin:begin + step])
                start_N = torch.arange(len(ids), dtype=torch.int32).mul_(length).repeat_interleave(length).to(device)
                positions_K = np.concatenate([i * length + np.array(where) for i, where in enumerate(positions)])
                nats_K, _ = predict(model, np.concatenate(ids), Documents(start_N, start_N + length, length),
                                    positions_K, np.concatenate(labels), device=device)
                np.add.at(scores, np.repeat(numbers, [len(where) for where in positions]), -nats_K.cpu().numpy())
    return scores


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion at 95% (Wilson 1927)."""
    centre, spread = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def score_minimal_pairs(model: Any, tokenizer: Any, mirror: Path, count: int, special: dict[str, int], *,
                        batch_tokens: int = 8192, device: str | torch.device = "cpu") -> dict:
    """Accuracy on ``count`` pairs a file: {"accuracy", "low", "high", "pairs", "phenomena": {name: the same}}.

    low, high: 95% Wilson interval. {"skipped": reason} when the mirror has no BLiMP.
    """
    if not any((mirror / FOLDER).glob("*/train.jsonl")):
        return {"skipped": f"no {FOLDER}/*/train.jsonl in {mirror}"}
    pairs = read_pairs(mirror, count)
    encoded = [tokenizer.encode(pair[side], add_special_tokens=False).ids for pair in pairs for side in ("good", "bad")]
    scores_P2 = sentence_scores(model, encoded, special, batch_tokens=batch_tokens, device=device).reshape(-1, 2)
    hits: dict[str, list[bool]] = defaultdict(list)
    for pair, (good, bad) in zip(pairs, scores_P2):
        hits[pair["phenomenon"]].append(bool(good > bad))

    def summary(found: list[bool]) -> dict:
        low, high = wilson(sum(found), len(found))
        return {"accuracy": sum(found) / len(found), "low": low, "high": high, "pairs": len(found)}

    everything = summary([hit for found in hits.values() for hit in found])
    return everything | {"phenomena": {name: summary(found) for name, found in sorted(hits.items())}}
