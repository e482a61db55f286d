"""Drawings of a race."""

from __future__ import annotations

import statistics
from typing import Any, Mapping

from cram.drawing import COLOURS, drawing
from cram.race.statistics import finals, seconds, shares


def draw_finals(record: Mapping[str, Any], label: str) -> str:
    """Finals over seconds, a point a run, a line through the means of one competitor's shares."""
    results, names = record["results"], list(record["plans"])
    with drawing(6.2, 3.6) as made:
        axes = made.figure.subplots()
        for name, colour in zip(names, COLOURS * len(names)):
            means = []
            for share in shares(results, name):
                values = finals(results, name, share, record["measure"])
                if values:
                    took = seconds(results, name, share)
                    axes.plot(took, list(values.values()), "o", color=colour, markersize=4, alpha=0.6)
                    means.append((statistics.fmean(took), statistics.fmean(values.values())))
            if means:
                axes.plot(*zip(*means), "-" if len(means) > 1 else "_", color=colour, label=name, markersize=14)
        axes.set(xlabel="seconds of the process", ylabel=label)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return made.svg


def draw_curves(record: Mapping[str, Any]) -> str:
    """Training loss over seconds, as told by each program, of the first seed that brought a result."""
    results, names = record["results"], list(record["plans"])
    with drawing(6.2, 3.6) as made:
        axes = made.figure.subplots()
        for name, colour in zip(names, COLOURS * len(names)):
            curve = next((result["curve"] for result in results if result["competitor"] == name and result["share"] == 1.0
                          and result["failure"] is None), [])
            if curve:
                axes.plot(*zip(*curve), color=colour, linewidth=1.2, label=name)
        axes.set(xlabel="seconds since the process started", ylabel="training loss, nats")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    return made.svg
