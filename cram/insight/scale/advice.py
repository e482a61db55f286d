"""What a fitted law says: its error on runs it has not seen, curves at equal FLOPs, and the size to train under a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Optional, Sequence

import numpy as np

from cram.budget import Budget
from cram.errors import CramError
from cram.insight.scale.grid import Size, family, make_size, speeds
from cram.insight.scale.law import Fit, fit, parabola

WIDEST = 2048           # of the candidates
NEAR = 1.005            # losses within half a percent of the best are as good
LEVELS = 3              # of FLOPs at which curves over size are drawn


def fit_rows(rows: Sequence[dict], seed: int = 0) -> Fit:
    """The law of these runs; n is the number of parameters without tables of embeddings and head."""
    return fit([row["n"] for row in rows], [row["tokens"] for row in rows], [row["loss"] for row in rows], seed=seed)


def errors(known: Fit, rows: Sequence[dict]) -> list[dict[str, Any]]:
    """Of each run: what the law foresaw, with its interval, and by what share it erred."""
    found = []
    for row in rows:
        loss, low, high = known.predict(row["n"], row["tokens"])
        found.append({"size": row["size"], "tokens": row["tokens"], "measured": row["loss"], "predicted": loss, "low": low,
                      "high": high, "error": loss / row["loss"] - 1})
    return found


@dataclass(frozen=True)
class IsoFlop:
    """Losses of the sizes at equal FLOPs, and the best size by a parabola through them (None: it lies outside) and by the law."""

    flops: float
    n: tuple[float, ...]
    losses: tuple[float, ...]
    coefficients: tuple[float, ...]
    best: Optional[float]
    best_by_law: float


def iso_flops(rows: Sequence[dict], known: Fit) -> list[IsoFlop]:
    """Curves at FLOPs that all sizes were trained with, or nearly: the loss between two runs of a size lies on a line over log
    FLOPs. Empty where the sizes share no range."""
    by_size: dict[float, list[tuple[float, float]]] = {}
    for row in rows:
        by_size.setdefault(row["n"], []).append((math.log(row["flops"]), row["loss"]))
    curves = {n: sorted(points) for n, points in sorted(by_size.items())}
    low, high = max(points[0][0] for points in curves.values()), min(points[-1][0] for points in curves.values())
    if low > high:
        return []
    sizes, found = np.array(list(curves)), []
    each = np.array([next(row["flops"] / row["tokens"] for row in rows if row["n"] == n) for n in sizes])
    for level in np.unique(np.linspace(low, high, LEVELS)):
        losses = [float(np.interp(level, *zip(*points))) for points in curves.values()]
        coefficients, best = parabola(np.log(sizes), losses)
        fine = np.exp(np.linspace(np.log(sizes[0]), np.log(sizes[-1]), 400))
        tokens = math.exp(level) / np.exp(np.interp(np.log(fine), np.log(sizes), np.log(each)))
        by_law = float(fine[np.argmin(known.law.loss(fine, tokens))])
        found.append(IsoFlop(math.exp(level), tuple(map(float, sizes)), tuple(losses), tuple(map(float, coefficients)),
                             None if best is None else math.exp(best), by_law))
    return found


@dataclass(frozen=True)
class Advice:
    """The size to train under a budget. n_low, n_high: 95% of the draws; good: smallest and largest name within half a percent."""

    budget: str
    size: Size
    tokens: float
    loss: float
    low: float
    high: float
    n_low: float
    n_high: float
    good: tuple[str, str]
    seconds: Optional[float]
    remarks: tuple[str, ...]


def advise(config, budget: Budget, known: Fit, rows: Sequence[dict], text_tokens: Optional[int] = None) -> Advice:
    """The best size of the family under FLOPs, or under time at the speed of the study's runs. CramError for other budgets: tokens
    and steps cost nothing in themselves, so there the largest model is always best."""
    if budget.kind not in ("flops", "time"):
        raise CramError(f"--recommend '{budget.text}': a number of {budget.kind} has no best size, larger is better; give FLOPs or time, "
                        "such as '1e15 flops' or 1h")
    candidates = [make_size(name, config) for name in family(config, WIDEST)]
    each = np.array([size.flops_per_token for size in candidates])
    rate_C = _rates(rows, each)
    tokens_C = budget.amount / each if budget.kind == "flops" else budget.amount * rate_C / each
    inner_C = np.array([size.inner for size in candidates], dtype=np.float64)
    losses_C = known.law.loss(inner_C, tokens_C)
    best = int(np.argmin(losses_C))
    drawn = [inner_C[np.argmin(law.loss(inner_C, tokens_C))] for law in known.draws]
    n_low, n_high = np.quantile(drawn, (0.025, 0.975))
    good = np.flatnonzero(losses_C <= NEAR * losses_C[best])
    loss, low, high = known.predict(inner_C[best], tokens_C[best])
    largest_n, largest_d = max(row["n"] for row in rows), max(row["tokens"] for row in rows)
    remarks = []
    if inner_C[best] > largest_n or tokens_C[best] > largest_d:
        remarks.append(f"extrapolated: {inner_C[best] / largest_n:.1f} times the largest size, {tokens_C[best] / largest_d:.1f} times the "
                       "most tokens measured")
    if text_tokens and tokens_C[best] > 4 * text_tokens:
        remarks.append(f"reads this text {tokens_C[best] / text_tokens:.1f} times: the law was fitted on less repetition")
    if best in (0, len(candidates) - 1):
        remarks.append("at the edge of the family of candidates")
    return Advice(budget.text, candidates[best], float(tokens_C[best]), loss, low, high, float(n_low), float(n_high),
                  (candidates[good[0]].name, candidates[good[-1]].name), float(tokens_C[best] * each[best] / rate_C[best]), tuple(remarks))


def _rates(rows: Sequence[dict], each: np.ndarray) -> np.ndarray:
    """FLOP/s of models of so many FLOPs a token: between the study's sizes on a line over logarithms, beyond them as at the end."""
    measured = sorted((next(row["flops"] / row["tokens"] for row in rows if row["size"] == name), speed)
                      for name, speed in speeds(rows).items())
    x = np.log([flops for flops, _ in measured])
    return np.exp(np.interp(np.log(each), x, np.log([flops * speed for flops, speed in measured])))
