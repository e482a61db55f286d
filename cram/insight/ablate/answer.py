"""The answer, from a record's rows alone: mean and spread, paired differences with their intervals, verdicts, multipliers."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, Optional, Sequence

from cram.bench import paired
from cram.insight.ablate.metric import Metric
from cram.insight.ablate.multiplier import Curve, Multiplier, fit, multiplier

CANNOT_TELL = "cannot tell at this budget"


@dataclass(frozen=True)
class Answer:
    """One arm. values: of its seeds; gains: paired with the baseline, positive is better; verdict: "baseline", "better",
    "worse", "cannot tell at this budget" or "failed"; times: the compute multiplier, None where it has no meaning."""

    arm: str
    values: list[float]
    gains: list[float]
    interval: Optional[float]
    verdict: str
    times: Optional[Multiplier]
    errors: list[str]

    @property
    def mean(self) -> Optional[float]:
        return statistics.mean(self.values) if self.values else None

    @property
    def spread(self) -> Optional[float]:
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def answers(record: dict[str, Any]) -> list[Answer]:
    """Of every arm, the baseline first."""
    metric, names = Metric(**record["metric"]), [arm["name"] for arm in record["arms"]]
    base = final(record, names[0])
    curve, seeds = ladder_curve(record)
    within = curve is None and not record["ladder"] and metric.learns
    made = []
    for name in names:
        values, errors = final(record, name), [row["error"] for row in record["rows"] if row["arm"] == name and "error" in row]
        paired_seeds = [seed for seed in values if seed in base]
        gains = [metric.gain(values[seed], base[seed]) for seed in paired_seeds]
        if name == names[0]:
            made.append(Answer(name, [*values.values()], [], None, "baseline" if values else "failed", None, errors))
            continue
        times = None
        if curve is not None and all(seed in values for seed in seeds):
            times = multiplier(curve, [_loss(metric, values[seed]) for seed in seeds])
        elif within:
            times = _within_runs(record, metric, names[0], name)
        told = paired.verdict(gains) if gains else "failed"
        made.append(Answer(name, [*values.values()], gains, paired.interval(gains) if gains else None,
                           CANNOT_TELL if told == "cannot tell" else told, times, errors))
    return made


def final(record: dict[str, Any], arm: str, factor: Optional[float] = None) -> dict[int, float]:
    """Seed -> value of an arm's runs that finished; factor: of a rung of the ladder, None for the arm's own budget."""
    own = next(each["factor"] for each in record["arms"] if each["name"] == arm)
    return {row["seed"]: row["value"] for row in record["rows"]
            if row["arm"] == arm and row["factor"] == (own if factor is None else factor) and "value" in row}


def rungs(record: dict[str, Any]) -> dict[float, dict[int, float]]:
    """Factor -> {seed: value} of the baseline at the budgets of the ladder, and of arms that differ in their budget alone."""
    plain = [arm["name"] for arm in record["arms"] if not arm["settings"]]
    found: dict[float, dict[int, float]] = {}
    for factor in record["ladder"]:
        for name in plain:
            found[factor] = found.get(factor) or final(record, name, factor)
    return {factor: values for factor, values in found.items() if values}


def ladder_curve(record: dict[str, Any]) -> tuple[Optional[Curve], list[int]]:
    """The baseline's loss against the budget, and the seeds that it is of; None where fewer than two budgets were run."""
    metric, found = Metric(**record["metric"]), rungs(record)
    seeds = [seed for seed in range(record["seeds"]) if found and all(seed in values for values in found.values())]
    if len(found) < 2 or not seeds:
        return None, []
    return fit([*found], [[_loss(metric, found[factor][seed]) for factor in found] for seed in seeds]), seeds


def _loss(metric: Metric, value: float) -> float:
    """The value as something that less of is better."""
    return value if metric.less else -value


def _within_runs(record: dict[str, Any], metric: Metric, baseline: str, arm: str) -> Optional[Multiplier]:
    """Without a ladder: from the validations on the way, the variant's last beside the baseline's at all times. Points within
    a run are no finals, so this says how much sooner, not how much more; the page tells."""
    if metric.name != "loss":
        return None     # validations on the way have no other
    curves = {name: {row["seed"]: row["curve"] for row in record["rows"] if row["arm"] == name and row.get("curve")}
              for name in (baseline, arm)}
    seeds = [seed for seed in curves[arm] if seed in curves[baseline]]
    points = min((len(curves[baseline][seed]) for seed in seeds), default=0)
    last = min((len(curves[arm][seed]) for seed in seeds), default=0)
    if points < 3 or not last:
        return None
    used = range(points // 3, points)
    end = statistics.mean(curves[arm][seed][last - 1][0] for seed in seeds)
    factors = [statistics.mean(curves[baseline][seed][at][0] for seed in seeds) / end for at in used]
    curve = fit(factors, [[curves[baseline][seed][at][1] for at in used] for seed in seeds])
    return None if curve is None else multiplier(curve, [curves[arm][seed][last - 1][1] for seed in seeds])


def spent(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The sum of the ledgers, those of failed runs too: runs, seconds, FLOPs, tokens."""
    done = [row for row in rows if "head" in row]
    return {"runs": len(done), **{name: sum(row[name] for row in done) for name in ("seconds", "flops", "tokens")}}
