"""Minimal pairs: does the model find the grammatical sentence likelier? (BLiMP, Warstadt et al. 2020)

Causal and hybrid: log p(sentence | [CLS]), the sum over its tokens, as in the paper. Masked: pseudo-log-likelihood, by whole
words or as Salazar et al. (2020) define it (scoring.py). No length normalisation. Chance is 50%.

A pair is right when the good sentence is strictly likelier. A tie shows no preference and counts as wrong; ties are counted
(the same tokens tie to the last bit: seven pairs of BLiMP are one sentence twice). lm-evaluation-harness takes the first of
equals, which in its BLiMP is always the good one, and writes a space before each sentence; ours stand as they are, like the
beginning of a document.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Iterable, Optional, Sequence

import numpy as np
import torch

from cram.errors import CramError
from cram.evaluate.blimp_names import PARADIGMS
from cram.evaluate.scoring import Variant, log_likelihoods, pseudo_log_likelihood
from cram.evaluate.subject import Subject
from cram.evaluate.task import FILE, Rows, Split, Task

FOLDER = "nyu-mll/blimp"
BLIMP = {paradigm: Split(FOLDER, paradigm, "train") for paradigm in PARADIGMS}
GROUPS = ("paradigm", "phenomenon", "field")
ANY_LENGTH = 2**30  # the quick look scores sentences of any length in one piece


def read_pairs(mirror: Path, count: Optional[int]) -> list[dict]:
    """The first ``count`` pairs (None: all) of each paradigm in ``<mirror>/nyu-mll/blimp``; [] where there is none.

    Raises CramError or DataError (file, row, field).
    """
    pairs = []
    for folder in sorted(folder for folder in (mirror / FOLDER).glob("*") if folder.is_dir()):
        place, rows = Split(FOLDER, folder.name, "train").read(str(mirror))
        pairs += pairs_of(Rows(place, rows[:count]), folder.name)
    return pairs


def sample_pairs(mirror: Path, count: int, seed: int) -> list[dict]:
    """``count`` pairs of BLiMP spread evenly over the paradigms (which get one more is drawn), the same for a seed: a cheap
    probe. Fewer where a paradigm has not enough; none where the mirror has no BLiMP."""
    by_paradigm: dict[str, list[dict]] = defaultdict(list)
    for pair in read_pairs(mirror, None):
        by_paradigm[pair["paradigm"]].append(pair)
    if not by_paradigm:
        return []
    generator = np.random.default_rng(seed)
    share, more = divmod(count, len(by_paradigm))
    lucky = set(generator.permutation(len(by_paradigm))[:more].tolist())
    chosen = []
    for number, found in enumerate(by_paradigm.values()):
        order = generator.permutation(len(found))[:share + (number in lucky)]
        chosen += [found[place] for place in sorted(order.tolist())]
    return chosen


def pairs_of(rows: Rows, paradigm: str) -> list[dict]:
    """The pairs of one paradigm: {"good", "bad", "phenomenon", "paradigm"} and, where the rows tell it, "field"."""
    pairs = []
    for number, row in enumerate(rows.rows):
        good, bad = rows.get(number, "sentence_good"), rows.get(number, "sentence_bad")
        if not isinstance(good, str) or not isinstance(bad, str) or not good or not bad:
            raise CramError(f"{rows.place}, row {number + 1}: sentence_good and sentence_bad must be sentences, not "
                            f"{good!r} and {bad!r}; correct the file")
        phenomenon = str(row.get("linguistics_term") or row.get("phenomenon") or paradigm)
        field = {"field": str(row["field"]).replace("/", "_")} if row.get("field") else {}  # one paradigm: syntax/semantics
        pairs.append({"good": good, "bad": bad, "phenomenon": phenomenon, "paradigm": paradigm} | field)
    return pairs


def pair_scores(subject: Subject, pairs: Sequence[dict], *, variant: Optional[Variant] = None,
                batch_tokens: Optional[int] = None, say: Callable[[str], None] = print) -> np.ndarray:
    """What the model gives the good and the bad sentence of each pair, nats, float64 [pairs, 2].

    variant: of the pseudo-log-likelihood, also where the model is a hybrid one; None: whole words (masked), log p (others).
    """
    sentences = [pair[side] for pair in pairs for side in ("good", "bad")]
    if variant is None:
        scores = log_likelihoods(subject, [("", sentence) for sentence in sentences], batch_tokens=batch_tokens, say=say)
    else:
        scores = pseudo_log_likelihood(subject, sentences, variant, batch_tokens=batch_tokens, say=say)
    return scores.log_p.reshape(-1, 2)


def wilson(hits: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion at 95% (Wilson 1927)."""
    centre, spread = hits + z * z / 2, z * math.sqrt(hits * (n - hits) / n + z * z / 4)
    return max(0.0, (centre - spread) / (n + z * z)), min(1.0, (centre + spread) / (n + z * z))


def accuracy(found: Iterable[bool]) -> dict:
    """{"accuracy", "low", "high", "pairs"}; low, high: 95% Wilson interval."""
    found = list(found)
    hits = int(sum(found))
    low, high = wilson(hits, len(found))
    return {"accuracy": hits / len(found), "low": low, "high": high, "pairs": len(found)}


def grouped(pairs: Sequence[dict], hits: Sequence[bool], key: str) -> dict[str, dict]:
    """Accuracy by the value of ``key``; pairs without it belong to no group."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for pair, hit in zip(pairs, hits, strict=True):
        if key in pair:
            groups[pair[key]].append(bool(hit))
    return {name: accuracy(found) for name, found in sorted(groups.items())}


def score_blimp(subject: Subject, rows: dict[Split, Rows], config: Any, say: Callable[[str], None], *,
                variant: Optional[Variant] = None) -> dict:
    """BLiMP, or files of its form (``Task.score``).

    score: mean of the accuracies of the paradigms, as BLiMP reports it, with the Wilson interval of as many pairs drawn at
    random; details: the accuracy over all pairs, by paradigm, phenomenon (``linguistics_term``) and field.
    """
    pairs = [pair for split, found in rows.items() for pair in pairs_of(found, split.subset or Path(split.dataset).stem)]
    if not pairs:
        raise CramError(f"minimal pairs: {', '.join(found.place for found in rows.values())} holds no pair; fetch it again")
    scores_P2 = pair_scores(subject, pairs, variant=variant, say=say)
    hits = scores_P2[:, 0] > scores_P2[:, 1]
    details: dict[str, Any] = {key: grouped(pairs, hits, key) for key in GROUPS}
    parts = [part["accuracy"] for part in details["paradigm"].values()]
    mean = sum(parts) / len(parts)
    low, high = wilson(mean * len(pairs), len(pairs))
    details |= {"all": accuracy(hits), "ties": int((scores_P2[:, 0] == scores_P2[:, 1]).sum()),
                "scored_by": variant or ("within_word_l2r" if subject.kind == "masked" else "log_p")}
    return {"metric": "accuracy", "score": mean, "low": low, "high": high, "examples": len(pairs), "details": details}


def pairs_task(path: str) -> Task:
    """``pairs:PATH``: any file of minimal pairs (.jsonl, .xz .gz .zst of it, .parquet): sentence_good, sentence_bad and, where
    there, phenomenon (or linguistics_term) and field."""
    return Task(f"pairs:{path}", f"minimal pairs in {path}", "the file", ("masked", "causal", "hybrid"), "accuracy", 0.5,
                (Split(path, None, FILE),), score_blimp)


def score_minimal_pairs(model: Any, tokenizer: Any, mirror: Path, count: int, special: dict[str, int], *,
                        batch_tokens: int = 8192, device: str | torch.device = "cpu") -> dict:
    """A quick look: accuracy on ``count`` pairs a file: {"accuracy", "low", "high", "pairs", "phenomena": {name: the same}}.

    Scored as task ``blimp`` scores; the accuracy is over all pairs. {"skipped": reason} when the mirror has no BLiMP.
    """
    if not (pairs := read_pairs(mirror, count)):
        return {"skipped": f"no {FOLDER} in {mirror}"}
    return score_sample(model, tokenizer, pairs, special, batch_tokens=batch_tokens, device=device)


def score_sample(model: Any, tokenizer: Any, pairs: Sequence[dict], special: dict[str, int], *, batch_tokens: int = 8192,
                 device: str | torch.device = "cpu") -> dict:
    """``score_minimal_pairs`` on pairs already chosen, such as those of ``sample_pairs``."""
    kind = "causal" if model.causal else "masked"  # hybrid models are built causal
    subject = Subject("model", model, tokenizer, special, kind, ANY_LENGTH, str(device), {}, Path())
    scores_P2 = pair_scores(subject, pairs, batch_tokens=batch_tokens)
    hits = scores_P2[:, 0] > scores_P2[:, 1]
    return accuracy(hits) | {"phenomena": grouped(pairs, hits, "phenomenon")}
