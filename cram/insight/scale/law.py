"""Loss as a function of model size and tokens: L(N, D) = E + (A / N^alpha + B / D^beta)^gamma.

With gamma = 1 this is the law of Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models", arXiv 2203.15556,
equation 2), with E = 0 and beta = 1 that of Kaplan et al. 2020 (arXiv 2001.08361, equation 1.5); the form between them is used
by Busbridge et al. 2025 ("Distillation Scaling Laws", arXiv 2502.08606). Models of a hundred thousand parameters need it: a
small one is held back by its size long before data stops helping a larger one, which a sum of two separate terms cannot say.
gamma is 1 unless the points ask for it: by Akaike's criterion corrected for few points (Hurvich & Tsai 1989).

Fitted as Hoffmann et al. do (section 3.3): the parameters minimise the Huber loss between the logarithms of predicted and
measured losses, from a grid of starts. Intervals come from a bootstrap of residuals, which keeps the grid as it was designed.

Axes: P measured points; theta is (log A, log B, log E, alpha, beta) or these and gamma.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Optional, Sequence

import numpy as np

from cram.errors import CramError

DELTA = 1e-3            # of the Huber loss, on logarithms (section 3.3)
STARTS = ((0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (-1.0, -0.5, 0.0, 0.5, 1.0),
          (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 0.5, 1.0, 1.5, 2.0))     # appendix D.2
GAMMAS = (0.5, 1.0)     # starts of gamma, where it is free
POLISHED = 48           # starts that are gone on from: those that fit best as they stand, of all
REFINED = 4             # of these
LOW, HIGH = (-50.0, -50.0, -10.0, 0.0, 0.0, 0.05), (200.0, 200.0, 5.0, 5.0, 5.0, 3.0)
NOTHING = 1e-12         # mean square of log residuals that is but rounding
DRAWS = 200


@dataclass(frozen=True)
class Law:
    """L(n, d) = E + (A / n^alpha + B / d^beta)^gamma, in nats; n: parameters, d: tokens trained on."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    gamma: float = 1.0

    def loss(self, n, d):
        """Nats; n and d may be arrays."""
        return self.E + (self.A / np.power(n, self.alpha) + self.B / np.power(d, self.beta)) ** self.gamma


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
    n_P, d_P, loss_P = (np.asarray(values, dtype=np.float64) for values in (n_P, d_P, loss_P))
    if len(set(n_P)) < 3 or len(set(d_P)) < 3 or len(n_P) < 6:
        raise CramError(f"{len(n_P)} points of {len(set(n_P))} sizes and {len(set(d_P))} budgets do not determine the law's "
                        "five parameters; give at least three --sizes, and three --budgets beside the held-out one")
    import scipy.optimize  # noqa: F401 (it brings a BLAS of its own, which can be held once it is loaded)
    from threadpoolctl import threadpool_limits

    x_P, y_P, log_loss_P = np.log(n_P), np.log(d_P), np.log(loss_P)
    with threadpool_limits(1, "blas"):  # for six numbers threads only wait: twenty times the time on a busy machine
        forms = [_minimum(x_P, y_P, log_loss_P, _best_starts(x_P, y_P, log_loss_P, gammas)) for gammas in ((None,), GAMMAS)]
        found, _ = min(forms, key=lambda form: _criterion(len(form[0]), form[1], len(n_P)))
        predicted_P = _log_loss(found, x_P, y_P)[0]
        residual_P = log_loss_P - predicted_P
        rng = np.random.default_rng(seed)
        spread = np.sqrt(len(n_P) / max(len(n_P) - len(found), 1))      # the parameters took their share
        again = [_minimum(x_P, y_P, predicted_P + spread * rng.choice(residual_P, len(residual_P)), found[None])[0]
                 for _ in range(draws)]
    return Fit(_law(found), tuple(map(_law, again)), tuple(residual_P))


def _criterion(parameters: int, cost: float, points: int) -> float:
    """Akaike's, corrected for few points (AICc)."""
    left = points - parameters - 1
    correction = 2 * parameters * (parameters + 1) / left if left > 0 else np.inf if parameters > 5 else 0.0
    return points * np.log(2 * cost / points + NOTHING) + 2 * parameters + correction


def _law(theta) -> Law:
    a, b, e, *powers = map(float, theta)
    return Law(float(np.exp(e)), float(np.exp(a)), float(np.exp(b)), *powers)


def _log_loss(theta, x_P, y_P) -> tuple[np.ndarray, np.ndarray]:
    """(log of the law [P], its gradient [len(theta), P]); x, y: logarithms of n, d."""
    a, b, e, alpha, beta, gamma = theta if len(theta) == 6 else (*theta, 1.0)
    size, data = a - alpha * x_P, b - beta * y_P
    both = np.logaddexp(size, data)
    value = np.logaddexp(e, gamma * both)
    above = np.exp(gamma * both - value)            # share of the loss that is not E
    by_size, by_data = above * gamma * np.exp(size - both), above * gamma * np.exp(data - both)
    return value, np.stack([by_size, by_data, 1 - above, -x_P * by_size, -y_P * by_data, above * both][:len(theta)])


def _best_starts(x_P, y_P, log_loss_P, gammas: Sequence[Optional[float]]) -> np.ndarray:
    """[POLISHED, 5 or 6] of the grid; gammas: (None,) for a law without."""
    grid = np.array([[value for value in start if value is not None] for start in itertools.product(*STARTS, gammas)])
    a, b, e, alpha, beta = (part[:, None] for part in grid.T[:5])
    gamma = grid[:, 5:] if grid.shape[1] == 6 else 1.0
    predicted = np.logaddexp(gamma * np.logaddexp(a - alpha * x_P, b - beta * y_P), e)  # [starts, P]
    size = np.abs(predicted - log_loss_P)
    value = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum(1)
    return grid[np.argsort(value, kind="stable")[:POLISHED]]


def _minimum(x_P, y_P, log_loss_P, starts) -> tuple[np.ndarray, float]:
    """The best theta that a trust-region method finds, and its cost: least squares from all starts, then Huber's loss from
    the best of those."""
    from scipy.optimize import least_squares

    low, high = LOW[:starts.shape[1]], HIGH[:starts.shape[1]]

    def go(start, loss: str):
        return least_squares(lambda theta: _log_loss(theta, x_P, y_P)[0] - log_loss_P, start,
                             lambda theta: _log_loss(theta, x_P, y_P)[1].T, bounds=(low, high), loss=loss, f_scale=DELTA,
                             x_scale="jac", ftol=1e-8, xtol=1e-8, gtol=1e-14, max_nfev=200)

    near = sorted((go(np.clip(start, low, high), "linear") for start in starts), key=lambda result: result.cost)[:REFINED]
    best = min((go(each.x, "huber") for each in near), key=lambda result: result.cost)
    return best.x, float(best.cost)


def parabola(log_n: Sequence[float], loss: Sequence[float]) -> tuple[np.ndarray, float | None]:
    """(coefficients, log n of the least loss) of a parabola through losses at equal FLOPs (Hoffmann et al. 2022, approach 2);
    None where it has no minimum between the smallest and the largest size."""
    coefficients = np.polyfit(log_n, loss, 2)
    if coefficients[0] <= 0:
        return coefficients, None
    least = float(-coefficients[1] / (2 * coefficients[0]))
    return coefficients, least if min(log_n) <= least <= max(log_n) else None
