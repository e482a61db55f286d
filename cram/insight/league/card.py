"""A card: what a run leaves behind for others to check, in one JSON file.

``sha256`` is that of all the rest as canonical JSON (sorted keys, no spaces). It guards against slips of the hand; what
somebody has signed again is the business of the checks (checks.py).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cram.audit import Summary, read_ledger, row_hash
from cram.budget import Budget
from cram.config import from_dict
from cram.errors import CramError
from cram.insight.league.pack import unpack
from cram.insight.run import Point
from cram.schema import Config
from data_prep.files import replace_durably

VERSION = 1
SUFFIX = ".card.json"
WORDS, MOST_LETTERS = ("name", "author", "made", "run_id", "budget"), 200
MOST_ROWS = 200   # of metrics of each kind, evenly chosen
LARGEST = 64 * 2**20  # bytes of a card; a day's has some hundred thousand


@dataclass(frozen=True)
class Card:
    """A card as read: nothing in it is believed yet. body: the JSON object; metrics: thinned rows."""

    path: Path
    body: dict[str, Any]
    config: Config
    ledger: Summary
    metrics: list[dict]

    @property
    def name(self) -> str:
        return self.body["name"]

    @property
    def author(self) -> str:
        return self.body["author"]

    @property
    def scores(self) -> dict[str, Any]:
        return self.body["scores"]

    @property
    def stages(self) -> dict[str, dict]:
        return self.body["stages"]

    @functools.cached_property
    def plan(self) -> dict[str, Any]:
        return next((row for row in reversed(self.metrics) if row["kind"] == "plan"), {})

    def rows(self, kind: str) -> list[dict]:
        """The rows of metrics of one kind."""
        return [row for row in self.metrics if row["kind"] == kind]

    @property
    def score(self) -> tuple[str, float]:
        """As ``Run.score``: its name and its value; less is better."""
        held_out = self.scores["held_out"]
        if held_out.get("bits_per_byte") is not None:
            return "bits per byte", held_out["bits_per_byte"]
        return "loss", held_out["loss"]

    def curve(self) -> list[Point]:
        """As ``Run.curve``: the validations on the way."""
        amount, time = Budget.parse(self.ledger.budget).amount, self.ledger.kind == "time"
        return [Point(row["spent"] if time else row["progress"] * amount, row["spent"], row["step"], row["loss"])
                for row in self.rows("validation")]


def evenly(count: int) -> list[int]:
    """Which of ``count`` rows of metrics of one kind a card keeps: MOST_ROWS at most, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_ROWS)).round().astype(int)).tolist() if count > 0 else []


def canonical(body: dict) -> bytes:
    """The bytes that are hashed: sorted keys, no spaces, no NaN."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sign(body: dict) -> dict:
    """The body with its ``sha256``."""
    rest = {name: value for name, value in body.items() if name != "sha256"}
    return {**rest, "sha256": hashlib.sha256(canonical(rest)).hexdigest()}


def write_card(path: Path, body: dict) -> None:
    """Sign and write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(path, json.dumps(sign(body), indent=1, allow_nan=False).encode() + b"\n")


def ledger_lines(rows: list[dict]) -> bytes:
    """The very bytes of ``ledger.jsonl``, from rows with or without their hashes: the chain is made again."""
    lines, before = [], ""
    for row in rows:
        row = {**row, "prev": before}
        row["hash"] = before = row_hash(row)
        lines.append(json.dumps(row, sort_keys=True).encode() + b"\n")
    return b"".join(lines)


def bare(row: dict) -> dict:
    """A row of the ledger without what follows from the rest: its hashes, and its seconds where they are the account's sum."""
    kept = {name: value for name, value in row.items() if name not in ("hash", "prev")}
    if kept["seconds"] == added(kept):
        del kept["seconds"]
    return kept


def added(row: dict) -> float:
    """Seconds of all categories together, as a ledger rounds them."""
    return round(math.fsum(row["account"].values()), 6)


def read_card(path: Path) -> Card:
    """Read a card, as far as it can be read. Raises CramError saying what is wrong with it as a file: cut off, edited, of a
    newer version, rows that do not lead to the head it names."""
    try:
        if path.stat().st_size > LARGEST:
            raise CramError(f"{path}: larger than any card")
        body = json.loads(path.read_bytes(), parse_constant=_refuse)
    except OSError as error:
        raise CramError(f"{path}: cannot be read ({error.strerror}); give a file that cram submit wrote") from error
    except (ValueError, RecursionError) as error:
        raise CramError(f"{path}: not JSON ({error}); copy it again") from error
    if not isinstance(body, dict) or "cram_card" not in body:
        raise CramError(f"{path}: not a card; give a file that cram submit wrote")
    if type(body["cram_card"]) is not int or not 1 <= body["cram_card"] <= VERSION:
        raise CramError(f"{path}: a card of version {body['cram_card']}, this cram reads up to {VERSION}; update cram, or have "
                        "the card written again")
    try:
        check_words(body)
        if sign(body)["sha256"] != body.get("sha256"):
            raise CramError(f"{path}: was edited: its content does not have the sha256 that it names")
        rows = [row if "seconds" in row else {**row, "seconds": added(row)} for row in unpack(body["ledger"]["packed"])]
        return Card(path, body, from_dict(body["config"]), _summary(path, body, rows), unpack(body["metrics"]["packed"]))
    except CramError as error:
        raise error if str(error).startswith(str(path)) else CramError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise CramError(f"{path}: not a whole card ({type(error).__name__}: {error}); have it written again") from error


def check_words(body: dict) -> None:
    """CramError for names that are no words: a line break would forge a line of the standings, other signs command a terminal."""
    for name in WORDS:
        word = body[name]
        if not isinstance(word, str) or len(word) > MOST_LETTERS:
            raise CramError(f"{name} has to be words, {MOST_LETTERS} letters at most")
        if not word.isprintable() or not word.strip() and name != "author":
            raise CramError(f"{name} {word!r} is empty or holds signs that cannot be printed; have the card written again with "
                            "another")


def _summary(path: Path, body: dict, rows: list[dict]) -> Summary:
    """The rows through the same reader as any ledger's."""
    with tempfile.TemporaryDirectory(prefix="cram-card-") as folder:
        ledger, lines = Path(folder) / "ledger.jsonl", ledger_lines(rows)
        ledger.write_bytes(lines)
        head = {"row": len(rows) - 1, "hash": body["ledger"]["head"]}
        ledger.with_suffix(".head").write_text(json.dumps(head))
        try:
            summary = read_ledger(ledger)
        except CramError as error:
            raise CramError(f"{path}: its ledger's rows do not lead to the head that it names: rows were edited, removed or "
                            "added") from error
    if hashlib.sha256(lines).hexdigest() != body["ledger"]["sha256"]:
        raise CramError(f"{path}: its ledger's rows are not those of the file whose sha256 it names")
    return summary


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")
