"""The page of a race, made from its record alone: finals, when ours was as good, curves, and all that somebody needs to run it
again."""

from __future__ import annotations

import json
import shlex
import statistics
from pathlib import Path
from typing import Any, Mapping, Sequence

from cram.bench.paired import show_mean
from cram.drawing import INK
from cram.race.competitor import show
from cram.race.draw import draw_curves, draw_finals
from cram.race.pace import OVER, UNDER
from cram.race.statistics import compare, finals, reached, seconds, shares, show_p
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

MEASURES = {"causal": "bits per byte", "masked": "loss, nats"}
UNSTEADY = 1.1      # paces of one competitor that lie further apart are told
CHOICES = {
    "both": [
        "Same tokenizer and same stream of tokens for all: ours, trained on this text. A peer that was tuned for another "
        "vocabulary loses by it, one that would have brought a larger vocabulary gains, for a small head is fast.",
        "The clock runs from the start of the process to its end: imports, building, compilation, saving. Who starts slowly "
        "loses, the more the shorter the budget.",
        "Everybody multiplies in the precision that its own program takes on the device: on a CPU ours in bf16 where the "
        "processor does that itself (train.precision=native), nanoGPT and cramming in float32. That favours ours.",
        "Peers' pace is the fastest of a few exempt runs and their settings are chosen by the very measure of the race: both "
        "in favour of the peer. Ours is run as its recipe says; on the text that the recipe was searched on its settings, too, "
        "were chosen by documents that are held out here.",
        "A run counts when it took between 97% and 102% of the budget; else it is repeated, shorter or longer, four times at "
        "most. What was missed even so is marked among the seconds: OVER is in a competitor's favour, under is not."],
    "causal": [
        "Scored in rows of the competitor's own context, all tokens once, the first of a row with one token before it: short "
        "contexts pay at scoring what they saved in training.",
        "Bits of [SEP] count for nobody; models that learn to predict [CLS] after it gain nothing by that."],
    "masked": [
        "15% of the tokens are hidden, 80/10/10, the same for all. Who trained at another rate is scored away from home; ours "
        "and crammed-BERT both train at higher rates.",
        "Rows of the competitor's own length; who looks across documents may do so here as well."]}


def write_page(record: Mapping[str, Any], out: Path) -> list[str]:
    """``race.json``, ``.md``, ``.html`` and the drawings in ``out``. Returns lines for the terminal.

    record: see ``cram.race.record``.
    """
    results, measure = record["results"], MEASURES[record["kind"]]
    figures = {"finals": draw_finals(record, measure), "curves": draw_curves(record)}
    header, rows = finals_table(record)
    files = {"race.json": json.dumps(record, indent=1) + "\n"}
    blocks = page_blocks(record, figures, ("table", header, rows))
    files |= {"race.md": to_markdown(blocks), "race.html": to_html(blocks, f"Race: {record['race']}"),
              **{f"{name}.svg": svg.replace(INK, "#888888") for name, svg in figures.items()}}
    for name, content in files.items():
        replace_durably(out / name, content.encode())
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    return [*("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in [header, *rows]),
            *(block[1] for block in reached_blocks(record) if block[0] == "text"), f"page: {out / 'race.html'}"]


def page_blocks(record: Mapping[str, Any], figures: Mapping[str, str], table: tuple) -> list[tuple]:
    """The page from top to bottom."""
    results, course, machine, ours = (record[key] for key in ("results", "course", "environment", "ours"))
    return [
        ("title", f"Race: {record['kind']} models, {record['budget']:g} seconds"),
        ("text", f"{len({result['seed'] for result in results})} seeds, one run at a time, in turns, on {machine['name']} "
                 f"({machine['device']}, {machine['threads']} threads). {course['training_tokens']:,} tokens of training text, "
                 f"a vocabulary of {course['vocab_size']:,}; scored on the same {course['heldout_bytes']:,} bytes of "
                 f"{course['heldout_documents']:,} held-out documents."),
        table,
        ("text", f"Mean ± standard deviation over seeds; less is better. Gain: the peer less {ours}, p by Student's "
                 "paired test over seeds, and by the ranks of all finals (Mann and Whitney), which does not take them for "
                 "normal but cannot fall below 0.1 with three seeds, 0.0022 with six; both two-sided. Seconds: what the "
                 "processes really took. Tokens/s: tokens over these."),
        *unsteady_blocks(record),
        *reached_blocks(record),
        ("figure", "finals", figures["finals"], "finals against the seconds that the whole run took"),
        ("text", "Each point is a whole run with a decayed schedule, scored by the referee."),
        ("details", "Every run: its final, and how fast the machine was", [runs_table(record)]),
        ("figure", "curves", figures["curves"], "training loss against seconds"),
        ("text", "What each program says of its own training loss, first seed, whole budget: its own rows, its own rate of "
                 "hidden tokens, so heights compare only roughly; the finals above compare."),
        *failure_blocks(record),
        ("section", "Before the race, exempt"),
        *plan_blocks(record["plans"]),
        ("section", "Choices, and whom they favour"),
        *(("text", text) for text in [*CHOICES["both"], *CHOICES[record["kind"]]]),
        ("section", "Run it again"),
        *again_blocks(record)]


def again_blocks(record: Mapping[str, Any]) -> list[tuple]:
    """Commands, versions and the text's hash."""
    results, machine, sources = record["results"], record["environment"], record["sources"]
    commits = {name: commits_of(record, name) for name in record["plans"]}
    first = {name: next(iter(found)).partition("+")[0] for name, found in commits.items()}
    blocks: list[tuple] = [
        ("code", "\n".join([*(f"git clone {source} {name} && git -C {name} checkout {first[name]}"
                              for name, source in sources.items()), record["command"]])),
        ("text", "With cram at the referee's commit, the text in its place, one race at a time and nothing beside it. A peer "
                 "whose packages cram's own environment lacks gets one of its own: --python NAME=PATH.")]
    if any("blimp" in (result["score"] or {}) for result in results) and "mirror=" not in record["command"]:
        blocks.append(("text", "BLiMP is scored where data.mirror=FOLDER names a mirror that holds it, as an earlier call of "
                               "this race did."))
    lines = [f"referee {machine['commit']}"]
    for name, found in commits.items():
        lines += [f"{name} {commit}" + f", seeds {', '.join(map(str, sorted(seeds)))}" * (len(found) > 1)
                  for commit, seeds in found.items()]
    return [*blocks,
            ("text", f"torch {machine['torch']}, Python {machine['python']}, {machine['system']}, {machine['date']}. Commits "
                     "(a + marks changed files, with their hash) and the held-out text:"),
            ("code", "\n".join([*lines, f"held-out text sha256 {record['course']['heldout_sha256']}"])),
            ("details", "The command of every run",
             [("code", runnable(shlex.join(result["command"]))) for result in results if result["failure"] is None])]


def runnable(command: str) -> str:
    """Ours by its own name: ``python -m cram`` does not run in a folder that holds a clone named cram."""
    return command.replace("python -m cram ", "cram ", 1)


def commits_of(record: Mapping[str, Any], name: str) -> dict[str, set[int]]:
    """commit -> seeds of the runs made with it; the commit of now where there is no run."""
    found: dict[str, set[int]] = {}
    for result in record["results"]:
        if result["competitor"] == name and "commit" in result:
            found.setdefault(result["commit"], set()).add(result["seed"])
    return found or {record["commits"][name]: set()}


def finals_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and a line for each competitor and share of the budget."""
    results, measure, budget, first = record["results"], record["measure"], record["budget"], record["ours"]
    extra = ["accuracy"] * (record["kind"] == "masked")
    extra += ["BLiMP"] if any("blimp" in (result["score"] or {}) for result in results) else []
    header = ["competitor", "budget", MEASURES[record["kind"]], "gain", "p", "p, ranks", *extra, "parameters", "tokens",
              "tokens/s", "seconds"]
    ours, rows = finals(results, first, 1.0, measure), []
    for name in record["plans"]:
        for share in shares(results, name):
            mine = [result for result in results if result["competitor"] == name and result["share"] == share]
            good = [result for result in mine if result["failure"] is None]
            line = [name, f"{share * budget:.3g} s"]
            if not good:
                rows.append([*line, "failed", *["–"] * (len(header) - 3)])
                continue
            values = finals(results, name, share, measure)
            found = compare(ours, values) if name != first else None
            remark = f" ({len(good)} of {len(mine)} runs)" if len(good) < len(mine) else ""
            line += [show_mean(list(values.values())) + remark, f"{found.gain:+.4f}" if found else "–",
                     *((show_p(found.p), show_p(found.p_ranks)) if found else ("–", "–"))]
            line += [_share_of(good, heading.lower()) for heading in extra]
            told = [result for result in good if result["tokens"]]
            tokens, took = [result["tokens"] for result in told], seconds(results, name, share)
            speed = statistics.fmean(result["tokens"] / result["seconds"] for result in told) if told else 0
            missed = " OVER" * (max(took) > OVER * share * budget) + " under" * (min(took) < UNDER * share * budget)
            rows.append([*line, f"{good[0]['parameters']:,}", f"{statistics.fmean(tokens):,.0f}" if tokens else "–",
                         f"{speed:,.0f}" if tokens else "–", f"{min(took):.1f} to {max(took):.1f}{missed}"])
    return header, rows


def unsteady_blocks(record: Mapping[str, Any]) -> list[tuple]:
    """A word on a machine that was not the same for all seeds: whole runs of one competitor at paces apart by UNSTEADY."""
    blocks = []
    for name in record["plans"]:
        paces = {result["seed"]: result["tokens"] / result["seconds"] for result in record["results"]
                 if result["competitor"] == name and result["share"] == 1.0 and result["failure"] is None and result["tokens"]}
        if paces and max(paces.values()) > UNSTEADY * min(paces.values()):
            slow, fast = min(paces, key=paces.__getitem__), max(paces, key=paces.__getitem__)
            blocks.append(("text", f"The machine was not equally fast for all seeds: {name} made {paces[slow]:,.0f} tokens/s "
                                   f"with seed {slow}, {paces[fast]:,.0f} with seed {fast}."))
    return blocks


def runs_table(record: Mapping[str, Any]) -> tuple:
    """A line for each run that brought a result: a machine that changed its speed between seeds is seen here."""
    body = []
    for result in sorted(record["results"], key=lambda each: (each["competitor"], each["share"], each["seed"])):
        if result["failure"] is None:
            speed = f"{result['tokens'] / result['seconds']:,.0f}" if result["tokens"] else "–"
            body.append([result["competitor"], f"{result['share'] * record['budget']:.3g} s", str(result["seed"]),
                         f"{result['score'][record['measure']]:.4f}", f"{result['seconds']:.1f}", speed])
    return "table", ["competitor", "budget", "seed", MEASURES[record["kind"]], "seconds", "tokens/s"], body


def _share_of(good: Sequence[dict[str, Any]], key: str) -> str:
    found = [result["score"][key] for result in good if key in result["score"]]
    remark = f" ({len(found)} of {len(good)} runs)" if len(found) < len(good) else ""
    return f"{statistics.fmean(found):.1%}{remark}" if found else "–"


def reached_blocks(record: Mapping[str, Any]) -> list[tuple]:
    """When ours was as good as each peer in the end."""
    results, ours, blocks = record["results"], record["ours"], []
    for name in (each for each in record["plans"] if each != ours):
        found = reached(results, ours, name, record["measure"])
        if found is None:
            continue
        target = statistics.fmean(finals(results, name, 1.0, record["measure"]).values())
        if found.share is None:
            text = f"No run of {ours} was as good as {name} in the end ({target:.4f})."
        else:
            test = "no common seed"
            if found.comparison:
                test = (f"gain {found.comparison.gain:+.4f}, p {show_p(found.comparison.p)}, by ranks "
                        f"{show_p(found.comparison.p_ranks)}")
            text = (f"{ours} was as good as {name} in the end ({target:.4f}) in whole runs of {found.seconds:.3g} s, "
                    f"{found.seconds / record['budget']:.0%} of the budget ({test}). ")
            text += ("These are the shortest made: less may have done." if found.share == min(shares(results, ours)) else
                     f"Between whole runs, on a line over the logarithm of time, it was after {found.between:.3g} s.")
        blocks.append(("text", text))
    return [("section", "When ours was as good"), *blocks] if blocks else []


def failure_blocks(record: Mapping[str, Any]) -> list[tuple]:
    """Who did not take part, and the last words of runs that failed: the first of each competitor."""
    blocks: list[tuple] = [("text", f"{name} did not take part: {reason}.") for name, reason in record["refused"].items()]
    told = set()
    for result in record["results"]:
        if result["failure"] is not None and (result["competitor"], result["share"]) not in told:
            told.add((result["competitor"], result["share"]))
            blocks += [("text", f"{result['competitor']}, seed {result['seed']}, {result['share']:.0%} of the budget: failed."),
                       ("code", result["failure"])]
    return [("section", "Without a result"), *blocks] if blocks else []


def plan_blocks(plans: Mapping[str, dict[str, Any]]) -> list[tuple]:
    """Paces and the settings that were tried."""
    rows = [[name, f"{plan['pace'][0]:.1f}", f"{plan['pace'][1]:.4g}"] for name, plan in plans.items() if plan["pace"]]
    blocks: list[tuple] = [("table", ["competitor", "start, s", "each, s"], rows)] if rows else []
    blocks.append(("text", "Start: of the process, until it does what it is told and after. Each: of a step, or of a second of "
                           "a clock of its own."))
    for name, plan in plans.items():
        if plan["trials"]:
            tried = [[show(trial["choice"]), f"{trial['seconds']:.1f}",
                      f"{trial['amount']:,g} {trial['unit']}" if "amount" in trial else "–",     # older records have none
                      _trial(trial), "taken" * (trial["choice"] == plan["best"])] for trial in plan["trials"]]
            took = [trial["seconds"] for trial in plan["trials"]]
            blocks += [("text", f"{name}: settings tried, {min(took):.0f} to {max(took):.0f} s each."),
                       ("table", ["settings", "seconds", "amount", "score", ""], tried)]
    return blocks


def _trial(trial: dict[str, Any]) -> str:
    if trial["failure"] is not None:
        return "failed"
    return f"{trial['score'].get('bits_per_byte', trial['score']['loss']):.4f}"
