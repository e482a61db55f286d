"""The measure: the referee asks, each model answers in its own Python, the referee counts.

A request is rows of tokens and, in each, positions with the token that is right there. The answer is the nats of each and
whether it was the likeliest. The rows of the held-out stream are as long as the competitor's own context and do not overlap:
every prediction is made once, with what stands before it in its row (causal) or all around it (masked).
"""

from __future__ import annotations

import json
import math
import sys
from array import array
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Optional, Sequence

import numpy as np

from cram.race import clock
from cram.race.clock import Command
from cram.race.course import Course

PROGRAMS = Path(__file__).parent / "programs"
HOURS = 6 * 3600.0       # a scorer that takes longer hangs


class Request(NamedTuple):
    """ids int64 [N]; starts int64 [R + 1]; firsts int64 [R + 1]; positions int64 [K], in their row; labels int64 [K]."""

    ids: np.ndarray
    starts: np.ndarray
    firsts: np.ndarray
    positions: np.ndarray
    labels: np.ndarray


class Answer(NamedTuple):
    """nats float64 [K], hits bool [K]; failure: why there is none."""

    nats: np.ndarray
    hits: np.ndarray
    parameters: int
    failure: Optional[str] = None


def windows(inputs_N: np.ndarray, positions_K: np.ndarray, labels_K: np.ndarray, context: int) -> Request:
    """A stream cut in rows of ``context`` tokens; the last one is shorter."""
    starts = np.append(np.arange(0, len(inputs_N), context), len(inputs_N))
    return Request(inputs_N, starts, np.searchsorted(positions_K, starts), positions_K % context, labels_K)


def of_rows(rows: Iterable[tuple[Sequence[int], Sequence[int], Sequence[int]]]) -> Request:
    """A request from (ids, positions, labels) of each row."""
    ids, starts, firsts, positions, labels = array("q"), array("q", [0]), array("q", [0]), array("q"), array("q")
    for row, places, right in rows:     # millions of them: lists of lists would take gigabytes
        ids.extend(row)
        positions.extend(places)
        labels.extend(right)
        starts.append(len(ids))
        firsts.append(len(positions))
    return Request(*(np.array(each, np.int64) for each in (ids, starts, firsts, positions, labels)))


def ask(request: Request, scorer: Command, details: dict[str, Any], folder: Path, *, vocab_size: int, device: str,
        threads: int) -> Answer:
    """Send a request to a scoring program. details: what it needs to find the model; folder: for the files in between."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "request.npz", **request._asdict())
    question = {**details, "request": str(folder / "request.npz"), "answer": str(folder / "answer.npz"),
                "vocab_size": vocab_size, "device": device, "threads": threads}
    (folder / "question.json").write_text(json.dumps(question, indent=1))
    (folder / "answer.npz").unlink(missing_ok=True)
    outcome = clock.run(scorer._replace(argv=[*scorer.argv, str(folder / "question.json")]), threads=threads, limit=HOURS,
                        pin=False, log=folder / "scoring.txt")
    if outcome.failure is None and not (folder / "answer.npz").is_file():
        outcome = outcome._replace(code=1, lines=[*outcome.lines, (0.0, "the scoring program left no answer")])
    if outcome.failure is not None:
        return Answer(np.zeros(0), np.zeros(0, bool), 0, outcome.failure)
    with np.load(folder / "answer.npz") as found:
        answer = Answer(found["nats"], found["hits"], int(found["parameters"]))
    (folder / "request.npz").unlink()
    if len(answer.nats) != len(request.labels) or not np.isfinite(answer.nats).all():
        return answer._replace(failure="the model's predictions are not finite numbers" if len(answer.nats) ==
                               len(request.labels) else "the scoring program did not answer every prediction")
    return answer


def count(answer: Answer, course: Course, labels_K: np.ndarray) -> dict[str, float]:
    """What an answer to ``course.targets()`` is worth: bits_per_byte, or loss (nats a hidden token) and accuracy.

    Bits per byte: the bits of the tokens of content alone (no [SEP]), over the UTF-8 bytes of the documents.
    """
    if course.kind == "masked":
        return {"loss": float(answer.nats.mean()), "accuracy": float(answer.hits.mean())}
    content_K = labels_K != course.special["sep"]
    return {"bits_per_byte": float(answer.nats[content_K].sum() / math.log(2) / course.bytes),
            "loss": float(answer.nats.mean()), "accuracy": float(answer.hits.mean())}


def measure_name(kind: str) -> str:
    """The key of a score that decides; less is better."""
    return "bits_per_byte" if kind == "causal" else "loss"


def program(name: str, python: str = sys.executable) -> list[str]:
    """The command of a program of ours in a competitor's Python."""
    return [python, str(PROGRAMS / f"{name}.py")]
