"""What a ledger must agree with itself about."""

from __future__ import annotations

from datetime import datetime
from typing import Iterator

from cram.audit import crash_charge
from cram.budget import Budget
from cram.insight.league.card import Card
from cram.insight.league.formula import flops_per_token, tokens_per_step
from cram.ledger import CATEGORIES

ROUNDING = 2e-5           # seconds: eight numbers rounded to a millionth
DRIFT, DRIFT_SHARE = 2.0, 0.02  # seconds, and share, that the wall clock may depart from the seconds charged
BACK = ("resume", "rollback", "crash")  # rows after which some work is no longer the model's
LATE = 1.0                # seconds that writing the first row of a session may take
SPARSE = 0.25             # of the heartbeats due, fewer cannot be: they come from a thread of their own


def check_sessions(card: Card) -> Iterator[str]:
    """Opened and closed in turn, all under the card's budget; the last one finished."""
    rows, config, budget = card.ledger.rows, card.config, card.body["budget"]
    told = {budget, config.budget, *(row["budget"] for row in rows if row["kind"] == "open")}
    if len(told) > 1:
        yield f"the budget is told in different ways: {', '.join(sorted(told))}"
    if rows[0]["kind"] != "open" or rows[-1]["kind"] != "close" or rows[-1].get("reason") != "finished":
        yield "the run did not finish: its ledger does not end with a closing row that says so"
    if rows[0]["seconds"] > 1.0:
        yield f"the ledger begins at {rows[0]['seconds']:.1f} s: a session is missing"
    for before, row in zip(rows, rows[1:]):
        if row["kind"] == "open" and before["kind"] not in ("close", "crash"):
            yield f"row {row['row']}: a session begins where none has ended: rows were removed"
        if before["kind"] == "close" and (row["kind"] != "open" or before["reason"] == "finished"):
            yield f"row {row['row']}: the ledger goes on after its end"
        if row["kind"] == "open" and row["seconds"] - before["seconds"] > 1.0:
            yield (f"row {row['row']}: a session begins {row['seconds'] - before['seconds']:.1f} s beyond the row before: a "
                   "session is missing")
    last = [row for row in rows if row["kind"] == "open"][-1]
    if last["heartbeat"] != config.telemetry.heartbeat or last["world_size"] != card.plan["processes"]:
        yield "heartbeat or number of processes are not those of the configuration and the plan"
    if card.ledger.spent > card.ledger.amount * (1 + 1e-9):
        yield f"overspent: {card.ledger.fraction:.2%} of {card.ledger.budget}"


def check_account(card: Card) -> Iterator[str]:
    """Categories add up to the seconds; no time is given back; lost time is what the rows say was lost."""
    rows = card.ledger.rows
    for row in rows:
        if set(row["account"]) != set(CATEGORIES) or min(row["account"].values()) < 0:
            yield f"row {row['row']}: not the categories of a ledger"
            return
        if abs((together := sum(row["account"].values())) - row["seconds"]) > ROUNDING:
            yield f"row {row['row']}: the account adds up to {together:.3f} s, not to {row['seconds']:.3f} s"
            return
    for number, (before, row) in enumerate(zip(rows, rows[1:]), start=1):
        if row["seconds"] < before["seconds"] - ROUNDING:
            yield f"row {number}: seconds were given back: {before['seconds']:.3f} before, {row['seconds']:.3f} after"
        lost, told = row["account"]["lost"] - before["account"]["lost"], row.get("charged", 0.0)
        if row["kind"] in ("resume", "rollback"):  # all since the checkpoint, of which a crash may have been charged before
            yield from _check_return(rows, number)
        elif abs(lost - told) > ROUNDING:
            yield f"row {number}: {lost:.3f} s more are lost, but the row tells of {told:.3f} s"
        if row["kind"] == "crash":
            charge = crash_charge(rows[:number])
            if card.ledger.kind == "time":
                charge = min(charge, max(card.ledger.amount - before["seconds"], 0.0))
            if abs(charge - row["charged"]) > 1e-3:
                yield f"row {number}: a crash was charged {row['charged']:.3f} s, not the {charge:.3f} s that the rules say"
        shrunk = any(row["account"][name] < before["account"][name] - ROUNDING for name in CATEGORIES)
        if shrunk and row["kind"] not in BACK:
            yield f"row {number}: a category shrinks where nothing was lost"


def _check_return(rows: list[dict], number: int) -> Iterator[str]:
    """A run that goes back to a checkpoint loses what was charged since: until the session began, or until now."""
    row, told = rows[number], rows[number]["lost_since_checkpoint"]
    kept = next((each for each in reversed(rows[:number])
                 if each["kind"] == "checkpoint" and each["step"] == row["step"]), None)
    if kept is None and row["step"]:
        yield f"row {number}: goes back to step {row['step']:,}, of which the ledger knows no checkpoint"
        return
    before = kept["account"] if kept else dict.fromkeys(CATEGORIES, 0.0)
    lost = row["account"]["lost"] - before["lost"]
    if abs(lost - told) > ROUNDING:
        yield f"row {number}: {lost:.3f} s are lost since the checkpoint, but the row tells of {told:.3f} s"
    until = row if row["kind"] == "rollback" else next(each for each in reversed(rows[:number]) if each["kind"] == "open")
    paid = row["account"]["teacher"] - before["teacher"]  # a teacher's bill is never lost
    due = until["seconds"] - sum(before.values()) - min(paid, until["account"]["teacher"])
    if abs(due - told) > LATE:
        yield f"row {number}: {due:.3f} s were charged since the checkpoint, but the row tells of {told:.3f} s lost"


def check_clock(card: Card) -> Iterator[str]:
    """The wall clock of the rows runs with the seconds charged, and heartbeats are as many as were due."""
    opened, ahead, beats = None, 0.0, 0
    for before, row in zip([None, *card.ledger.rows], card.ledger.rows):
        now = datetime.fromisoformat(row["at"]).timestamp()
        if before is not None and now < datetime.fromisoformat(before["at"]).timestamp() - 1.0:
            yield f"row {row['row']}: the clock runs backwards, from {before['at']} to {row['at']}"
        if row["kind"] == "open":
            opened, world, teacher, ahead, beats = (now, row["seconds"]), row["world_size"], 0.0, 0.0, 0
        elif row["kind"] != "crash" and opened is not None:
            beats += row["kind"] == "heartbeat"
            if row["kind"] == "teacher":
                teacher = row["account"]["teacher"] - before["account"]["teacher"]
            charged, passed = (row["seconds"] - teacher - opened[1]) / world, now - opened[0]
            if abs(passed - charged) > DRIFT + DRIFT_SHARE * charged:
                yield (f"row {row['row']}: by the clock {passed:.1f} s had passed since the session began, but {charged:.1f} s "
                       "are charged: rows or seconds were taken out or added, or the machine slept")
                return
            ahead = charged
        ends = row["row"] + 1 == len(card.ledger.rows) or card.ledger.rows[row["row"] + 1]["kind"] in ("open", "crash")
        heartbeat = card.config.telemetry.heartbeat
        if ends and row["kind"] != "crash" and beats < SPARSE * (2 * ahead / heartbeat) - 2:
            yield (f"row {row['row']}: {beats} heartbeats in a session of {ahead:.1f} s, where one was due every "
                   f"{heartbeat / 2:g} s: rows were removed")


def check_work(card: Card) -> Iterator[str]:
    """Steps make tokens and tokens make FLOPs, in every row; work grows except where a run went back."""
    ledger, rows = card.ledger, card.ledger.rows
    least, most = tokens_per_step(card)
    low, high = flops_per_token(card)
    paid = (0, 0, 0.0)
    for before, row in zip([None, *rows], rows):
        work = row["steps"], row["tokens"], row["flops"]
        if row["kind"] == "teacher":
            paid = tuple(now - then for now, then in zip(work, (before["steps"], before["tokens"], before["flops"])))
        steps, tokens, flops = (now - bill for now, bill in zip(work, paid))
        if not least * steps <= tokens <= most * steps:
            yield f"row {row['row']}: {tokens:,} tokens in {steps:,} steps of {least:,} to {most:,}"
            return
        slack = 1e-6 * max(flops, paid[2], 1.0)
        if not low * tokens - slack <= flops <= high * tokens + slack:
            yield f"row {row['row']}: {flops:.6g} FLOPs for {tokens:,} tokens, where the formula says {low * tokens:.6g}"
            return
        if before is not None and row["kind"] not in BACK and row["steps"] < before["steps"]:
            yield f"row {row['row']}: steps were taken back where nothing was lost"
        if row["kind"] in ("checkpoint", "resume", "rollback") and row["step"] != steps:
            yield f"row {row['row']}: a checkpoint of step {row['step']:,}, but {steps:,} steps are counted"
    cost = {"steps": 1, "tokens": most, "flops": most * high}.get(ledger.kind, float("inf"))
    if ledger.amount - ledger.spent > 2 * cost:
        yield f"finished with {Budget.parse(ledger.budget).show(ledger.amount - ledger.spent)} unspent, enough for another step"


def check_teacher(card: Card) -> Iterator[str]:
    """Who learns from a teacher pays for it."""
    paid = [row for row in card.ledger.rows if row["kind"] == "teacher"]
    if card.config.distill.teacher is not None and not paid:
        yield "learns from a teacher (distill.teacher) whose ledger was not charged"
    if card.config.distill.teacher is None and (paid or card.ledger.account["teacher"]):
        yield "charged for a teacher that the configuration does not name"
    for row in paid:
        if row["account"]["teacher"] <= 0 or row["steps"] <= 0 or row["tokens"] <= 0:
            yield "the teacher was charged nothing"
