"""The ledger that proves a budget was kept.

It is an append-only file of JSON rows, each fsynced and chained to the one before by its
hash. The ledger, not a checkpoint, remembers what was spent, so a crash refunds nothing:

* A heartbeat row every half interval carries the time spent so far. A session found
  without a closing row died; it is charged to its last row plus one whole interval, or
  more where its rows came late (``audit.crash_charge``): no less than what it used, unless
  the row that death prevented was held up twice as long as any before it.
* What was spent after the checkpoint that a run resumes from moves to the category
  ``lost``. Time is never given back.
* ``ledger.head`` holds number and hash of the last row. Editing or reordering rows
  breaks the chain; cutting rows off the end contradicts the head.

Hashes guard against accidents and careless edits. Somebody who recomputes every hash
forges a ledger; only a head hash published elsewhere (the report prints it) shows that.

Time budgets bound everything charged, lost work included. Step, token and FLOP budgets
bound the work that is in the model: repeating lost steps is shown as lost time, but not
deducted, since otherwise an interrupted run could never equal a straight one.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Callable, Iterator, Optional

from cram.audit import Summary, crash_charge, read_ledger, row_hash
from cram.budget import Budget
from cram.errors import CramError
from data_prep.files import append_durably, replace_durably

CATEGORIES = ("setup", "compile", "steps", "validation", "saving", "data_wait", "teacher", "lost")
WORK = ("steps", "tokens", "flops")


class Ledger:
    """The open ledger of one running session.

    Every moment between opening and closing belongs to exactly one category; ``account``
    switches it. All sums are over the whole run, earlier sessions included.
    """

    def __init__(self, path: Path, budget: Budget, run_id: str, *, heartbeat: float = 5.0, world_size: int = 1,
                 clock: Callable[[], float] = time.monotonic):
        """Open or continue ``path``. clock: seconds, monotonic.

        Raises CramError when the ledger was tampered with, has ended, or belongs to another run or budget.
        """
        self.path, self.budget = path, budget
        self._clock, self._world_size = clock, world_size
        self._energy, self._joules = (lambda: None), None
        # Rows are written one at a time; the loop goes on counting meanwhile. Who needs both locks takes them in this order.
        self._writing, self._lock, self._stop = threading.RLock(), threading.RLock(), threading.Event()
        self.paid = 0.0  # what a teacher has cost, in the budget's unit: the run's schedules begin behind it
        self._unwritten: Optional[OSError] = None  # why the latest heartbeat is not in the file
        self._category, self._since = "setup", clock()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.with_suffix(".head").exists():
            self._continue(run_id)
        else:
            self._rows: list[dict] = []
            self._account = dict.fromkeys(CATEGORIES, 0.0)
            self._work = {"steps": 0, "tokens": 0, "flops": 0.0, "energy_joules": None}
        self._opened = dict(self._account)  # the account when this session began
        self._append("open", budget=budget.text, run_id=run_id, world_size=world_size, heartbeat=heartbeat,
                     pid=os.getpid(), host=socket.gethostname())
        self._thread = threading.Thread(target=self._beat, args=(heartbeat,), daemon=True, name="ledger heartbeat")
        self._thread.start()

    def _continue(self, run_id: str) -> None:
        """Take up an existing ledger; a session that never closed is charged for the time after its last row too."""
        summary = read_ledger(self.path)
        if summary.run_id != run_id or summary.budget != self.budget.text:
            raise CramError(f"{self.path}: belongs to run {summary.run_id} with budget {summary.budget}, not to {run_id} "
                            f"with {self.budget.text}; use another output folder")
        if summary.reason == "finished":
            raise CramError(f"{self.path}: this run has ended; --force starts a new one")
        self._rows, last = summary.rows, summary.rows[-1]
        os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)  # a line torn by the crash
        self._account = dict.fromkeys(CATEGORIES, 0.0) | last["account"]
        self._work = {name: last[name] for name in ("steps", "tokens", "flops", "energy_joules")}
        if last["kind"] != "close":
            charge = crash_charge(self._rows)
            if self.budget.kind == "time":  # alive, the session would have ended inside the budget
                charge = min(charge, max(self.budget.amount - last["seconds"], 0.0))
            self._account["lost"] += charge
            self._append("crash", charged=charge)

    @property
    def account_seconds(self) -> dict[str, float]:
        """Charged seconds by category, up to now."""
        with self._lock:
            self._settle()
            return dict(self._account)

    @property
    def seconds(self) -> float:
        """Charged seconds so far."""
        return sum(self.account_seconds.values())

    @property
    def spent(self) -> float:
        """What was spent so far, in the budget's unit."""
        return self.seconds if self.budget.kind == "time" else self._work[self.budget.kind]

    @property
    def sessions(self) -> int:
        """How often this run was started."""
        return sum(row["kind"] == "open" for row in self._rows)

    @contextmanager
    def account(self, category: str) -> Iterator[None]:
        """Charge the time inside the block to ``category``, then return to the one before."""
        before = self.switch(category)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, category: str) -> str:
        """Charge from now on to ``category``; returns the one until now."""
        if category not in CATEGORIES:
            raise KeyError(category)
        with self._lock:
            self._settle()
            before, self._category = self._category, category
            return before

    def measure_energy(self, energy: Callable[[], Optional[float]]) -> None:
        """From now on add up what ``energy`` (joules since some fixed moment; None: unknown) shows."""
        with self._lock:
            self._energy, self._joules = energy, energy()

    def count(self, *, steps: int = 0, tokens: int = 0, flops: float = 0.0) -> None:
        """Add finished work. CramError while the disk takes no heartbeat: a run must not go on that could not be charged."""
        if (error := self._unwritten) is not None:
            raise CramError(f"{self.path}: cannot be written ({error.strerror}); make room and run the same command again")
        with self._lock:
            self._work["steps"] += steps
            self._work["tokens"] += tokens
            self._work["flops"] += flops

    def checkpoint(self, step: int) -> None:
        """Note that all spent so far will be in the checkpoint of ``step`` that is about to be written: resuming
        from it loses nothing of that. (Noted before, since a crash in between must not leave it unknown.)"""
        self._append("checkpoint", step=step)

    def resume(self, step: int) -> float:
        """Continue from the checkpoint of ``step`` (0: from scratch). What was charged between it and this
        session is lost; steps, tokens and FLOPs count from there. Returns the seconds lost since that checkpoint."""
        with self._writing, self._lock:
            self._settle()
            return self._return_to(step, "resume", {name: self._account[name] - self._opened[name] for name in CATEGORIES})

    def roll_back(self, step: int) -> float:
        """Go back to the checkpoint of ``step`` in the middle of a session: all that was charged since is lost. Returns
        those seconds."""
        with self._writing, self._lock:
            self._settle()
            return self._return_to(step, "rollback", dict.fromkeys(CATEGORIES, 0.0))

    def _return_to(self, step: int, kind: str, not_lost: dict[str, float]) -> float:
        kept = next((row for row in reversed(self._rows) if row["kind"] == "checkpoint" and row["step"] == step), None)
        if kept is None and step:
            raise CramError(f"{self.path}: knows no checkpoint of step {step}: that checkpoint is not from this run")
        account = dict.fromkeys(CATEGORIES, 0.0) | (kept["account"] if kept else {})
        for name in CATEGORIES:
            account[name] += not_lost[name]
        account["teacher"] = self._account["teacher"]
        kept = kept or next((row for row in self._rows if row["kind"] == "teacher"), None)  # paid before the first step
        lost = sum(self._account.values()) - sum(account.values())
        account["lost"] += lost
        self._account = account
        for name in WORK:
            self._work[name] = kept[name] if kept else 0
        self._opened = dict(account)
        self._append(kind, step=step, lost_since_checkpoint=round(lost, 6))
        return lost

    def pay_for_teacher(self, teacher: Summary) -> None:
        """Charge the whole ledger of a finished run, once: its seconds, steps, tokens and FLOPs. CramError when the ledger
        has paid for another."""
        with self._writing, self._lock:
            paid = next((row["teacher"] for row in self._rows if row["kind"] == "teacher"), None)
            self.paid = teacher.seconds if self.budget.kind == "time" else getattr(teacher, self.budget.kind)
            if paid == teacher.head:
                return
            if paid is not None:
                raise CramError(f"{self.path}: has paid for the teacher whose ledger ends in {paid[:12]}, not "
                                f"{teacher.head[:12]}; use that teacher, or start a new run with --force")
            self._account["teacher"] += teacher.seconds
            for name in WORK:
                self._work[name] += getattr(teacher, name)
            self._append("teacher", teacher=teacher.head, teacher_run=teacher.run_id)

    def close(self, reason: str) -> None:
        """Write the closing row; 'finished' ends the run for good. Closing twice does nothing."""
        if not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self._append("close", reason=reason)

    def _settle(self) -> None:
        now = self._clock()
        self._account[self._category] += max(now - self._since, 0.0) * self._world_size
        self._since = now

    def _beat(self, interval: float) -> None:
        while not self._stop.wait(interval / 2):
            try:
                self._append("heartbeat")
                self._unwritten = None
            except OSError as error:  # a full disk: ``count`` stops the run, unless the next beat tells the whole time
                self._unwritten = error

    def _append(self, kind: str, **more) -> None:
        with self._writing:
            with self._lock:
                if kind != "crash":
                    self._settle()
                if self._joules is not None:
                    now = self._energy()
                    self._work["energy_joules"] = (self._work["energy_joules"] or 0.0) + now - self._joules
                    self._joules = now
                account, work = {name: round(value, 6) for name, value in self._account.items()}, dict(self._work)
            row = {"row": len(self._rows), "kind": kind, "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                   "seconds": round(sum(account.values()), 6), "account": account, **work, **more,
                   "prev": self._rows[-1]["hash"] if self._rows else ""}
            row["hash"] = row_hash(row)
            whole = append_durably(self.path, json.dumps(row, sort_keys=True).encode() + b"\n")
            head = {"row": row["row"], "hash": row["hash"]}
            try:
                replace_durably(self.path.with_suffix(".head"), json.dumps(head).encode())
            except OSError:
                os.truncate(self.path, whole)  # no row without its head
                raise
            self._rows.append(row)
