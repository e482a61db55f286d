"""Filling the budget: how much a competitor may do so that its process takes as long as the others'.

A program is told an amount: steps where it counts steps, seconds where it has a clock of its own. What its process then takes
is modelled as ``start + each * amount``; both are measured in short exempt runs, the fastest of a few counting, which is in
the peer's favour. After a run of full length the model is corrected by what it took, and a run that missed the budget is
repeated.
"""

from __future__ import annotations

import math
from typing import Callable, NamedTuple, Optional, Sequence

OVER, UNDER = 1.02, 0.97     # a run outside these shares of the budget is repeated
AIM = 0.995                  # the middle of what is accepted
TRIES = 4


class Pace(NamedTuple):
    """seconds = start + each * amount."""

    start: float
    each: float

    def amount(self, seconds: float, whole: bool) -> float:
        """What fits into so many seconds; at least one step, or a tenth of a second."""
        fits = (seconds - self.start) / self.each
        return max(1, math.floor(fits)) if whole else max(0.1, round(fits, 3))

    def corrected(self, amount: float, seconds: float) -> Pace:
        """After a run: its own start, but each as it was in that run."""
        start = min(self.start, 0.9 * seconds)
        return Pace(start, (seconds - start) / amount)


class Try(NamedTuple):
    """A run for the budget. failure: why it brought no result."""

    amount: float
    seconds: float
    failure: Optional[str] = None


def measure(time_of: Callable[[float], Try], first: float, seconds: float, *, whole: bool, most: float = 0.0,
            repeats: int = 2) -> tuple[Optional[Pace], list[Try]]:
    """The pace by short exempt runs, and these; None in its place when one failed.

    A program with a clock of its own (not ``whole``): ``repeats`` runs of the amount ``first``, of which one has to end well;
    what its process takes beyond that is its start. Where that is too little for it to begin at all, as on a busy machine,
    twice as much is tried, and at last ``most``. One that counts steps: two lengths, the longer of some ``seconds``, each the
    fastest of ``repeats``; no run of it may fail.
    """
    tried: list[Try] = []

    def fastest(amount: float) -> Optional[float]:
        for _ in range(repeats):
            tried.append(time_of(amount))
            if whole and tried[-1].failure is not None:
                return None
        return min((each.seconds for each in tried if each.amount == amount and each.failure is None), default=None)

    short = fastest(first)
    while short is None and not whole and first < most:
        first = min(2 * first, most)
        short = fastest(first)
    if short is None:
        return None, tried
    if not whole:
        return Pace(max(0.0, short - first), 1.0), tried
    more = 4 * first                    # seconds / first still hold the start: so go up until a run is long enough
    while True:
        long = fastest(more)
        if long is None:
            return None, tried
        if long >= seconds and long > short:
            each = (long - short) / (more - first)
            return Pace(max(0.0, short - each * first), each), tried
        gain = max(1e-9, long - short) / (more - first)
        more = min(20 * more, max(2 * more, round(1.1 * (seconds - short) / gain)))


def fill(budget: float, pace: Pace, time_of: Callable[[float], Try], *, whole: bool, tries: int = TRIES
         ) -> tuple[list[Try], int, Pace]:
    """Run until one lies between UNDER and OVER of the budget, ``tries`` times at most.

    Returns all tries, the number of the one that counts, and the corrected pace. It is the first that fits; else the longest
    that is not over; else the shortest. A failed try counts at once: the failure is the result.
    """
    done: list[Try] = []
    while len(done) < tries:
        amount = pace.amount(AIM * budget, whole)
        if whole and any(each.amount == amount for each in done):
            break                           # a step more is too much, a step less too little
        done.append(time_of(amount))
        if done[-1].failure is not None or UNDER * budget <= done[-1].seconds <= OVER * budget:
            return done, len(done) - 1, pace.corrected(amount, done[-1].seconds)
        pace = pace.corrected(amount, done[-1].seconds)
    return done, _best(done, budget), pace


def _best(done: Sequence[Try], budget: float) -> int:
    within = [number for number, each in enumerate(done) if each.seconds <= OVER * budget]
    return max(within, key=lambda number: done[number].seconds) if within else min(
        range(len(done)), key=lambda number: done[number].seconds)
