"""Histograms as small SVG drawings; colours are classes of the page's style, so that they follow light and dark."""

from __future__ import annotations

import html
import math
from typing import Any

WIDTH, HEIGHT = 420, 150
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 18, 20
LAYERS = (("kept", "k"), ("dropped_elsewhere", "e"), ("dropped_here", "d"))      # name of the counts, class; last on top


def histogram(row: dict[str, Any]) -> str:
    """An SVG of one row of inspection["statistics"]: bars of kept and dropped documents, thresholds as dashed lines.

    Bars stand in front of each other, not on each other; heights are log(1 + documents), so that rare values show.
    """
    most = max(max(row[name]) for name, _ in LAYERS)
    drawn = _grid(most)
    drawn += [f'<path class="{style}" d="{_bars(row[name], most)}"/>' for name, style in LAYERS if any(row[name])]
    drawn += [_tick(_x(row, value), value) for value in _ticks(row["edges"], row["log"])]
    drawn += [line for rule in row["rules"] for line in _threshold(row, rule)]
    label = html.escape(f"histogram of {row['name']}: documents by value, kept and dropped")
    return (f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">' + "".join(drawn) + "</svg>")


def _x(row: dict[str, Any], value: float) -> float:
    """Where a value stands on the axis, in units of the drawing."""
    low, high = row["edges"][0], row["edges"][-1]
    scale = math.log if row["log"] else float
    return LEFT + (WIDTH - LEFT - RIGHT) * (scale(value) - scale(low)) / (scale(high) - scale(low))


def _y(count: float, most: int) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log1p(count) / math.log1p(max(most, 1))


def _bars(counts: list[int], most: int) -> str:
    """One path: a rectangle for every bin that holds a document."""
    step = (WIDTH - LEFT - RIGHT) / len(counts)
    return "".join(f"M{LEFT + step * at:.1f} {HEIGHT - BOTTOM}V{_y(count, most):.1f}h{step - 0.8:.1f}V{HEIGHT - BOTTOM}z"
                   for at, count in enumerate(counts) if count)


def _grid(most: int) -> list[str]:
    drawn = []
    for power in range(0, len(str(most)), 1 if most < 10_000 else 2):
        y = _y(10 ** power, most)
        drawn.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10 ** power:,}</text>')
    return [*drawn, f'<path class="a" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>']


def _threshold(row: dict[str, Any], rule: dict[str, Any]) -> list[str]:
    value = rule["threshold"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not row["edges"][0] <= value <= row["edges"][-1]:
        return []
    x = _x(row, value)
    anchor = "start" if x < WIDTH / 4 else "end" if x > 3 * WIDTH / 4 else "middle"
    return [f'<path class="t" d="M{x:.1f} {TOP - 3}V{HEIGHT - BOTTOM}"/>',
            f'<text x="{x:.1f}" y="{TOP - 6}" text-anchor="{anchor}">{number(value)}</text>']


def _tick(x: float, value: float) -> str:
    anchor = "end" if x > WIDTH - 3 * RIGHT else "middle"
    return f'<text x="{x:.1f}" y="{HEIGHT - 5}" text-anchor="{anchor}">{number(value)}</text>'


def _ticks(edges: list[float], log: bool) -> list[float]:
    """About five round values along the axis."""
    low, high = edges[0], edges[-1]
    if log:
        powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
        ticks = [10.0 ** power for power in powers][::max(1, len(powers) // 5)]
        return ticks if len(ticks) > 1 else [low, high]
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 5)
    step = max(step, 1.0) if all(edge % 1 == 0.5 for edge in edges[:2]) else step      # bins of whole numbers
    return [round(at * step, 12) for at in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
