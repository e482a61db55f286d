"""Loss as a function of model size and tokens: L(N, D) = E + A / N^alpha + B / D^beta.

Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models", arXiv 2203.15556), section 3.3 and equation 10: the
parameters minimise the Huber loss between the logarithms of predicted and measured losses, by L-BFGS from a grid of starts.
Intervals come from a bootstrap of residuals, which keeps the grid as it was designed.

Axes: P measured points; the five parameters theta are (log A, log B, log E, alpha, beta).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from cram.errors import CramError

DELTA = 1e-3            # of the Huber loss, on logarithms (section 3.3)
STARTS = ((0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (-1.0, -0.5, 0.0, 0.5, 1.0),
          (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 0.5, 1.0, 1.5, 2.0))  # appendix D.2
POLISHED = 48           # starts that L-BFGS goes on from: those that fit best as they stand, of all
BOUNDS = [(None, None)] * 3 + [(0.0, 5.0)] * 2
DRAWS = 200


@dataclass(frozen=True)
class Law:
    """L(n, d) = E + A / n^alpha + B / d^beta, in nats; n: parameters, d: tokens trained on."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, n, d):
        """Nats; n and d may be arrays."""
        return self.E + self.A / np.power(n, self.alpha) + self.B / np.power(d, self.beta)


@dataclass(frozen=True)
class Fit:
    """The law of all points and those of its bootstrap draws. residuals: of log loss, [P]."""

    law: Law
    draws: tuple[Law, ...]
    residuals: tuple[float, ...]

    def interval(self, value) -> tuple[float, float]:
        """95% of what ``value(law)`` is over the draws, which tell how well the fit is known, not whether the form holds."""
        low, high = np.quantile([value(law) for law in self.draws], (0.025, 0.975))
        return float(low), float(high)

    def predict(self, n: float, d: float) -> tuple[float, float, float]:
        """(loss, low, high) in nats."""
        return float(self.law.loss(n, d)), *self.interval(lambda law: law.loss(n, d))


def fit(n_P: Sequence[float], d_P: Sequence[float], loss_P: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Fit:
    """The law of these points. CramError for fewer than three sizes, three numbers of tokens or six points: they do not
    determine five parameters."""
    import scipy.optimize  # noqa: F401 (it brings a BLAS of its own, which can be held once it is loaded)
    from threadpoolctl import threadpool_limits

    n_P, d_P, loss_P = (np.asarray(values, dtype=np.float64) for values in (n_P, d_P, loss_P))
    if len(set(n_P)) < 3 or len(set(d_P)) < 3 or len(n_P) < 6:
        raise CramError(f"{len(n_P)} points of {len(set(n_P))} sizes and {len(set(d_P))} budgets do not determine the law's "
                        "five parameters; give at least three --sizes, and three --budgets beside the held-out one")
    x_P, y_P, log_loss_P = np.log(n_P), np.log(d_P), np.log(loss_P)
    with threadpool_limits(1, "blas"):  # for five numbers threads only wait: twenty times the time on a busy machine
        found = _minimum(x_P, y_P, log_loss_P, _best_starts(x_P, y_P, log_loss_P))
        predicted_P = _log_loss(found, x_P, y_P)[0]
        residual_P = log_loss_P - predicted_P
        rng, spread = np.random.default_rng(seed), np.sqrt(len(n_P) / max(len(n_P) - 5, 1))  # five took their share
        again = [_minimum(x_P, y_P, predicted_P + spread * rng.choice(residual_P, len(residual_P)), found[None])
                 for _ in range(draws)]
    return Fit(_law(found), tuple(map(_law, again)), tuple(residual_P))


def _law(theta) -> Law:
    a, b, e, alpha, beta = map(float, theta)
    return Law(np.exp(e), np.exp(a), np.exp(b), alpha, beta)


def _log_loss(theta, x_P, y_P) -> tuple[np.ndarray, np.ndarray]:
    """(log of the law [P], its gradient [5, P]); x, y: logarithms of n, d."""
    a, b, e, alpha, beta = theta
    terms = np.stack([a - alpha * x_P, b - beta * y_P, np.full_like(x_P, e)])
    top = terms.max(0)
    shares = np.exp(terms - top)
    total = shares.sum(0)
    shares /= total
    return top + np.log(total), np.stack([*shares, -x_P * shares[0], -y_P * shares[1]])


def _huber(error_P) -> tuple[float, np.ndarray]:
    """(sum, its gradient [P])."""
    size = np.abs(error_P)
    value = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))
    return float(value.sum()), np.clip(error_P, -DELTA, DELTA)


def _best_starts(x_P, y_P, log_loss_P) -> np.ndarray:
    """[POLISHED, 5] of the grid."""
    grid = np.array(list(itertools.product(*STARTS)))
    a, b, e, alpha, beta = (part[:, None] for part in grid.T)
    predicted = np.logaddexp(np.logaddexp(a - alpha * x_P, b - beta * y_P), e)  # [starts, P]
    size = np.abs(predicted - log_loss_P)
    value = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum(1)
    return grid[np.argsort(value, kind="stable")[:POLISHED]]


def _minimum(x_P, y_P, log_loss_P, starts) -> np.ndarray:
    """The best theta that L-BFGS finds. The objective is scaled, or its tolerances would stop it at once."""
    from scipy.optimize import minimize

    def objective(theta):
        predicted_P, gradient = _log_loss(theta, x_P, y_P)
        value, slope_P = _huber(predicted_P - log_loss_P)
        return value / DELTA**2, gradient @ slope_P / DELTA**2

    results = [minimize(objective, start, jac=True, method="L-BFGS-B", bounds=BOUNDS, options={"maxiter": 2000})
               for start in starts]
    return min(results, key=lambda result: result.fun).x


def parabola(log_n: Sequence[float], loss: Sequence[float]) -> tuple[np.ndarray, float | None]:
    """(coefficients, log n of the least loss) of a parabola through losses at equal FLOPs (Hoffmann et al. 2022, approach 2);
    None where it has no minimum between the smallest and the largest size."""
    coefficients = np.polyfit(log_n, loss, 2)
    if coefficients[0] <= 0:
        return coefficients, None
    least = float(-coefficients[1] / (2 * coefficients[0]))
    return coefficients, least if min(log_n) <= least <= max(log_n) else None
