"""Reading a ledger (ledger.py) and verifying that nobody has changed it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from cram.budget import Budget
from cram.errors import CramError


REMEDY = "restore it from a backup, or start a new run with --force"


def row_hash(row: dict) -> str:
    """SHA-256 of a row without its own hash; ``prev`` inside it makes the chain."""
    body = {name: value for name, value in row.items() if name != "hash"}
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Teacher:
    """What a run was charged for its teacher: a whole ledger, and by which row that ended."""

    run_id: str
    head: str
    seconds: float
    steps: int
    tokens: int
    flops: float


@dataclass
class Summary:
    """What a verified ledger says. ``spent`` is in the budget's unit, ``seconds`` charged time; all include the teacher's."""

    budget: str
    kind: str
    amount: float
    spent: float
    seconds: float
    account: dict[str, float]
    sessions: int
    steps: int
    tokens: int
    flops: float
    energy_joules: Optional[float]
    closed: bool
    reason: str
    run_id: str
    head: str
    rows: list[dict] = field(repr=False)

    @property
    def fraction(self) -> float:
        return self.spent / self.amount

    @property
    def teacher(self) -> Optional[Teacher]:
        """Whom this run has paid for; None when it learned without."""
        for before, row in zip(self.rows, self.rows[1:]):
            if row["kind"] == "teacher":
                return Teacher(row["teacher_run"], row["teacher"], row["account"]["teacher"],
                               *(row[name] - before[name] for name in ("steps", "tokens", "flops")))
        return None

    def own(self, name: str) -> float:
        """"steps", "tokens" or "flops" of this run alone, without its teacher's."""
        return getattr(self, name) - (getattr(self.teacher, name) if self.teacher else 0)


def crash_charge(rows: list[dict]) -> float:
    """Seconds to charge the last session for the time between its last row and its death, which no row tells: twice the
    longest time that passed between two of its rows, at least one heartbeat interval. 0 when it closed.

    Rows come every half interval, so this is one interval, unless disk or machine were slow to write them.
    """
    if rows[-1]["kind"] == "close":
        return 0.0
    opened = max(number for number, row in enumerate(rows) if row["kind"] == "open")
    used = [row["seconds"] - row["account"]["teacher"] for row in rows[opened:]]  # a teacher's bill is no time that passed
    longest = max((after - before for before, after in zip(used, used[1:])), default=0.0)
    return max(rows[opened]["heartbeat"] * rows[opened]["world_size"], 2 * longest)


def read_ledger(path: Path) -> Summary:
    """Read and verify a ledger. Raises CramError naming the first line that does not hold."""
    rows = _read_rows(path)
    _check_head(path, rows)
    first, last = rows[0], rows[-1]
    budget = Budget.parse(first["budget"])
    spent = last["seconds"] if budget.kind == "time" else last[budget.kind]
    return Summary(first["budget"], budget.kind, budget.amount, spent, last["seconds"], last["account"],
                   sum(row["kind"] == "open" for row in rows), last["steps"], last["tokens"], last["flops"],
                   last["energy_joules"], last["kind"] == "close", last.get("reason", ""), first["run_id"],
                   last["hash"], rows)


def _check_head(path: Path, rows: list[dict]) -> None:
    """The head names the last row, or the one before when a crash came between the two writes."""
    head_path = path.with_suffix(".head")
    if not head_path.exists() and len(rows) == 1:
        return  # died between the very first row and its head
    try:
        head = json.loads(head_path.read_text())
        number, digest = int(head["row"]), head["hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CramError(f"{head_path}: missing or damaged ({error}), so the end of {path.name} cannot be verified; "
                        f"{REMEDY}") from error
    if number >= len(rows):
        raise CramError(f"{path}: ends at line {len(rows)}, but {head_path.name} recorded line {number + 1}: "
                        f"lines were deleted at the end; {REMEDY}")
    if rows[number]["hash"] != digest:
        raise CramError(f"{path}:{number + 1}: is not the line that {head_path.name} recorded: the ledger was rewritten; "
                        f"{REMEDY}")
    if number < len(rows) - 2:
        raise CramError(f"{head_path}: is {len(rows) - 1 - number} rows behind {path.name}: it was replaced; {REMEDY}")


def _read_rows(path: Path) -> list[dict]:
    """The chained rows; a last line without its newline is a write cut off by a crash, and no row."""
    head = path.with_suffix(".head")
    if not path.is_file() and head.exists():
        raise CramError(f"{path}: no ledger there, but its {head.name} is; {REMEDY}")
    if not path.is_file():
        raise CramError(f"{path}: no ledger there; give the folder of a run, such as runs/demo")
    rows: list[dict] = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1]):
        try:
            row = json.loads(line)
            intact = row["hash"] == row_hash(row)
            follows = row["row"] == number and row["prev"] == (rows[-1]["hash"] if rows else "")
        except (ValueError, KeyError, TypeError) as error:
            raise CramError(f"{path}:{number + 1}: not a ledger row ({error}): the ledger was damaged; {REMEDY}") from error
        if not intact or not follows:
            raise CramError(f"{path}:{number + 1}: {'does not follow the line before' if intact else 'was edited'}: "
                            f"the hash chain is broken; {REMEDY}")
        rows.append(row)
    if not rows and head.exists():
        raise CramError(f"{path}: empty ledger: it was emptied, since its {head.name} tells of rows; {REMEDY}")
    if not rows:
        raise CramError(f"{path}: empty ledger; nothing was charged yet, remove it and start again")
    return rows
