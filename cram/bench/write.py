"""A measurement on disk: JSON, and a table and a plot made from that JSON alone.

A record holds what was measured, where, by which command, and a ``view`` of its rows:

    panel     template of the heading under which a row belongs: "head dimension {head_dim}"
    columns   [heading, key, format] each; a key may reach inside: "forward.ms"
    x, line   keys: where on the x axis a row lies, and which line or bar it belongs to
    y         [key, label] each: what is drawn, one plot a panel
    kind      "lines" or "bars"
    baseline  the line that the others are compared with

A record may hold ``tables`` besides, [heading, header, rows of text] each, which were computed from all rows together and
come before them.

A row with an ``error`` took part and has no result; it stays in the table. A ``remark`` stands in the same place.
"""

from __future__ import annotations

import io
import json
import math
import re
import textwrap
from pathlib import Path
from typing import Any, Optional

from cram.errors import CramError
from cram.report_page import to_markdown
from data_prep.files import replace_durably

SCHEMA = 1
COLUMNS = 4  # plots side by side
ROUNDS = "Medians of {repeats} rounds, in each of which every competitor is timed once."
CROWDED = 8  # more names on an axis than this stand upright
LONGEST = 32  # letters of such a name


def save(record: dict, out: Path) -> Path:
    """Write ``<out>/<what>_<device>.json`` durably, in the place of an earlier one; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    environment = record["environment"]
    name = environment["name"] if environment["device"] == "cuda" else environment["device"]
    path = out / f"{record['what']}_{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    replace_durably(path, (json.dumps(record, indent=1) + "\n").encode())
    return path


def render(path: Path) -> list[Path]:
    """Make the table (.md) and the plot (.png) beside a record; returns their paths. CramError for another file."""
    record = _read(path)
    drawing, page = path.with_suffix(".png"), path.with_suffix(".md")
    replace_durably(drawing, draw(record))
    replace_durably(page, table(record, path.stem).encode())
    return [page, drawing]


def table(record: dict, stem: str) -> str:
    """The record as Markdown; stem: name of the record's files."""
    view, environment = record["view"], record["environment"]
    blocks: list[tuple] = [("title", view["title"]), ("text", _where(environment)),
                           ("text", view.get("rounds", ROUNDS).format(**record)
                            + " Not complete: the command was stopped before its last case." * (not record["complete"]))]
    blocks += [("text", note) for note in record["notes"]]
    blocks.append(("code", f"{record['command']}\ncram bench render {stem}.json    # this page and its plot, from the JSON"))
    for heading, header, body in record.get("tables", []):
        blocks += [("section", heading), ("table", header, body)]
    for panel, rows in _panels(record).items():
        body = [[*(cell(row, *column) for _, *column in view["columns"]), row.get("error", row.get("remark", ""))]
                for row in rows]
        header = [heading for heading, *_ in view["columns"]] + ["remark"] * any(line[-1] for line in body)
        blocks += [("section", panel), ("table", header, [line[:len(header)] for line in body])]
    return to_markdown(blocks) + f"\n![{view['title']}]({stem}.png)\n"


def draw(record: dict) -> bytes:
    """The record's plots as PNG: for each y one a panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    view, panels = record["view"], _panels(record)
    columns = min(COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    crowded = max(len({row[view["x"]] for row in rows}) for rows in panels.values()) > CROWDED
    size = (4.2 * columns * (1 + crowded), (3.2 + 1.8 * crowded) * lines * len(view["y"]))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines * len(view["y"]), columns, squeeze=False).flatten()
    for ax in axes:
        ax.axis("off")
    names = list(dict.fromkeys(row[view["line"]] for row in record["rows"]))
    for part, (key, label) in enumerate(view["y"]):
        for ax, (panel, rows) in zip(axes[part * lines * columns:], panels.items()):
            ax.axis("on")
            _plot(ax, view, rows, names, key)
            ax.set_title(textwrap.fill(panel, 56), fontsize=9)
            ax.set_ylabel(label, fontsize=8)
            ax.tick_params(labelsize=7)
    handles: dict = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            handles.setdefault(label, handle)  # the first is the line, not its lonely markers
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(7, len(handles)), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _plot(ax, view: dict, rows: list[dict], names: list[str], key: str) -> None:
    """One pair of axes: each name's values over the places on the x axis."""
    places = list(dict.fromkeys(row[view["x"]] for row in rows))
    highest = lowest = 0.0
    for number, name in enumerate(names):
        points = {row[view["x"]]: find(row, key) for row in rows if row[view["line"]] == name}
        points = {place: value for place, value in points.items() if value is not None}
        if not points:
            continue
        highest, lowest, baseline = max(highest, *points.values()), min(lowest, *points.values()), name == view["baseline"]
        style = {"color": "black" if baseline else f"C{number % 10}", "label": f"{name} (baseline)" if baseline else name}
        if view["kind"] == "bars":
            width = 0.8 / len(names)
            at = [places.index(place) - 0.4 + (number + 0.5) * width for place in points]
            ax.bar(at, points.values(), width=width, **style)
            continue
        style |= {"marker": "s" if baseline else "o", "markersize": 4, "linewidth": 1.4}
        for numbers in (True, False):  # a line leads from number to number; what is no number stands alone
            part = {places.index(place): value for place, value in points.items() if isinstance(place, (int, float)) is numbers}
            ax.plot(part.keys(), part.values(), linestyle=("--" if baseline else "-") if numbers else "", **style)
    told = [text if len(text) <= LONGEST else text[:LONGEST - 1] + "…" for text in map(str, places)]
    ax.set_xticks(range(len(places)), told, rotation=90 if len(places) > CROWDED else 0)
    ax.set_xlim(-0.6, len(places) - 0.4)
    ax.set_ylim(1.1 * lowest, 1.1 * highest or 1.0)


def find(row: dict, key: str) -> Any:
    """The value of a dotted key; None where the row has none."""
    for name in key.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def cell(row: dict, key: str, form: str) -> str:
    """A value in its format; 'spread' is a median in milliseconds with its quartiles."""
    value = find(row, key)
    if value is None:
        return "–"
    if form == "spread":
        return f"{value['ms']:.3f} ({value['p25']:.3f} to {value['p75']:.3f})"
    return format(value, form) if not isinstance(value, str) else value


def _panels(record: dict) -> dict[str, list[dict]]:
    panels: dict[str, list[dict]] = {}
    for row in record["rows"]:
        panels.setdefault(record["view"]["panel"].format(**row), []).append(row)
    return panels


def _where(environment: dict) -> str:
    """Device, versions, commit and date in one line."""
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "triton", "cuda", "driver", "python")
                         if environment.get(name))
    commit = "no commit known"
    if environment["commit"]:
        commit = f"commit {environment['commit'][:12]}{' with changes' * environment['changed']}"
    return f"{environment['name']} ({environment['threads']} CPU threads); {versions}; {commit}; {environment['date']}."


def _read(path: Path) -> dict:
    try:
        record: Optional[dict] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CramError(f"{path}: not JSON ({error}); measure again: cram bench") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise CramError(f"{path}: not a measurement of this version (schema {SCHEMA}); give a file that cram bench wrote")
    if not record["rows"]:
        raise CramError(f"{path}: holds no row yet; measure again: {record['command']}")
    return record
