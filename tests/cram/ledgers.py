"""Ledgers under a clock that a test moves: killed, and finished."""

from cram.budget import Budget
from cram.ledger import Ledger


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def die(ledger):
    """What kill -9 leaves: no closing row, no thread."""
    ledger._stop.set()
    ledger._thread.join()


def finished_ledger(path):
    clock = FakeClock()
    ledger = Ledger(path, Budget.parse("100s"), "run", clock=clock, heartbeat=1000.0)
    for step in range(1, 6):
        clock.now += 3
        ledger.count(steps=1)
        ledger.checkpoint(step)
    ledger.close("finished")
    return path.read_bytes().splitlines(keepends=True)
