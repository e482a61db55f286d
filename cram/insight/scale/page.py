"""The page of a scaling study, made from its record alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cram.budget import Budget
from cram.drawing import COLOURS, INK, drawing
from cram.errors import CramError
from cram.insight.plan.expected import fit_of, read_fit
from cram.insight.scale.advice import Advice, IsoFlop, iso_flops
from cram.insight.scale.law import Law
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

TIME = Budget("time", 1.0, "")


def write(path: Path) -> list[Path]:
    """``.md``, ``.html`` and two ``.svg`` beside a record; returns their paths. CramError for a file that is no study."""
    record = read_fit(path)
    try:
        blocks = make_blocks(record, path.stem)
    except (LookupError, TypeError, ValueError) as error:
        raise CramError(f"{path}: damaged or not a whole study ({type(error).__name__}: {error}); run cram scale again, "
                        "finished runs are found") from error
    files = {path.with_suffix(".md"): to_markdown(blocks), path.with_suffix(".html"): to_html(blocks, _title(record))}
    files |= {path.with_name(f"{block[1]}.svg"): block[2].replace(INK, "#888888") for block in blocks if block[0] == "figure"}
    for file, content in files.items():
        replace_durably(file, content.encode())
    return list(files)


def make_blocks(record: dict[str, Any], stem: str) -> list[tuple]:
    """The page as blocks (``cram.report_page``)."""
    known, held = fit_of(record), record["held_out"]
    rows, curves = record["rows"], iso_flops(record["rows"], known)
    worst = max(abs(each["error"]) for each in held)
    mean = sum(abs(each["error"]) for each in held) / len(held)
    where = record["environment"]
    blocks = [
        ("title", _title(record)),
        ("text", f"{len(record['sizes'])} sizes, {len(rows)} runs, each with a schedule of its own; the largest budget was "
                 f"held out of a first fit, which foresaw its losses with a mean error of {mean:.2%}, at worst {worst:.2%}."),
        ("text", f"{where['name']} ({where['threads']} CPU threads); torch {where['torch']}; {where['date']}. Budgets are "
                 "tokens or FLOPs, so losses do not depend on the machine; speeds do."),
        ("code", f"{record['command']}\ncram scale --render {stem}.json    # in the record's folder: this page again"),
        ("figure", f"{stem}-fit", _draw_fit(record),
         "held-out loss over tokens, measured and by the fitted law, for each size"),
        ("section", "The law"),
        ("code", f"L(N, D) = {_law(known.law)}"),
        ("text", "L: held-out loss, nats a predicted token. N: parameters without the tables of embeddings and head "
                 "(Kaplan et al. 2020). D: tokens trained on. With gamma = 1 the form is that of Hoffmann et al. 2022, "
                 "equation 2; with E = 0 and beta = 1 that of Kaplan et al.; the one between them: Busbridge et al. 2025. "
                 "gamma is 1 unless the points ask for it (AICc). Fit: Hoffmann et al. 2022, section 3.3 (Huber loss on "
                 "logarithms, from a grid of starts). Intervals: 95% of a bootstrap of residuals; they say how well the "
                 "numbers are known, not whether the form holds far outside."),
        ("table", ["", "E", "A", "B", "alpha", "beta", "gamma"], [
            ["all runs", *(f"{value:.4g}" for value in vars(known.law).values())],
            ["95%", *("{:.3g} to {:.3g}".format(*known.interval(lambda law, name=name: getattr(law, name)))
                      for name in vars(known.law))]]),
        ("section", "Held out: the largest budget, foreseen from the smaller ones"),
        ("table", ["size", "tokens", "measured", "foreseen", "95%", "error"], [
            [each["size"], f"{each['tokens']:,}", f"{each['measured']:.4f}", f"{each['predicted']:.4f}",
             f"{each['low']:.3f} to {each['high']:.3f}", f"{each['error']:+.2%}"] for each in held]),
        ("section", "Which size for which budget"),
        ("table", ["budget", "size", "parameters", "tokens", "loss", "as good", "time here"],
         [_advice(advice) for advice in record["advice"]]),
        *(("text", f"{advice['budget']}: {'; '.join(advice['remarks'])}.") for advice in record["advice"] if advice["remarks"]),
        ("text", "size: layers x width, of the family of the recipe's proportions. as good: sizes within half a percent of "
                 "the least loss. time: at the speed of the study's runs. Learning rates and batch are the recipe's at every "
                 "size: rates tuned for each would move the curves a little."),
        ("section", "The same by curves at equal FLOPs"),
        *([("figure", f"{stem}-isoflop", _draw_curves(curves), "loss over size at equal FLOPs, with parabolas")] if curves
          else []),
        ("table", ["FLOPs", "best N by parabola", "best N by the law"], [
            [f"{curve.flops:.3g}", "outside the sizes" if curve.best is None else f"{curve.best:,.0f}",
             f"{curve.best_by_law:,.0f}"]
            for curve in curves]) if curves else ("text", "The sizes share no range of FLOPs: budgets further apart would "
                                                          "give curves."),
        ("text", "Approach 2 of Hoffmann et al. 2022: at equal FLOPs a parabola over log N; losses between two runs of a size "
                 "lie on a line. The law's best size here is among the sizes measured."),
        ("section", "All runs"),
        ("table", ["size", "parameters", "N", "budget", "steps", "FLOPs", "loss", "tokens/s", "ledger"], [
            [row["size"], f"{row['parameters']:,}", f"{row['n']:,}", row["budget"] + " (held out)" * row["held_out"],
             f"{row['steps']:,}",
             f"{row['flops']:.3g}", f"{row['loss']:.4f}", f"{row['tokens_per_second']:,.0f}", row["ledger"][:12]]
            for row in rows]),
    ]
    return blocks


def _title(record: dict[str, Any]) -> str:
    return f"Scaling of {record['name']}"


def _law(law: Law) -> str:
    return f"{law.E:.3f} + ({law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f})^{law.gamma:.3f}"


def _advice(advice: dict[str, Any]) -> list[str]:
    low, high = advice["good"]
    return [advice["budget"], advice["size"], f"{advice['parameters']:,}", f"{advice['tokens']:,.3g}",
            f"{advice['loss']:.3f} ({advice['low']:.3f} to {advice['high']:.3f})", low if low == high else f"{low} to {high}",
            TIME.show(advice["seconds"])]


def advice_record(advice: Advice) -> dict[str, Any]:
    """JSON-ready."""
    return {**vars(advice), "size": advice.size.name, "parameters": advice.size.parameters, "n": advice.size.inner,
            "settings": advice.size.settings}


def _draw_fit(record: dict[str, Any]) -> str:
    """Loss over tokens: runs as dots, the held-out ones as rings, the first fit (which never saw those) as lines."""
    law = Law(*record["first_law"])
    with drawing(6.2, 4.2) as made:
        axes = made.figure.subplots()
        for size, colour in zip(record["sizes"], COLOURS * 4):
            rows = [row for row in record["rows"] if row["size"] == size["name"]]
            tokens = np.geomspace(min(row["tokens"] for row in rows), max(row["tokens"] for row in rows), 60)
            axes.plot(tokens, law.loss(rows[0]["n"], tokens), color=colour, linewidth=1.3)
            for held_out in (False, True):
                part = [row for row in rows if row["held_out"] is held_out]
                axes.plot([row["tokens"] for row in part], [row["loss"] for row in part], "o", color=colour, markersize=6,
                          fillstyle="none" if held_out else "full",
                          label=f"{size['name']}, N = {rows[0]['n']:,}" if not held_out else None)
        axes.plot([], [], "o", color=INK, fillstyle="none", label="held out")
        axes.set_xscale("log")
        axes.set_xlabel("tokens trained on")
        axes.set_ylabel("held-out loss, nats a token")
        axes.legend(frameon=False, fontsize=9)
    return made.svg


def _draw_curves(curves: list[IsoFlop]) -> str:
    from matplotlib.ticker import NullFormatter

    with drawing(6.2, 3.8) as made:
        axes = made.figure.subplots()
        for curve, colour in zip(curves, COLOURS):
            fine = np.linspace(np.log(curve.n[0]), np.log(curve.n[-1]), 80)
            axes.plot(curve.n, curve.losses, "o", color=colour, markersize=6, label=f"{curve.flops:.2g} FLOPs")
            axes.plot(np.exp(fine), np.polyval(curve.coefficients, fine), color=colour, linewidth=1.3)
            if curve.best is not None:
                axes.plot(curve.best, np.polyval(curve.coefficients, np.log(curve.best)), "v", color=colour, markersize=9)
        axes.set_xscale("log")
        axes.set_xticks(curves[0].n, [f"{n:,.0f}" for n in curves[0].n])     # the sizes: powers of ten would run together
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("parameters without tables, N")
        axes.set_ylabel("held-out loss, nats a token")
        axes.legend(frameon=False, fontsize=9)
    return made.svg


def save(record: dict[str, Any], out: Path) -> Path:
    """Write the record durably; returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{record['name']}.json"
    replace_durably(path, (json.dumps(record, indent=1) + "\n").encode())
    return path

