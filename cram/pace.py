"""When to take a step, when to save, when to stop: so that the run ends inside its budget, not beside it."""

from __future__ import annotations

import time
from collections import deque
from typing import Callable, Optional

from cram import schedule
from cram.ledger import Ledger


class Pace:
    """What things have cost so far, and what therefore still fits.

    train: ``cram.schema.Train``. Costs are seconds as measured; every decision takes the slowest. ahead: steps that may be
    queued on the device and not yet on the clock.
    """

    def __init__(self, ledger: Ledger, train, ahead: int = 0, world: int = 1, clock: Callable[[], float] = time.monotonic):
        self.ledger, self.train, self.ahead, self.world, self.clock = ledger, train, ahead, world, clock
        self.step_seconds: deque[float] = deque(maxlen=16)  # of the latest steps
        self.setup_seconds = self.save_seconds = self.validation_seconds = 0.0     # 0: none was measured yet
        self.validation_expected = 0.0
        self.saved_at = clock()

    def expect(self, step_seconds: float, batch_tokens: int, validation_tokens: int) -> None:
        """Before the first step of a session: an estimate, taken three times, since a busy machine or a cold
        cache may make the first step as much slower; a validation costs no more than steps over as many tokens."""
        self.step_seconds.append(3 * step_seconds)
        self.validation_expected = validation_tokens / batch_tokens * max(self.step_seconds)

    def state_dict(self) -> dict:
        """What the next session needs to know about costs."""
        return {"setup": self.setup_seconds, "step": max(self.step_seconds), "save": self.save_seconds,
                "validation": self.validation_seconds}

    def load_state_dict(self, state: dict) -> None:
        self.step_seconds.append(state["step"])
        self.save_seconds, self.validation_seconds = state["save"], state["validation"]

    def next_progress(self, work: float, before: float) -> Optional[float]:
        """Progress of the next step, or None at the end. A run's last step has progress 1.

        work: what the step costs in the unit of a step, token or FLOP budget; before: progress of the
        step before, below which it never falls.
        """
        if before == 1.0:
            return None
        budget, paid = self.ledger.budget, self.ledger.paid  # schedules spread over what a teacher has left
        amount, spent = budget.amount - paid, self.ledger.spent - paid
        if budget.kind != "time":
            progress = schedule.progress(amount, spent, work)
        else:
            cost = max(self.step_seconds) * self.world
            spent += self.ahead * cost
            progress = schedule.progress(amount, spent, cost, self.reserve())
            if progress is None and spent + cost + 1.5 * self.save_seconds * self.world < amount:
                progress = 1.0  # the step before took longer than foreseen: this one closes the run
        return None if progress is None else max(progress, before)

    def reserve(self) -> float:
        """Charged seconds kept back for the last checkpoint: twice the slowest so far and a margin for a busy machine."""
        if self.train.reserve is not None:
            return self.train.reserve
        return 2 * self.save_seconds * self.world + min(0.2 + 0.004 * self.ledger.budget.amount, 10.0)

    def has_room(self, seconds: float) -> bool:
        """Whether something may be done on the side without endangering the end."""
        budget = self.ledger.budget
        return budget.kind != "time" or self.ledger.spent + 2 * seconds * self.world + self.reserve() < budget.amount

    def may_validate(self) -> bool:
        """Whether a validation has room: by the slowest so far, or before the first by what is expected."""
        return self.has_room(self.validation_seconds or self.validation_expected)

    def save_is_due(self, step: int) -> bool:
        """By steps or seconds as configured, else so seldom that saving costs at most 1% (10 s to 10 min)."""
        if self.train.checkpoint_every_steps is not None:
            return step % self.train.checkpoint_every_steps == 0
        every = self.train.checkpoint_every
        if every is None:
            every = min(max(100 * self.save_seconds, 10.0), 600.0)
        return self.clock() - self.saved_at > every

    def saved(self, seconds: float) -> None:
        self.save_seconds = max(self.save_seconds, seconds)
        self.saved_at = self.clock()

    def validated(self, seconds: float) -> None:
        self.validation_seconds = max(self.validation_seconds, seconds)

