"""Two drawings: where the time goes, and how near each operation comes to what the machine allows."""

from __future__ import annotations

import math

from cram.drawing import BLUE, BROWN, GREEN, INK, ORANGE, RED, VIOLET, drawing

PHASE_COLOURS = {"data": BROWN, "forward": BLUE, "backward": ORANGE, "recompute": RED, "optimizer": GREEN}
KIND_COLOURS = {"matrix product": BLUE, "attention": ORANGE, "elementwise": GREEN, "reduction": VIOLET, "look-up": BROWN,
                "copy": RED}
POINTS = 12  # operations drawn, by time


def draw_time(modules: list[dict]) -> str:
    """Milliseconds by module, a colour a phase."""
    rows = sorted(modules, key=lambda row: row["total_ms"])
    with drawing(6.2, 0.9 + 0.24 * len(rows)) as made:
        axes = made.figure.subplots()
        left = [0.0] * len(rows)
        for phase, colour in PHASE_COLOURS.items():
            values = [row["ms"].get(phase, 0.0) for row in rows]
            if any(values):
                axes.barh(range(len(rows)), values, left=left, color=colour, label=phase, height=0.7)
                left = [a + b for a, b in zip(left, values)]
        axes.set_yticks(range(len(rows)), [row["module"] for row in rows])
        axes.set_xlabel("milliseconds of a step")
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.legend(frameon=False, loc="lower right")
    return made.svg


def numbered(operations: list[dict]) -> list[dict]:
    """The operations that are drawn, in the order of their numbers."""
    return [row for row in operations if row["intensity"] and row["flops_per_second"]][:POINTS]


def draw_roofline(operations: list[dict], machine: dict) -> str:
    """Achieved FLOP/s against FLOPs a byte, under the machine's limits; numbers as in the table of operations."""
    rows, flops = numbered(operations), machine["flops"]
    xs = [row["intensity"] for row in rows] + [flops / machine["bandwidth"]]
    low, high = min(xs) / 3, max(xs) * 3
    with drawing(6.2, 4.4) as made:
        axes = made.figure.subplots()
        axes.loglog()
        for bandwidth, style, name in ((machine["bandwidth"], "-", "memory"), (machine["cache_bandwidth"], ":", "cache")):
            if bandwidth * low < flops:
                ridge = flops / bandwidth
                axes.plot([low, ridge], [bandwidth * low, flops], style, color=INK, linewidth=1.2)
                axes.annotate(f"{name} {bandwidth / 1e9:,.0f} GB/s", (low, bandwidth * low), (4, 10 if name == "cache" else 6),
                              textcoords="offset points", fontsize=8, rotation=0)
        axes.plot([low, high], [flops, flops], color=INK, linewidth=1.2)
        axes.annotate(f"{flops / 1e9:,.0f} GFLOP/s, {machine['precision']}", (low, flops), (4, 4), textcoords="offset points",
                      fontsize=8)
        for kind in dict.fromkeys(row["kind"] for row in rows):
            own = [row for row in rows if row["kind"] == kind]
            areas = [10 + 80 * row["ms"] / rows[0]["ms"] for row in own]
            axes.scatter([row["intensity"] for row in own], [row["flops_per_second"] for row in own], areas, label=kind,
                         color=KIND_COLOURS[kind], alpha=0.8, linewidths=0)
        for number, row in enumerate(rows, start=1):  # around the points, each in a direction of its own
            away = 17 * math.cos(2.4 * number), 17 * math.sin(2.4 * number)
            axes.annotate(str(number), (row["intensity"], row["flops_per_second"]), away, textcoords="offset points",
                          fontsize=8, ha="center", va="center", arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": INK})
        axes.set_xlim(low, high)
        axes.set_ylim(min([row["flops_per_second"] for row in rows] + [flops]) / 4, flops * 3)
        axes.set(xlabel="FLOPs a byte", ylabel="FLOP/s")
        axes.legend(frameon=False, fontsize=8, loc="lower right", markerscale=0.6)
    return made.svg
