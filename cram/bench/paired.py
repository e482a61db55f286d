"""Statistics of a comparison in which every seed is run both ways.

The difference of each pair is freed of what the seed did to both; the mean of these differences has Student's 95%
interval (Student 1908). Of many comparisons one in twenty names a winner where there is none.
"""

from __future__ import annotations

import math
import statistics
from typing import Optional, Sequence

# Student's t, 97.5%, for 1 to 10 degrees of freedom; beyond that the last, which is a little too wide.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def interval(differences: Sequence[float]) -> Optional[float]:
    """Half the width of Student's 95% interval of the mean; None for fewer than two values."""
    if len(differences) < 2:
        return None
    student = STUDENT[min(len(differences) - 1, len(STUDENT)) - 1]
    return student * statistics.stdev(differences) / math.sqrt(len(differences))


def verdict(gains: Sequence[float]) -> str:
    """What paired gains (positive is better) say: "better", "worse", or "cannot tell" while the interval holds 0."""
    half = interval(gains)
    if half is None or abs(statistics.mean(gains)) <= half:
        return "cannot tell"
    return "better" if statistics.mean(gains) > 0 else "worse"


def show_mean(values: Sequence[float]) -> str:
    """Mean, and standard deviation from two values on: ``2.3887 ± 0.0091``."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


def show_gain(gains: Sequence[float]) -> str:
    """Mean of paired differences with its interval: ``+0.1120 ± 0.0409``."""
    half = interval(gains)
    return f"{statistics.mean(gains):+.4f}" + (f" ± {half:.4f}" if half is not None else "")
