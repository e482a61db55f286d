"""The page of a day foreseen: ``<study>-day.md`` and ``.html`` beside the study's record."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any, Iterator, Sequence

from cram.drawing import BLUE, INK, ORANGE, drawing
from cram.errors import CramError
from cram.insight.plan.cards import MFU, Card
from cram.insight.plan.expected import read_fit
from cram.insight.plan.plan import EPOCHS
from cram.insight.scale import grid, published
from cram.insight.scale.day import (
    HOURS, Allowance, Miss, Outlook, allowance, misses, outlooks, path_to_the_day, recipe_config)
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

MEANT = {
    "GLUE": "GLUE: the cramming paper's average of nine numbers after a day, against the card's peak times the seconds, as the "
            "paper counts. The first two days below are of one recipe, and no law: between them the column gives the line with "
            "both as its ends, beyond them only on which side. That recipe was tuned for this: it shows what a day has been "
            "worth to somebody, not what this study's recipe would score. The other rows show what its losses went with, for "
            "whoever trains on its text with its tokenizer of 32,768.",
    "CORE": "CORE: mean centred accuracy over 22 tasks (Li et al. 2024, arXiv 2406.11794). The column is a straight line in "
            "log FLOPs through these runs, with Student's interval of one more run, at the ends of the MFU range; beyond "
            "them it says only on which side. Seven equal runs of theirs lay up to 0.016 apart. These recipes were tuned for "
            "this on web text, at rows of 2,048 tokens: they show what the compute has been worth to somebody, not what this "
            "study's recipe would score."}


def write(path: Path, cards: Sequence[Card]) -> tuple[list[Path], list[Outlook]]:
    """Make the page of this study; returns its files and what it says. CramError for a file that is no whole study."""
    record = read_fit(path)
    try:
        found = misses(record["rows"])
        given = allowance(found)
        sizes = grid.family(recipe_config(record))
        days = outlooks(record, sizes, cards, given)
        path_X = list(path_to_the_day(record, sizes, given, max(day.flops for day in days)))
        blocks = make_blocks(record, days, found, given, path_X, path.stem)
    except CramError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CramError(f"{path}: damaged or not a whole study ({type(error).__name__}: {error}); run cram scale again, "
                        "finished runs are found") from error
    files = {path.with_name(f"{path.stem}-day.md"): to_markdown(blocks),
             path.with_name(f"{path.stem}-day.html"): to_html(blocks, _title(record))}
    files |= {path.with_name(f"{block[1]}.svg"): block[2].replace(INK, "#888888") for block in blocks if block[0] == "figure"}
    for file, content in files.items():
        replace_durably(file, content.encode())
    return list(files), days


def line(day: Outlook) -> str:
    """One outlook on a line."""
    return (f"{day.card}, {day.hours:g} h: {day.flops:.2g} FLOPs, {day.size.name} ({day.size.parameters:,} parameters), "
            f"{day.tokens:.3g} tokens, loss {day.loss:.2f} ({day.low:.2f} to {day.high:.2f})")


def make_blocks(record: dict[str, Any], days: Sequence[Outlook], found: Sequence[Miss], given: Allowance,
                path_X: Sequence[tuple[float, float, float, float]], study: str) -> list[tuple]:
    """The page as blocks (``cram.report_page``). study: name of the record's file, without its end."""
    where, masked = record["environment"], record["recipe"]["objective.type"] == "masked"
    score = "GLUE" if masked else "CORE"
    farthest = max(day.distance for day in days)
    again = shlex.join(["cram", "scale", "--day", f"{study}.json", "--gpu", *dict.fromkeys(day.card for day in days)])
    again += f"    # in the folder of {study}.json"
    return [
        ("title", _title(record)),
        ("verdict", "unsure", f"On paper: none of this was run. The law was fitted to {len(record['rows'])} runs of at most "
                              f"{max(row['flops'] for row in record['rows']):.2g} FLOPs; a day reaches up to {farthest:.2g} "
                              "times as many."),
        ("text", f"Study: {record['name']}, on {where['name']}; {where['date'][:10]}. Cards by their data sheets, at the share "
                 f"of the peak (MFU) assumed of training: {MFU[1]:.0%}, {MFU[0]:.0%} to {MFU[2]:.0%}."),
        ("code", again),
        ("figure", f"{study}-day-path", _draw(record, days, path_X),
         "loss over training FLOPs, measured and foreseen, with 95%"),
        ("section", " and ".join(_hours(hours) for hours in HOURS)),
        ("table", ["card", "time", "size", "loss (95%)", "tokens", "epochs", f"{score} by compute"],
         [_row(day, masked) for day in days]),
        *(("text", f"{runs}: {remark}.") for runs, remark in _remarks(days)),
        ("text", "size: layers x width, of the family of the recipe's proportions, the least loss by the law that fits into "
                 f"the card. tokens: at an MFU of {MFU[1]:.0%}, less what setting up and compiling take. loss: nats a "
                 "predicted token of this study's text and tokenizer. Learning rates and batch are the study's. Cards of one "
                 "peak get one figure, whatever their memory."),
        ("text", _epochs(record, days)),
        ("section", "How wide, and why"),
        ("text", "The interval draws three things together: the law's numbers (the bootstrap of its residuals; its part alone "
                 "is in the table below), the MFU, and an allowance for the form of the law. For the last, the law was fitted "
                 "again to the smaller budgets, and foresaw the larger ones:"),
        ("table", ["fitted to", "foreseen", "times the FLOPs", "mean error", "largest error"], list(_missed(found))),
        ("text", f"Errors of log loss grow by {given.rate * math.log(2):.1%} for each doubling of FLOPs (root mean square of "
                 "error over distance). The same rate is assumed of the whole way to the day, with Student's t of "
                 f"{given.degrees} degrees, one for each run foreseen. That is an assumption: no run lies so far out that it "
                 "could show otherwise. It is a cautious one where the form holds, for part of these errors is noise and the "
                 "bootstrap has counted it too; where the truth bends beyond the study, it can still be too narrow. One thing "
                 "more is granted: the loss is not above the best measured with less."),
        ("text", "What narrows it: larger budgets in the study. Ten times the FLOPs of the largest runs take "
                 f"{math.log(10) / math.log(farthest):.0%} off the distance, and show the form's errors over a longer way."
                 if farthest > 10 else "The study reaches near these budgets."),
        ("table", ["card", "time", "FLOPs, by the MFU range", "times the largest run", "parameters", "law alone (95%)"], [
            [day.card, f"{day.hours:g} h", f"{day.flops_low:.2g} to {day.flops_high:.2g}", f"{day.distance:.2g}",
             f"{day.size.parameters:,}", "{:.2f} to {:.2f}".format(*day.by_law)] for day in days]),
        ("section", f"What {score} that would mean"),
        *_score_blocks(masked),
        ("section", "All of it again"),
        ("code", f"{record['command']}\n{again}")]


def _title(record: dict[str, Any]) -> str:
    return f"From minutes to a day: {record['name']}"


def _hours(hours: float) -> str:
    return "One hour" if hours == 1 else "one day" if hours == 24 else f"{hours:g} hours"


def _row(day: Outlook, masked: bool) -> list[str]:
    epochs = "unknown" if day.epochs is None else f"{day.epochs:,.{day.epochs < 10:d}f}"
    return [day.card, f"{day.hours:g} h", day.size.name, f"{day.loss:.2f} ({day.low:.2f} to {day.high:.2f})",
            f"{day.tokens:.2g}", epochs, day.score.told(1 if masked else 2)]


def _remarks(days: Sequence[Outlook]) -> Iterator[tuple[str, str]]:
    """(the runs that it is of, remark), each remark once."""
    for remark in dict.fromkeys(remark for day in days for remark in day.remarks):
        yield ", ".join(f"{day.card} {day.hours:g} h" for day in days if remark in day.remarks), remark


def _epochs(record: dict[str, Any], days: Sequence[Outlook]) -> str:
    most = max(day.tokens for day in days)
    if not record["text_tokens"]:
        return f"How much text there is, the record does not say; the law holds for new text, here up to {most:.2g} tokens."
    return (f"epochs: over the {record['text_tokens']:,} tokens of the study's text. The law is of text that is new, or read "
            f"few times: up to {EPOCHS} epochs are worth nearly as much, forty next to nothing more (Muennighoff et al. 2023, "
            f"section 6). The largest of these runs needs {most / EPOCHS:.2g} tokens of the same kind of text to be what is "
            "written here; with less its loss is higher, and no number is given for that.")


def _missed(found: Sequence[Miss]) -> Iterator[list[str]]:
    for seen, budget in dict.fromkeys((miss.seen, miss.budget) for miss in found):
        part = [miss for miss in found if (miss.seen, miss.budget) == (seen, budget)]
        errors = [abs(math.expm1(miss.error)) for miss in part]
        yield [f"{seen} smallest budgets", budget, f"{math.exp(max(miss.distance for miss in part)):.1f}",
               f"{sum(errors) / len(errors):.1%}", f"{max(errors):.1%}"]


def _score_blocks(masked: bool) -> list[tuple]:
    name, points = ("GLUE", (*published.GLUE, *published.BESIDE)) if masked else ("CORE", published.CORE)
    shared = ("Losses do not carry over: the runs below have other text and another tokenizer, and nats a token compare only "
              "where both are the same. What they share with these cards is compute, so that is the axis.")
    header = ["peak FLOP/s x seconds" if masked else "training FLOPs", name,
              "its loss, nats" if masked else "its bits per byte", "run", "text", "source"]
    rows = [["–" if point.amount is None else f"{point.amount:.3g}", f"{point.score:g}",
             "–" if point.loss is None else f"{point.loss:g}", point.what, point.text, point.source] for point in points]
    return [("text", f"{shared} {MEANT[name]}"), ("table", header, rows)]


def _draw(record: dict[str, Any], days: Sequence[Outlook], path_X: Sequence[tuple[float, float, float, float]]) -> str:
    """Measured runs as dots, the best size by the law as a line with its band, the outlooks as rings."""
    flops, loss, low, high = zip(*path_X)
    with drawing(6.2, 3.9) as made:
        axes = made.figure.subplots()
        axes.fill_between(flops, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95%: law and form")
        axes.plot(flops, loss, color=BLUE, linewidth=1.4, label="best size, by the law")
        rows = record["rows"]
        axes.plot([row["flops"] for row in rows], [row["loss"] for row in rows], ".", color=INK, markersize=6, label="measured")
        axes.plot([day.flops for day in days], [day.loss for day in days], "o", color=ORANGE, fillstyle="none", markersize=7,
                  label="cards, 1 h and 24 h")
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("held-out loss, nats a token")
        axes.legend(frameon=False, fontsize=9)
    return made.svg
