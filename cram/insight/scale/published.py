"""What others published of budgets and scores: CORE against FLOPs for causal models, GLUE against a card's day for masked ones.

Losses are left out on purpose. A loss compares only on the same text with the same tokenizer, or as bits per byte of the same
text; neither is given between a study of ours and the runs below, so compute is the only axis they share.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Optional

from cram.bench.paired import STUDENT


@dataclass(frozen=True)
class Point:
    """A published run. amount: training FLOPs (CORE), or the card's peak times the seconds (GLUE), None where it is not known;
    score: a share (CORE) or points (GLUE); loss: as published, bits per byte of its own held-out text (CORE) or nats a hidden
    token of its training text (GLUE); text: what it learned from."""

    amount: Optional[float]
    score: float
    loss: Optional[float]
    what: str
    text: str
    source: str


# CORE: mean centred accuracy of 22 tasks (Li et al. 2024, arXiv 2406.11794), by nanochat's code. FLOPs as the last of them
# printed; of the others by nanochat's formula from size and tokens: 6 x matrix parameters + 12 x width x window of each layer.
_LEADERBOARD = "karpathy/nanochat, dev/LEADERBOARD.md"
CORE = (
    Point(1.97e18, 0.159, 0.838, "14 layers x 896, 1.7e9 tokens (throughput x time)", "ClimbMix",
          "karpathy/nanochat, pull request 655"),
    Point(1.03e19, 0.236, 0.755, "20 layers x 1280, 3.48e9 tokens; 500 items a task", "ClimbMix",
          "huggingface.co/sumitkClasses/nanochat-d20-chat"),
    Point(2.84e19, 0.2517, 0.719, "24 layers x 1536, 5.84e9 tokens", "ClimbMix",
          "huggingface.co/ChrisMcCormick/decoderstack-d24"),
    Point(2.84e19, 0.2626, 0.718, "24 layers x 1536, 5.84e9 tokens", "ClimbMix", f"{_LEADERBOARD}, run 6"),
    Point(3.4e19, 0.2571, 0.7185, "24 layers x 1536, 6.93e9 tokens, mean of 7", "ClimbMix", f"{_LEADERBOARD}, run 4"),
    Point(4.33e19, 0.2585, 0.7483, "24 layers x 1536, 8.76e9 tokens", "FineWeb-Edu", f"{_LEADERBOARD}, run 1"))

# GLUE: the cramming paper's average of nine numbers, a day on one card by one protocol. Amount: peak x 86,400 s, as the paper
# counts. GLUE: of one recipe, its second version. BESIDE: others by that protocol, which say what its losses went with.
_CRAMMING = "Geiping & Goldstein, arXiv 2212.14034, second version, quoted in JonasGeiping/cramming, issue 45"
GLUE = (Point(7.6e18, 79.2, None, "RTX A4000, 24 h", "the Pile", _CRAMMING),
        Point(1.34e19, 80.4, None, "RTX A6000, 24 h", "the Pile", _CRAMMING))
BESIDE = (Point(None, 80.3, 1.971, "RTX A5500, 24 h, the same recipe", "the Pile", "JonasGeiping/cramming, issue 45"),
          Point(None, 73.0, 2.97, "A100, a run that went wrong", "the Pile", "JonasGeiping/cramming, issue 45"),
          Point(4.6e18, 78.9, 2.3, "RTX 2080 Ti, 24 h, mean of 3", "the Pile", "He & Hofmann 2023, arXiv 2311.01906"))


@dataclass(frozen=True)
class Score:
    """What the published runs say. beyond: "below" or "above" when the amount lies outside of them; then value is that of the
    outermost, and there is no interval."""

    value: float
    low: Optional[float] = None
    high: Optional[float] = None
    beyond: str = ""

    def told(self, digits: int) -> str:
        if self.beyond:
            return f"{'under' if self.beyond == 'below' else 'over'} {self.value:.{digits}f}"
        return f"{self.value:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def core(flops: float, low: float, high: float) -> Score:
    """CORE by a straight line in log FLOPs through the published runs, inside of them; the interval is Student's of one more
    run, at the ends ``low`` and ``high`` of the FLOPs. Beyond the published runs only the side is told."""
    x = [math.log10(point.amount) for point in CORE]
    y = [point.score for point in CORE]
    slope, intercept = statistics.linear_regression(x, y)
    line = lambda flops: intercept + slope * math.log10(flops)  # noqa: E731
    if outside := _outside(flops, CORE):
        return Score(line(min(10 ** x_ for x_ in x) if outside == "below" else max(10 ** x_ for x_ in x)), beyond=outside)
    count, mean = len(x), statistics.mean(x)
    spread = math.sqrt(sum((y_ - intercept - slope * x_) ** 2 for x_, y_ in zip(x, y)) / (count - 2))
    around = sum((x_ - mean) ** 2 for x_ in x)

    def half(flops: float) -> float:
        return STUDENT[count - 3] * spread * math.sqrt(1 + 1 / count + (math.log10(flops) - mean) ** 2 / around)
    return Score(line(flops), line(low) - half(low), line(high) + half(high))


def glue(peak_flops: float) -> Score:
    """GLUE between the two published days, whose scores are the ends of the interval; beyond them only the side is told.
    peak_flops: the card's peak times the seconds."""
    first, last = GLUE[0], GLUE[-1]
    if outside := _outside(peak_flops, GLUE):
        return Score(first.score if outside == "below" else last.score, beyond=outside)
    share = math.log(peak_flops / first.amount) / math.log(last.amount / first.amount)
    return Score(first.score + share * (last.score - first.score), first.score, last.score)


def _outside(amount: float, points: tuple[Point, ...]) -> str:
    if amount < min(point.amount for point in points):
        return "below"
    return "above" if amount > max(point.amount for point in points) else ""
