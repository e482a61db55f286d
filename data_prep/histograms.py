"""How the values of one statistic are spread: bins, quantiles, and how many documents lie beyond each threshold."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np

BINS = 40
QUANTILES = {"min": 0.0, "1%": 0.01, "10%": 0.1, "median": 0.5, "90%": 0.9, "99%": 0.99, "max": 1.0}
GROUPS = ("kept", "dropped_here", "dropped_elsewhere")


def spread(values: np.ndarray, groups: np.ndarray, thresholds: Sequence[float]) -> dict[str, Any]:
    """JSON-able picture of one statistic: {"log", "edges", "quantiles", and counts under each name of GROUPS}.

    values: numbers or bool [documents]; groups: uint8 [documents], index into GROUPS. Edges are [bins + 1] and take in
    the thresholds that lie near the values. Values that are no numbers (NaN) are left out; {} when none is left.
    """
    finite = np.isfinite(values)
    values, groups = values[finite], groups[finite]
    if not len(values):
        return {}
    quantiles = np.quantile(values.astype(np.float64), list(QUANTILES.values()))
    edges, log = bin_edges(values, quantiles, thresholds)
    inside = np.clip(values.astype(np.float64), edges[0], edges[-1])
    counts = {name: np.histogram(inside[groups == code], edges)[0].tolist() for code, name in enumerate(GROUPS)}
    return {"log": log, "edges": edges.tolist(), "quantiles": dict(zip(QUANTILES, quantiles.tolist())), **counts}


def bin_edges(values: np.ndarray, quantiles: np.ndarray, thresholds: Sequence[float]) -> tuple[np.ndarray, bool]:
    """(float64 [bins + 1], logarithmic): one bin a value where few whole numbers occur, else BINS of equal width.

    The axis is logarithmic for values that spread over more than a factor of 30 (0 then counts in the first bin).
    """
    low, middle, high = float(quantiles[0]), float(quantiles[3]), float(quantiles[-1])
    whole = values.dtype.kind in "biu"
    log = low >= 0 and high > 30 * max(middle, 1.0)
    log = log or whole and low >= 0 and high > 30 * max(low, 1.0)
    width = max(high - low, abs(high), 1e-9)
    near = [value for value in map(float, thresholds)
            if (value > 0 if log else low - 2 * width <= value <= high + 2 * width)]
    low, high = min(low, *near, high), max(high, *near, low)
    if whole and high - low < BINS:
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5, False
    if log:
        positive = values[values > 0]
        start = min(float(positive.min()), *near, float(positive.max()))
        return np.geomspace(start, max(high, 1.001 * start), BINS + 1), True
    return np.linspace(low, high if high > low else low + 0.1 * max(abs(low), 1.0), BINS + 1), False
