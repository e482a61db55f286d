"""Benchmark results as a table, in lines, and as a drawing: scores with their interval, chance, and what others reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from cram.drawing import INK, drawing
from cram.evaluate.references import beside, sources


def benchmark_table(results: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Header and rows; a benchmark that was skipped has none."""
    rows = []
    for name, result in scored(results).items():
        rows.append([short(name), result["metric"], f"{100 * result['score']:.1f}", _interval(result),
                     _hundredths(result.get("chance")), _hundredths((result.get("majority") or {}).get(result["metric"])),
                     _hundredths(_control(result)), f"{result['examples']:,}", _overlap(result), _gold(result),
                     "; ".join(f"{model} {score:.1f}" for model, score in beside(name))])
    header = ["benchmark", "measure", "score", "interval or spread", "chance", "one answer for all", "random weights",
              "examples", "in training text", "answer, bits per byte", "others"]
    used = [index for index in range(len(header)) if index < 3 or any(row[index] for row in rows)]
    return [header[index] for index in used], [[row[index] for index in used] for row in rows]


def benchmark_lines(results: dict[str, dict]) -> list[str]:
    """The same for the terminal, without what others reached; one line a benchmark."""
    header, rows = benchmark_table(results)
    keep = [index for index, title in enumerate(header) if title != "others"]
    cells = [[row[index] for index in keep] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(cell.ljust(width) if index < 2 else cell.rjust(width)
                      for index, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in cells]


def remarks(results: dict[str, dict]) -> list[str]:
    """What the table does not show: averages, what was skipped and why, whose figures stand beside ours."""
    from cram.evaluate.averages import averages

    skipped: dict[str, list[str]] = {}
    for name, result in results.items():
        if "skipped" in result:
            skipped.setdefault(result["skipped"], []).append(name)
    notes = {short(name): result["details"]["note"] for name, result in scored(results).items()
             if (result.get("details") or {}).get("note")}
    return [*averages(results), *(f"{name}: {note}" for name, note in notes.items()),
            *(f"skipped: {', '.join(names)}: {why}" for why, names in skipped.items()),
            *(f"others: {line}" for line in sources(list(scored(results))))]


def short(name: str) -> str:
    """A benchmark's name without the folders of a file."""
    return f"pairs:{Path(name).name.partition('.')[0]}" if name.startswith("pairs:") else name


def scored(results: dict[str, dict]) -> dict[str, dict]:
    """Those that have a score."""
    return {name: result for name, result in results.items() if "skipped" not in result}


def draw(results: dict[str, dict]) -> str:
    """One line a benchmark, as SVG text; INK where the text colour belongs."""
    shown = scored(results)
    with drawing(6.2, 1.4 + 0.36 * len(shown)) as made:
        axes = made.figure.subplots()
        for y, (name, result) in enumerate(shown.items()):
            low, high = (result["low"], result["high"]) if result.get("low") is not None else (result["score"],) * 2
            axes.plot([100 * low, 100 * high], [y, y], color="#4c8bd6", linewidth=3, solid_capstyle="butt")
            axes.plot(100 * result["score"], y, "o", color="#4c8bd6", label="this model" if y == 0 else None)
            for value, mark, colour, label in ((result.get("chance"), "|", INK, "chance"),
                                               (_control(result), "x", "#e0802f", "random weights")):
                if value is not None:
                    axes.plot(100 * value, y, mark, color=colour, markersize=9, label=label)
            for _, score in beside(name):
                axes.plot(score, y, "d", color="#5fa55a", markersize=5, label="others (table)")
        axes.set(yticks=range(len(shown)), yticklabels=[short(name) for name in shown], xlabel="score, hundredths")
        axes.invert_yaxis()
        handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
        made.figure.legend(handles.values(), handles, frameon=False, loc="outside lower center", ncols=4)
    return made.svg


def _hundredths(value: Any) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _control(result: dict) -> Optional[float]:
    """The score of the same model with random weights, where it was asked for."""
    return (result.get("control") or {}).get("score")


def _interval(result: dict) -> str:
    return "" if result.get("low") is None else f"{100 * result['low']:.1f} to {100 * result['high']:.1f}"


def _gold(result: dict) -> str:
    """What the right answer costs: it falls long before the score rises."""
    found = (result.get("details") or {}).get("gold_bits_per_byte")
    return "" if found is None else f"{found['value']:.3f}"


def _overlap(result: dict) -> str:
    """'62 of 5,089': examples that share 13 words with the training text, of those long enough to compare."""
    overlap = result.get("overlap")
    return "" if overlap is None else f"{overlap['found']:,} of {overlap['comparable']:,}"
