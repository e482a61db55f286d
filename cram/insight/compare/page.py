"""Runs side by side: tables, curves, and when one reached where another ended."""

from __future__ import annotations

from typing import Optional

from cram.budget import Budget
from cram.config import KEYS, lookup
from cram.drawing import COLOURS, INK, drawing
from cram.explain import show
from cram.insight.compare.expect import Check
from cram.insight.compare.side import Side
from cram.insight.league.page import plain
from cram.insight.run import crossing
from cram.ledger import CATEGORIES

CAUTION = ("One run each is no evidence beyond the noise of the seed: the same configuration with another seed scores "
           "otherwise too. cram ablate runs several seeds of each, pairs them, and says how sure the answer is.")


def facts_table(sides: list[Side]) -> tuple[list[str], list[list[str]]]:
    """A column a run: score, baselines, budget, work, speed."""
    def row(what: str, cell) -> list[str]:
        return [what, *(cell(side) for side in sides)]

    metrics = list(dict.fromkeys(side.score[0] for side in sides))
    rows = [row(metric, lambda side: f"{side.score[1]:.4f}" if side.score[0] == metric and side.score[1] is not None else "")
            for metric in metrics]
    rows += [row("accuracy", lambda side: f"{100 * side.held_out['accuracy']:.1f}%" if "accuracy" in side.held_out else ""),
             row("unigram, nats", lambda side: f"{side.baselines['unigram']['loss']:.3f}" if side.baselines else ""),
             row("budget", lambda side: side.budget),
             row("spent", lambda side: f"{100 * side.spent / side.amount:.1f}%"),
             row("charged, s", lambda side: f"{side.seconds:,.1f}"),
             row("in steps", lambda side: f"{100 * side.account.get('steps', 0.0) / max(side.seconds, 1e-9):.1f}%"),
             row("steps", lambda side: f"{side.steps:,}"), row("tokens", lambda side: f"{side.tokens:,}"),
             row("FLOPs", lambda side: f"{side.flops:.4g}"), row("parameters", lambda side: f"{side.parameters:,}"),
             row("tokens/s", lambda side: f"{side.tokens_per_second:,.0f}"),
             row("energy, Wh", lambda side: "" if side.energy_joules is None else f"{side.energy_joules / 3600:.1f}"),
             row("device", lambda side: side.device), row("finished", lambda side: "yes" if side.finished else "no")]
    return ["", *names(sides)], [each for each in rows if any(each[1:])]


def names(sides: list[Side]) -> list[str]:
    """Names that differ: the second 'demo' is 'demo (2)'."""
    given: list[str] = []
    for side in sides:
        number = 1 + sum(name == side.name or name.startswith(f"{side.name} (") for name in given)
        given.append(side.name if number == 1 else f"{side.name} ({number})")
    return given


def account_table(sides: list[Side]) -> tuple[list[str], list[list[str]]]:
    """Where the charged seconds went, in shares."""
    rows = [[name, *(f"{100 * side.account.get(name, 0.0) / max(side.seconds, 1e-9):.1f}%" for side in sides)]
            for name in CATEGORIES if any(side.account.get(name) for side in sides)]
    return ["charged to", *names(sides)], rows


def config_table(sides: list[Side]) -> tuple[list[str], list[list[str]]]:
    """The keys in which they differ."""
    rows = []
    for key in KEYS:
        values = [show(lookup(side.config, key)) for side in sides]
        if len(set(values)) > 1 and key not in ("name", "out"):
            rows.append([key, *values])
    return ["key", *names(sides)], rows


def reached(sides: list[Side]) -> tuple[list[list[str]], list[str]]:
    """Rows: when each run came down to the first one's last validation loss; and why some cannot be asked."""
    first, rows, remarks = sides[0], [], []
    for name, side in list(zip(names(sides), sides))[1:]:
        why = first.comparable(side) or why_not(first, side)
        if why is not None:
            remarks.append(f"{name} and {first.name}: {why}")
            continue
        end = first.curve[-1]
        seconds = crossing([(point.seconds, point.loss) for point in side.curve], end.loss)
        row = [name, f"{end.loss:.4f}", f"{end.seconds:,.1f}", "never" if seconds is None else f"{seconds:,.1f}",
               "" if seconds is None else f"{end.seconds / seconds:.2f}x"]
        if first.kind == side.kind != "time":
            budget, spent = Budget.parse(side.budget), crossing([(point.spent, point.loss) for point in side.curve], end.loss)
            row[-1] += "" if spent is None else f" ({budget.show(spent)}, {end.spent / spent:.2f}x)"
        rows.append(row)
    return rows, remarks


def why_not(first: Side, side: Side) -> Optional[str]:
    """Why the curves of two runs cannot be compared, though their scores can."""
    if not first.curve or not side.curve:
        return "no validation on the way (train.validate_every)"
    if first.config.train.validation_tokens != side.config.train.validation_tokens:
        return "validations looked at different amounts of text (train.validation_tokens)"
    return None


def compare_blocks(sides: list[Side], checks: list[tuple[str, list[Check]]], command: str) -> list[tuple]:
    """The page. checks: for each run beside an expectation, its name and how it came out."""
    titles = names(sides)
    blocks: list[tuple] = [("title", " · ".join(titles))]
    for name, found in checks:
        failed = [each.what for each in found if each.passed is False]
        blocks += [("verdict", "bad" if failed else "good",
                    f"{name}: not as expected: {', '.join(failed)}." if failed else f"{name}: as expected."),
                   ("table", ["", "expected", "found", ""],
                    [[each.what, each.expected, each.found, {True: "pass", False: "FAIL", None: ""}[each.passed]]
                     for each in found])]
    if not checks:
        blocks.append(("verdict", "unsure", CAUTION))
    rows, remarks = reached(sides)
    same_unit = len({side.kind for side in sides}) == 1
    blocks += [("section", "Side by side"), ("table", *facts_table(sides)),
               ("section", "Loss against budget"),
               ("figure", "curves", draw(sides, same_unit), f"loss against budget of {', '.join(titles)}")]
    if rows:
        blocks += [("text", f"When each came down to {sides[0].name}'s last validation loss, on a line over the logarithm of "
                            "the time between two validations:"),
                   ("table", ["run", f"loss of {sides[0].name}", "there after, s", "reached after, s", "times as fast"], rows)]
    config = config_table(sides)
    blocks += [*(("text", remark) for remark in remarks), ("section", "Configuration"),
               ("table", *config) if config[1] else ("text", "No key differs."),
               ("section", "Where the budget went"), ("table", *account_table(sides)),
               ("section", "Do it again"), ("code", command)]
    return blocks


def compare_lines(sides: list[Side], checks: list[tuple[str, list[Check]]]) -> list[str]:
    """For the terminal."""
    header, rows = facts_table(sides)
    _, differing = config_table(sides)
    table = [header, *rows, *differing]
    wide = [min(max(len(row[column]) for row in table), 44) for column in range(len(header))]
    lines = ["  ".join(f"{cell:<{wide[0]}}" if column == 0 else f"{cell:>{wide[column]}}"
                       for column, cell in enumerate(row)).rstrip() for row in table]
    crossed, remarks = reached(sides)
    lines += [f"{row[0]} reached {sides[0].name}'s last validation loss of {row[1]} (there after {row[2]} s) "
              + (f"after {row[3]} s: {row[4]} as fast" if row[3] != "never" else "never") for row in crossed]
    for name, found in checks:
        lines += [f"{ {True: 'pass', False: 'FAIL', None: '    '}[each.passed]}  {each.what}: {each.found} "
                  f"(expected {each.expected})" for each in found]
        lines.append(f"{name}: {'NOT as expected' if any(each.passed is False for each in found) else 'as expected'}")
    return lines + remarks + ([] if checks else [CAUTION])


def draw(sides: list[Side], same_unit: bool) -> str:
    """Training (thin) and validation (dots) over what was spent: in the budgets' unit where they share one, else seconds."""
    with drawing(6.2, 4) as made:
        axes = made.figure.subplots()
        for colour, name, side in zip(COLOURS * len(sides), names(sides), sides):
            if same_unit and side.train:
                axes.plot(*zip(*_thin(side.train)), color=colour, linewidth=1, alpha=0.45)
            axes.plot([point.spent if same_unit else point.seconds for point in side.curve],
                      [point.loss for point in side.curve], "o-", markersize=4, color=colour, label=plain(name))
        unit = {"time": "s", "flops": "FLOPs"}.get(sides[0].kind, sides[0].kind) if same_unit else "s"
        axes.set(xlabel=f"spent, {unit}", ylabel="nats per predicted token")
        axes.legend(frameon=False, labelcolor=INK)
    return made.svg


def _thin(points: list[tuple[float, float]], most: int = 120) -> list[tuple[float, float]]:
    """Means over equal numbers of points."""
    each = -(-len(points) // most)
    parts = [points[begin:begin + each] for begin in range(0, len(points), each)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
