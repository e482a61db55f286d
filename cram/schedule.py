"""Everything that changes during a run, as pure functions of progress p in [0, 1].

p is the share of the budget spent (Izsak et al. 2021, section 4.2; Geiping & Goldstein
2023, section 4.3), so a decay completes whatever the speed of the machine. The last step
of every run has p = 1 and learning rate 0.
"""

from __future__ import annotations

import math
from typing import Optional


def learning_rate(p: float, schedule) -> float:
    """Share of the peak learning rate at progress p. schedule: ``cram.schema.Schedule``."""
    if p >= 1.0:
        return 0.0
    if p < schedule.warmup:
        return schedule.start + (1.0 - schedule.start) * p / schedule.warmup
    after = (p - schedule.warmup) / (1.0 - schedule.warmup)  # 0 at the end of the warm-up, 1 at the end
    match schedule.type:
        case "one-cycle" | "triangle":
            return 1.0 - after
        case "trapezoid":
            return min(1.0, (1.0 - p) / schedule.decay)
        case "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * after))
        case "constant":
            return 1.0
    raise ValueError(f"unknown schedule {schedule.type!r}")


def mask_rate(p: float, start: float, end: Optional[float], levels: int) -> float:
    """Share of tokens to predict: from start to end in ``levels`` equal plateaus (static shapes between them)."""
    if end is None or levels == 1:
        return start
    level = min(int(p * levels), levels - 1)
    return start + (end - start) * level / (levels - 1)


def plateau(p: float, levels: list[list[float]], end: float) -> float:
    """The value of the last [progress, value] pair that begins at or before p; ``end`` when there are no levels."""
    return next((value for begin, value in reversed(levels) if begin <= p), end)


def batch_tokens(p: float, full: int, start: Optional[int], ramp: float, micro: int) -> int:
    """Tokens per step: linear from start to full over the first ``ramp`` of the budget, whole micro-batches."""
    if ramp <= 0.0 or p >= ramp:
        return full
    wanted = start + (full - start) * p / ramp
    return max(micro, min(full, round(wanted / micro) * micro))


def progress(amount: float, spent: float, cost: float, reserve: float = 0.0) -> Optional[float]:
    """Progress of the next step, or None when the run must end now.

    amount: the budget; spent: so far; cost: of one step; reserve: kept back (saving), all in the
    budget's unit. A step is admitted only if one more fits behind it; the step that no other can
    follow is the last and has p = 1 exactly.
    """
    room = amount - reserve
    slack = 1e-9 * amount  # 3 steps of 0.1 fit into 0.3
    if spent + cost > room + slack:
        return None
    if spent + 2 * cost > room + slack:
        return 1.0
    return min((spent + cost) / room, 1.0 - 1e-9)
