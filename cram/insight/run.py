"""A run as it lies on disk, for whatever compares runs: its configuration, its verified ledger, metrics and scores."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional, Sequence

from cram.audit import Summary, read_ledger
from cram.budget import Budget
from cram.config import from_dict
from cram.errors import CramError
from cram.schema import Config
from cram.telemetry import read_metrics


class Point(NamedTuple):
    """A look at held-out text: what had been spent (in the budget's unit, in seconds, in steps) and the loss, nats."""

    spent: float
    seconds: float
    step: int
    loss: float


@dataclass(frozen=True)
class Run:
    """What a run left. scores: of the evaluate stage, None before it; all that is said is read, nothing is trained."""

    name: str
    folder: Path
    config: Config
    ledger: Summary
    metrics: list[dict]
    scores: Optional[dict[str, Any]]

    @property
    def plan(self) -> dict[str, Any]:
        """What was decided before the first step: device, parameters, micro_batch_tokens, flops_per_token, ..."""
        return next((row for row in reversed(self.metrics) if row["kind"] == "plan"), {})

    @property
    def finished(self) -> bool:
        return self.ledger.reason == "finished"

    @property
    def score(self) -> tuple[str, float]:
        """Name and value of what runs are judged by; less is better. Bits per byte where they are defined (causal models
        with a lossless tokenizer), else the held-out loss in nats a predicted token. CramError before evaluation."""
        if self.scores is None:
            raise CramError(f"{self.folder}: not evaluated yet; run the evaluate stage with this run's keys")
        held_out = self.scores["held_out"]
        if held_out.get("bits_per_byte") is not None:
            return "bits per byte", held_out["bits_per_byte"]
        return "loss", held_out["loss"]

    def curve(self) -> list[Point]:
        """The validations on the way, in order. They score fewer tokens than the evaluation at the end does."""
        amount = Budget.parse(self.ledger.budget).amount
        return [Point(row["progress"] * amount if self.ledger.kind != "time" else row["spent"], row["spent"], row["step"],
                      row["loss"]) for row in self.metrics if row["kind"] == "validation"]


def open_run(where: str | Path) -> Run:
    """The run in a folder such as ``runs/demo`` (or its pretrain folder). CramError naming what is missing or damaged; the
    ledger is verified."""
    folder = Path(where)
    pretrain = folder if (folder / "ledger.jsonl").is_file() else folder / "pretrain"
    if not (pretrain / "config.json").is_file():
        raise CramError(f"{folder}: no run there (pretrain/config.json is missing); give a run's folder, such as runs/demo")
    scores = pretrain.parent / "evaluate" / "scores.json"
    config = from_dict(_read(pretrain / "config.json"))
    return Run(config.name if folder == pretrain else folder.name, folder, config, read_ledger(pretrain / "ledger.jsonl"),
               read_metrics(pretrain / "metrics.jsonl"), _read(scores) if folder != pretrain and scores.is_file() else None)


def crossing(curve: Sequence[tuple[float, float]], loss: float) -> Optional[float]:
    """Where a curve of (spent, loss) first comes down to this loss: between points on a line over the logarithm of what was
    spent. None when it never does; its first point when that is already there."""
    before: Optional[tuple[float, float]] = None
    for spent, value in sorted(curve):
        if value <= loss:
            if before is None or before[0] <= 0:
                return spent
            share = (before[1] - loss) / (before[1] - value)
            return math.exp(math.log(before[0]) + share * (math.log(spent) - math.log(before[0])))
        before = (spent, value)
    return None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CramError(f"{path}: not JSON ({error}); run the stage that writes it again with --force") from error
