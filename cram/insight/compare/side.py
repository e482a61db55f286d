"""One side of a comparison: a run's folder, the card of a run, or a file of what is expected, read into one shape."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

from cram.audit import Summary
from cram.config import from_dict, to_dict
from cram.errors import CramError
from cram.insight.run import Point, open_run
from cram.schema import Config

EXPECTED = 1  # version of the files that ``cram compare --expect`` writes
MOST_POINTS = 100  # of the training curve in such a file


@dataclass(frozen=True)
class Side:
    """What comparisons look at. kind, amount: of the budget; seconds: charged; train: (spent in the budget's unit, loss);
    held_out, baselines: of the evaluation, empty before it; text, tokenizer: hashes of what was scored, None unknown."""

    name: str
    source: str
    config: Config
    budget: str
    kind: str
    amount: float
    spent: float
    seconds: float
    account: dict[str, float]
    sessions: int
    finished: bool
    steps: int
    tokens: int
    flops: float
    energy_joules: Optional[float]
    device: str
    parameters: int
    tokens_per_second: float
    held_out: dict[str, Any]
    baselines: dict[str, Any]
    curve: list[Point]
    train: list[tuple[float, float]]
    text: Optional[str]
    tokenizer: Optional[str]

    @property
    def score(self) -> tuple[str, Optional[float]]:
        """Name and value of what the run is judged by (less is better); None before its evaluation."""
        if self.held_out.get("bits_per_byte") is not None:
            return "bits per byte", self.held_out["bits_per_byte"]
        return f"{self.config.objective.type} loss, nats", self.held_out.get("loss")

    def comparable(self, other: "Side") -> Optional[str]:
        """Why the two scores cannot be compared; None when they can."""
        if self.score[0] != other.score[0]:
            return f"{self.name} is judged by {self.score[0]}, {other.name} by {other.score[0]}"
        if None not in (self.text, other.text) and self.text != other.text:
            return "they were scored on different held-out texts"
        per_token = self.score[0] != "bits per byte"
        if per_token and None not in (self.tokenizer, other.tokenizer) and self.tokenizer != other.tokenizer:
            return "a loss per token says nothing across tokenizers"
        if self.config.objective.type == "masked" and self.config.evaluate.mask_rate != other.config.evaluate.mask_rate:
            return "another share of the text was hidden (evaluate.mask_rate)"
        return None


def open_side(where: str) -> Side:
    """The run, card or expectation at a path. Raises CramError when it is none of them."""
    path = Path(where)
    if path.is_dir():
        return _of_run(path)
    if not path.is_file():
        raise CramError(f"{path}: no such run; give a run's folder (runs/demo), a card, or a file of reports/expected")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CramError(f"{path}: not JSON ({error}); give a run's folder, a card, or a file of reports/expected") from error
    if isinstance(content, dict) and "cram_expected" in content:
        return _of_expected(path, content)
    return _of_card(path)


def to_expected(side: Side) -> dict[str, Any]:
    """What is kept of a run as an expectation."""
    values = asdict(side) | {"config": to_dict(side.config), "curve": [list(point) for point in side.curve]}
    values["train"] = side.train[::max(1, -(-len(side.train) // MOST_POINTS))]
    return {"cram_expected": EXPECTED, **values}


def _of_expected(path: Path, content: dict) -> Side:
    if content["cram_expected"] != EXPECTED:
        raise CramError(f"{path}: version {content['cram_expected']}, this cram reads {EXPECTED}; update cram")
    try:
        values = {name: value for name, value in content.items() if name != "cram_expected"}
        values["curve"] = [Point(*point) for point in values["curve"]]
        values["train"] = [(x, y) for x, y in values["train"]]
        return Side(**values | {"config": from_dict(values["config"]), "name": f"expected {values['name']}",
                                "source": "expected"})
    except (KeyError, TypeError, ValueError) as error:
        raise CramError(f"{path}: not a whole expectation ({error}); write it again with cram compare --expect RUN") from error


def _of_run(folder: Path) -> Side:
    run = open_run(folder)
    if not run.metrics:
        raise CramError(f"{folder}: nothing was trained yet; the command that began the run goes on with it")
    packed, words = folder / "data" / "stage.json", folder / "data" / "manifest.json"
    text = json.loads(packed.read_text())["files"]["validation.jsonl"]["xxh3_128"] if packed.is_file() else None
    tokenizer = json.loads(words.read_text())["tokenizer_sha256"] if words.is_file() else None
    return _side(run.name, "run", run.config, run.ledger, run.plan, run.metrics, run.curve(), run.scores or {}, text, tokenizer)


def _of_card(path: Path) -> Side:
    from cram.insight.league.card import read_card

    from cram.insight.league.checks import MALFORMED

    card = read_card(path)
    try:
        listed = card.stages["data"]["files"] or {}
        side = _side(card.name, "card", card.config, card.ledger, card.plan, card.metrics, card.curve(), card.scores,
                     listed.get("validation.jsonl", {}).get("xxh3_128"), card.body["data"]["tokenizer_sha256"])
        float(side.score[1]), float(side.held_out["accuracy"]), float(side.baselines["unigram"]["loss"])  # what tables show
    except MALFORMED as error:
        raise CramError(f"{path}: not a whole card ({type(error).__name__}: {error}); have it written again: cram submit RUN"
                        ) from error
    return side


def _side(name: str, source: str, config: Config, ledger: Summary, plan: dict, metrics: list[dict], curve: list[Point],
          scores: dict, text: Optional[str], tokenizer: Optional[str]) -> Side:
    train = [row for row in metrics if row["kind"] == "train" and row["loss"] is not None]
    speeds = [row["tokens_per_second"] for row in train if row.get("tokens_per_second")]
    return Side(
        name, source, config, ledger.budget, ledger.kind, ledger.amount, ledger.spent, ledger.seconds, dict(ledger.account),
        ledger.sessions, ledger.reason == "finished", ledger.own("steps"), ledger.own("tokens"), ledger.own("flops"),
        ledger.energy_joules, plan.get("device", "unknown"), plan.get("parameters", 0),
        statistics.median(speeds) if speeds else 0.0, scores.get("held_out", {}), scores.get("baselines", {}), curve,
        [(row["spent"] if ledger.kind == "time" else row["progress"] * ledger.amount, row["loss"]) for row in train],
        text, tokenizer)
