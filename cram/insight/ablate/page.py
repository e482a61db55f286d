"""The page of an ablation, from its record alone: question and expectation beside the answer, and all that it rests on."""

from __future__ import annotations

import statistics
from typing import Any

from cram.bench.paired import show_gain, show_mean
from cram.budget import Budget
from cram.drawing import COLOURS, GREEN, INK, RED, drawing
from cram.insight.ablate.answer import CANNOT_TELL, Answer, answers, ladder_curve, rungs, spent
from cram.insight.ablate.metric import Metric

ASIDE = 0.025        # share of the budget by which each arm stands beside the one before, in the figure of finals
COLOUR = {"better": GREEN, "worse": RED}


def blocks(record: dict[str, Any], stem: str) -> list[tuple]:
    """The page; stem: of the names of its figures."""
    found, metric = answers(record), Metric(**record["metric"])
    page: list[tuple] = [("title", record["question"]), ("text", verdict_line(found, metric, record))]
    if not record["complete"]:
        page.append(("text", "Not complete: some runs are still to come. The same command goes on."))
    page += [("section", "Answer"), ("table", *verdict_table(found, metric, record))]
    if any(each.gains for each in found):
        page.append(("figure", f"{stem}-differences", forest(found, metric),
                     "paired differences from the baseline with their intervals"))
    page += [("text", note) for note in notes(found, metric, record)]
    page += [("section", "Expected"), ("text", record["expect"]), ("text", f"Source of the claim: {record['source']}")]
    page += _curves(record, found, metric, stem)
    page += [("section", "What was run"), ("text", where(record["environment"])), ("table", *arms_table(record))]
    common = " ".join(record["common"])
    page += [("text", f"Every arm: {' + '.join(record['configs'])}{f', with {common}' if common else ''}. Seeds 0 to "
                      f"{record['seeds'] - 1}: of initialisation, order of the text and masking, the same for all arms.")]
    page += [("section", "What it cost"), ("text", cost_line(record)),
             ("details", "every run and its ledger", [("table", *runs_table(record))])]
    again = f"{record['command']}\ncram ablate render {stem}.json    # this page, from the JSON"
    page += [("section", "Again"), ("code", again)]
    return page


def verdict_line(found: list[Answer], metric: Metric, record: dict[str, Any]) -> str:
    """The answer in one sentence or two."""
    base, told = found[0].arm, []
    for verdict, words in (("better", "better than"), ("worse", "worse than"), (CANNOT_TELL, "cannot be told from"),
                           ("failed", "failed beside")):
        if names := [each.arm for each in found[1:] if each.verdict == verdict]:
            told.append(f"{', '.join(names)}: {words} {base}")
    return (f"By {metric.label}, {record['seeds']} seed{'s' * (record['seeds'] > 1)} of {record['budget']} each: "
            + ("; ".join(told) or "nothing yet") + ".")


def verdict_table(found: list[Answer], metric: Metric, record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["arm", "verdict", "mean ± std", "difference (95%)", "compute multiplier (95%)"]
    rows = []
    for each in found:
        sign = -1 if metric.less else 1     # the difference in the metric's own unit
        rows.append([each.arm, each.verdict, show_mean(each.values) if each.values else "–",
                     show_gain([sign * gain for gain in each.gains]) if each.gains else "–",
                     each.times.told() if each.times else ("1" if each.verdict == "baseline" and metric.learns else "–")])
    columns = range(len(header)) if any(each.times for each in found) else range(len(header) - 1)
    return [header[at] for at in columns], [[row[at] for at in columns] for row in rows]


def notes(found: list[Answer], metric: Metric, record: dict[str, Any]) -> list[str]:
    """What the numbers mean."""
    made = [f"{'Less' if metric.less else 'More'} is better. Difference: from the baseline with the same seed; its interval is "
            "Student's, and a verdict is given only where it leaves out 0. Of twenty comparisons of equal things one is told "
            "apart by chance."]
    if record["seeds"] < 3:
        made.append("So few seeds say little about a spread: give --seeds 3 or more.")
    if any(each.times for each in found):
        if record["ladder"]:
            factors = ", ".join(f"{factor:g}" for factor in record["ladder"])
            made.append("Compute multiplier: so many times its budget would the baseline need to reach the arm's result; read "
                        f"from runs of the baseline at {factors} times the budget, seed by seed. Nothing is said beyond these.")
        else:
            made.append("Compute multiplier: no ladder of budgets was run, so it is read from validations within runs: when "
                        "the baseline had the loss that the arm had at its last validation. Points within a run are no "
                        "finals, since the learning rate had yet to fall: a hint.")
    elif metric.learns and record["ladder"] and record["complete"]:
        made.append("No compute multiplier: the baseline does not get better with the budget here, or runs are missing.")
    failed = [f"{row['arm']}, seed {row['seed']}: {row['error']}" for row in record["rows"] if "error" in row]
    return made + ([f"Failed: {'; '.join(failed)}."] if failed else [])


def arms_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [[arm["name"], arm["told"], str(next((f"{row['parameters']:,}" for row in record["rows"]
                                                 if row["arm"] == arm["name"] and row.get("parameters")), "–"))]
            for arm in record["arms"]]
    return ["arm", "settings", "parameters"], rows


def runs_table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for row in record["rows"]:
        spent_here = [f"{row['steps']:,}", f"{row['flops']:.3g}", f"{row['seconds']:.1f}", row["head"][:12]] if "head" in row \
            else ["–"] * 4
        value = f"{row['value']:.4f}" if "value" in row else f"failed: {row['error']}"
        rows.append([row["arm"], str(row["seed"]), row["budget"], *spent_here, value])
    return ["arm", "seed", "budget", "steps", "FLOPs", "seconds", "ledger's head", "value"], rows


def cost_line(record: dict[str, Any]) -> str:
    """The sum of the ledgers."""
    total = spent(record["rows"])
    return (f"{total['runs']:.0f} runs with a ledger each, together {total['seconds']:,.0f} s charged, {total['flops']:.3g} "
            f"FLOPs, {total['tokens']:,.0f} tokens.")


def where(environment: dict[str, Any]) -> str:
    """Device, versions, commit and date in one line."""
    commit = "no commit known"
    if environment.get("commit"):
        commit = f"commit {environment['commit'][:12]}{' with changes' * environment['changed']}"
    versions = f"torch {environment['torch']}, python {environment['python']}"
    return f"{environment['name']}; {versions}; {commit}; {environment['date'][:10]}."


def forest(found: list[Answer], metric: Metric) -> str:
    """Mean paired difference of each arm with its interval, and those of the seeds, as SVG."""
    shown = [each for each in found[1:] if each.gains]
    sign = -1 if metric.less else 1
    with drawing(5.4, 1.2 + 0.42 * len(shown)) as made:
        ax = made.figure.subplots()
        ax.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        for place, each in enumerate(shown):
            differences = [sign * gain for gain in each.gains]
            colour = COLOUR.get(each.verdict, "#8a8a8a")
            ax.plot(differences, [place] * len(differences), "|", color=colour, markersize=9, alpha=0.7)
            ax.errorbar([statistics.mean(differences)], [place], xerr=[each.interval or 0], fmt="o", color=colour, capsize=3)
        ax.set_yticks(range(len(shown)), [each.arm for each in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_xlabel(f"difference from {found[0].arm}, {'left' if metric.less else 'right'} is better")
        ax.locator_params(axis="x", nbins=6)
    return made.svg


def _curves(record: dict[str, Any], found: list[Answer], metric: Metric, stem: str) -> list[tuple]:
    page = []
    if metric.learns and rungs(record):
        page += [("section", "Against the budget"),
                 ("figure", f"{stem}-budgets", budgets(record, found, metric),
                  "finals of all arms against their budget; arms of one budget stand side by side")]
    if any(row.get("curve") for row in record["rows"]):
        page += [("text", "Validations within the runs, mean over seeds. Until a run ends its learning rate has yet to fall: "
                          "only ends compare."),
                 ("figure", f"{stem}-validations", validations(record), "validation loss within the runs")]
    return page


def budgets(record: dict[str, Any], found: list[Answer], metric: Metric) -> str:
    """Finals against budgets: the baseline's ladder with the curve through it, and the other arms."""
    import numpy as np

    curve, _ = ladder_curve(record)
    budget, base = Budget.parse(record["budget"]), rungs(record)
    unit = "seconds" if budget.kind == "time" else {"flops": "FLOPs"}.get(budget.kind, budget.kind)
    factors = {arm["name"]: arm["factor"] for arm in record["arms"]}
    with drawing(5.4, 3.6) as made:
        ax = made.figure.subplots()
        for factor, values in base.items():
            ax.plot([factor * budget.amount] * len(values), [*values.values()], ".", color=INK, alpha=0.4, markersize=5)
        means = [statistics.mean(values.values()) for values in base.values()]
        ax.plot([factor * budget.amount for factor in base], means, "s", color=INK, markersize=5, label=found[0].arm)
        if curve is not None:
            line = np.geomspace(curve.factors_K[0], curve.factors_K[-1], 60)
            ax.plot(line * budget.amount, (1 if metric.less else -1) * curve.at(line).mean(0), color=INK, linewidth=1)
        for number, each in enumerate(found[1:]):
            if each.values:
                half = [each.spread] if each.spread is not None else None
                factor = factors[each.arm]      # arms of one budget would hide each other
                before = sum(factors[other.arm] == factor for other in found[:number + 1] if other.values)
                ax.errorbar([factor * budget.amount * (1 + ASIDE * before)], [each.mean], yerr=half, fmt="o", capsize=3,
                            color=COLOURS[number % len(COLOURS)], label=each.arm)
        _budget_axis(ax, [factor * budget.amount for factor in base], f"budget, {unit}")
        ax.set_ylabel(metric.label, fontsize=9)
        ax.legend(frameon=False, fontsize=9)
    return made.svg


def _budget_axis(ax, places: list[float], label: str) -> None:
    from matplotlib.ticker import NullFormatter

    ax.set_xscale("log")
    ax.set_xticks(sorted(places), [f"{place:.3g}" for place in sorted(places)])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(label)


def validations(record: dict[str, Any]) -> str:
    """Validation loss within the runs of each arm, mean over seeds, against what was spent."""
    budget = Budget.parse(record["budget"])
    with drawing(5.4, 3.4) as made:
        ax = made.figure.subplots()
        for number, arm in enumerate(record["arms"]):
            curves = [row["curve"] for row in record["rows"]
                      if row["arm"] == arm["name"] and row["factor"] == arm["factor"] and row.get("curve")]
            mean = [[statistics.mean(values) for values in zip(*points)] for points in zip(*curves)]
            spent_of = [spent / budget.amount for spent, _ in mean]
            colour = INK if number == 0 else COLOURS[(number - 1) % len(COLOURS)]
            if mean:
                ax.plot(spent_of, [loss for _, loss in mean], color=colour, marker=".", linewidth=1.2, label=arm["name"])
        ax.set_xlabel(f"spent, times {record['budget']}")
        ax.set_ylabel("validation loss, nats", fontsize=9)
        ax.legend(frameon=False, fontsize=9)
    return made.svg
