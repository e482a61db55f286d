"""The compute multiplier: how many times its budget the baseline would need to reach a variant's loss.

Only finals compare: a schedule that decays makes a point within a run worse than a run that ends there. So the baseline is
also run at other budgets, the ladder, seed by seed. Through the finals of a seed goes

    L(x) = E + A phi(x),   phi(x) = (x^-a - 1) / a,   x the budget as a factor of the question's,

a power law with an offset (the form of Hoffmann et al. 2022, section 3.3, in one variable), straight in log x as a -> 0. The
exponent is that of the means over seeds (least squares; 0 with two budgets), level and slope are each seed's own (least
squares, exact where there are as many budgets as parameters). Inside the ladder that is an interpolation, and nothing is said
beyond it.

The multiplier is where the variant's loss and L differ by 0 in the mean over seeds. Its 95% interval are the factors at
which Student's paired test would not tell them apart (inversion of the test, Fieller 1954): unsymmetric where the curve
bends, open where it leaves the ladder. The exponent is taken as known, which makes the interval a little narrow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np

from cram.bench.paired import interval

EXPONENTS = np.linspace(0.0, 3.0, 301)
GRID = 2001         # factors at which the interval is looked for
FLAT = 1e-9         # a slope smaller than this share of the level is none


@dataclass(frozen=True)
class Multiplier:
    """value: the factor, None beyond the ladder; low, high: ends of its 95% interval, None beyond the ladder (both None with
    one seed); bottom, top: of the ladder; above: whether a value beyond lies over the top."""

    value: Optional[float]
    low: Optional[float]
    high: Optional[float]
    bottom: float
    top: float
    above: bool
    seeds: int

    def told(self) -> str:
        """``1.62 (1.40 to 1.91)``, ``1.8 (1.5 to > 2)``, ``> 2``."""
        under, over = f"< {self.bottom:.3g}", f"> {self.top:.3g}"
        value = f"{self.value:.2f}" if self.value is not None else over if self.above else under
        if self.seeds < 2 or (self.value is None and (self.low is None) == (self.high is None)):
            return value
        low = f"{self.low:.2f}" if self.low is not None else under
        high = f"{self.high:.2f}" if self.high is not None else over
        return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Curve:
    """The baseline's loss against its budget. factors_K: the ladder; level_S, slope_S: of each seed."""

    factors_K: np.ndarray
    exponent: float
    level_S: np.ndarray
    slope_S: np.ndarray

    def at(self, factor: float | np.ndarray) -> np.ndarray:
        """Loss of each seed, [S] or [S, X]."""
        phi = shape(np.asarray(factor, float), self.exponent)
        return self.level_S.reshape(-1, *[1] * phi.ndim) + self.slope_S.reshape(-1, *[1] * phi.ndim) * phi


def shape(factor_X: np.ndarray, exponent: float) -> np.ndarray:
    """phi: (x^-a - 1) / a, or -log x where a is 0. Falls in x, 0 at 1."""
    return -np.log(factor_X) if exponent == 0 else (factor_X ** -exponent - 1) / exponent


def fit(factors: Sequence[float], losses: Sequence[Sequence[float]]) -> Optional[Curve]:
    """The curve through finals. losses: of each seed, at each factor. None when the loss does not fall with the budget."""
    factors_K, losses_SK = np.asarray(factors, float), np.asarray(losses, float)

    exponent = 0.0 if len(factors_K) < 3 else float(EXPONENTS[np.argmin(_residual(factors_K, losses_SK.mean(0)))])
    phi_K = shape(factors_K, exponent)
    centred_K = phi_K - phi_K.mean()
    slope_S = losses_SK @ centred_K / (centred_K @ centred_K)
    level_S = losses_SK.mean(1) - slope_S * phi_K.mean()
    curve = Curve(factors_K, exponent, level_S, slope_S)
    return curve if slope_S.mean() > FLAT * max(1.0, abs(level_S.mean())) else None


def _residual(factors_K: np.ndarray, mean_K: np.ndarray) -> np.ndarray:
    """Squares that each exponent leaves after a straight line in its phi, [len(EXPONENTS)]."""
    phi_EK = np.stack([shape(factors_K, float(exponent)) for exponent in EXPONENTS])
    phi_EK -= phi_EK.mean(1, keepdims=True)
    mean_K = mean_K - mean_K.mean()
    slope_E = phi_EK @ mean_K / (phi_EK**2).sum(1)
    return ((mean_K - slope_E[:, None] * phi_EK) ** 2).sum(1)


def multiplier(curve: Curve, losses: Sequence[float]) -> Multiplier:
    """The multiplier of a variant by its losses, of the same seeds in the same order."""
    losses_S = np.asarray(losses, float)
    bottom, top = float(curve.factors_K[0]), float(curve.factors_K[-1])
    height = (losses_S.mean() - curve.level_S.mean()) / curve.slope_S.mean()         # phi where the means meet
    inside = 1 + curve.exponent * height
    if curve.exponent == 0:
        value = math.exp(-min(max(height, -50.0), 50.0))
    else:
        value = inside ** (-1 / curve.exponent) if inside > 0 else math.inf
    slack = 1e-9
    above, within = value > top * (1 + slack), bottom * (1 - slack) <= value <= top * (1 + slack)
    low, high = _interval(curve, losses_S, bottom, top, value if within else (math.inf if above else 0.0))
    return Multiplier(value if within else None, low, high, bottom, top, above, len(losses_S))


def _interval(curve: Curve, losses_S: np.ndarray, bottom: float, top: float,
              value: float) -> tuple[Optional[float], Optional[float]]:
    """Factors of the ladder at which the paired test cannot tell the variant from the baseline: the first and the last, None
    where they lie beyond the ladder."""
    if len(losses_S) < 2:
        return None, None
    factors_X = np.geomspace(bottom, top, GRID)
    difference_SX = losses_S[:, None] - curve.at(factors_X)
    one = interval(range(len(losses_S))) / np.std(np.arange(len(losses_S)), ddof=1)  # half a width for a deviation of 1
    told_X = np.abs(difference_SX.mean(0)) > one * difference_SX.std(0, ddof=1)
    silent = np.flatnonzero(~told_X)
    if not len(silent):       # between two points of the grid, or beyond the ladder
        return (value, value) if 0 < value < math.inf else (None, None)
    first, last = silent[0], silent[-1]
    return (None if first == 0 else float(factors_X[first])), (None if last == GRID - 1 else float(factors_X[last]))
