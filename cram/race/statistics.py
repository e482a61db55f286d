"""What the finals say: spread, two tests, and when ours was as good."""

from __future__ import annotations

import math
import statistics
from typing import Any, Iterable, NamedTuple, Optional, Sequence

from cram.insight.run import crossing


class Comparison(NamedTuple):
    """gain: theirs less ours, mean over seeds (positive: ours is better); p: of Student's paired test, two-sided, None for
    fewer than two seeds; p_ranks: of the test of Mann and Whitney (1947, doi 10.1214/aoms/1177730491), two-sided, None
    likewise.

    Student's test takes gains for normal. Runs that either find something or do not have two heaps of finals: then the test
    of ranks says what can be said, for it asks only who is ahead of whom. With n seeds each it cannot say less than
    2 n! n! / (2n)!: 0.1 for three, 0.0022 for six.
    """

    gain: float
    seeds: int
    p: Optional[float]
    p_ranks: Optional[float]


def shares(results: Iterable[dict[str, Any]], name: str) -> list[float]:
    """The shares of the budget that a competitor ran with, ascending."""
    return sorted({result["share"] for result in results if result["competitor"] == name})


def finals(results: Iterable[dict[str, Any]], name: str, share: float, measure: str) -> dict[int, float]:
    """seed -> what the race is decided by (a key of the score), of the runs that brought a result."""
    return {result["seed"]: result["score"][measure] for result in results
            if result["competitor"] == name and result["share"] == share and result["failure"] is None}


def compare(ours: dict[int, float], theirs: dict[int, float]) -> Optional[Comparison]:
    """Seed by seed. None without a common seed."""
    from scipy.stats import mannwhitneyu, ttest_rel

    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    left, right = [theirs[seed] for seed in seeds], [ours[seed] for seed in seeds]
    gains = [a - b for a, b in zip(left, right)]
    if len(seeds) < 2:
        return Comparison(gains[0], 1, None, None)
    ranks = float(mannwhitneyu(left, right).pvalue)
    if len(set(gains)) == 1:        # no spread: certain, or no difference at all
        return Comparison(gains[0], len(seeds), 1.0 if gains[0] == 0 else 0.0, ranks)
    return Comparison(statistics.fmean(gains), len(seeds), float(ttest_rel(left, right).pvalue), ranks)


class Reached(NamedTuple):
    """When ours was as good as a peer's final: share and seconds of the shortest whole run of ours that was (None: none was),
    its comparison with the peer's whole run, and the time between whole runs by interpolation (None: never)."""

    share: Optional[float]
    seconds: Optional[float]
    comparison: Optional[Comparison]
    between: Optional[float]


def reached(results: Sequence[dict[str, Any]], ours: str, peer: str, measure: str) -> Optional[Reached]:
    """None when the peer has no final, or ours none at all."""
    theirs = finals(results, peer, 1.0, measure)
    rungs = []
    for share in shares(results, ours):
        values = finals(results, ours, share, measure)
        if values:
            rungs.append((share, statistics.fmean(seconds(results, ours, share)), values))
    if not theirs or not rungs:
        return None
    target = statistics.fmean(theirs.values())
    between = crossing([(spent, statistics.fmean(values.values())) for _, spent, values in rungs], target)
    for share, spent, values in rungs:
        if statistics.fmean(values.values()) <= target:
            return Reached(share, spent, compare(values, theirs), between)
    return Reached(None, None, None, between)


def seconds(results: Iterable[dict[str, Any]], name: str, share: float) -> list[float]:
    """What its runs really took."""
    return [result["seconds"] for result in results
            if result["competitor"] == name and result["share"] == share and result["failure"] is None]


def show_p(p: Optional[float]) -> str:
    """For a table: ``0.0031``, ``<0.0001``, or a dash."""
    if p is None or math.isnan(p):
        return "–"
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"
