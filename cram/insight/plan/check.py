"""``cram plan --check``: plan, run, compare. For three sizes, under time and under steps: what was foreseen of tokens and of
time, beside what the ledger of the run then said.

Each plan is measured right before its run, since a machine's speed drifts; how busy the machine was stands in the record.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

from cram.audit import read_ledger
from cram.bench import write
from cram.bench.measure import attempt, environment
from cram.bench.runs import PLAIN, bring
from cram.config import load

WITHIN = 0.10
SECONDS, STEPS_SECONDS = 40, 30.0       # of the runs under time, and about so long of those under steps
SIZES = ("1x64", "2x128", "3x192")
VIEW = {"title": "The planner beside real runs", "rounds": "Each run was planned once, right before it began.",
        "panel": "{kind} budget", "x": "size", "line": "what", "kind": "bars", "baseline": "ledger",
        "y": [["tokens", "tokens"], ["seconds", "seconds"]],
        "columns": [["size", "size", ""], ["parameters", "parameters", ","], ["budget", "budget", ""], ["", "what", ""],
                    ["tokens", "tokens", ","], ["seconds", "seconds", ",.2f"], ["off by", "off", "+.1%"],
                    ["share of a core", "share", ".2f"],
                    ["off at the same share", "off_at_share", "+.1%"]]}
NOTES = ["Foreseen: from the costs of steps, checkpoints and validations, measured for {seconds:g} s in the same process before "
         "the run. ledger: what the run was charged.",
         "off by: of tokens under a time budget (the plan's own seconds are then nearly the budget), of seconds under a step "
         "budget.",
         "share of a core: processor time over time, while measuring and during the run. Where neighbours compute, it is less "
         "than the threads and moves; the last column takes the plan to the share that the run had."]


class Case(NamedTuple):
    """A run that is to be foreseen."""

    size: str
    settings: tuple[str, ...]
    kind: str


def check(settings: Sequence[str], seconds: float, out: Path, command: str, say: Callable[[str], None],
          sizes: Sequence[str] = SIZES) -> int:
    """Plan, run, compare and write ``plan_<device>.json`` and its page; 0 when every error is within a tenth, else 1."""
    settings = [*PLAIN, *settings]
    settings.sort(key=lambda text: "=" in text)
    config = load([text for text in settings if "=" not in text] or "demo", [text for text in settings if "=" in text])
    if config.train.threads:
        import torch
        torch.set_num_threads(config.train.threads)
    from cram.device import device_kind
    record = {"schema": write.SCHEMA, "what": "plan", "command": command, "complete": False, "repeats": 1,
              "environment": environment(device_kind(config.train)), "notes": [note.format(seconds=seconds) for note in NOTES],
              "view": VIEW, "rows": []}
    for rows in run_cases(config, settings, sizes, seconds, say):
        record["rows"] += rows
        record["notes"] = [*record["notes"][:len(NOTES)], summary(record["rows"])]
        write.save(record, out)
    path = write.save(record | {"complete": True}, out)
    made = write.render(path)
    say(f"{summary(record['rows'])} {path}, {', '.join(each.name for each in made)}")
    return 0 if all("off" in row and abs(row["off"]) <= WITHIN for row in record["rows"] if row["what"] == "foreseen") else 1


def run_cases(config, settings: Sequence[str], sizes: Sequence[str], seconds: float,
              say: Callable[[str], None]) -> Iterator[list[dict]]:
    """Two rows for each run: foreseen, and what its ledger says."""
    from cram.insight.scale.grid import proportions

    bring([*settings, "name=plan-check"], "data")
    for size in sizes:
        chosen = proportions(config, *map(int, size.split("x")))
        for kind in ("time", "steps"):
            rows, error = attempt(run_case, settings, Case(size, chosen, kind), seconds)
            rows = rows or [{"size": size, "kind": kind, "what": "foreseen", "error": error}]
            say(f"plan: {size}, {kind} budget: " + (error or "foreseen {:,} tokens in {:.1f} s, ledger {:,} tokens in {:.1f} "
                                                             "s: off by "
                "{:+.1%}".format(*(row[key] for row in rows for key in ("tokens", "seconds")), rows[0]["off"])))
            yield rows


def run_case(settings: Sequence[str], case: Case, seconds: float) -> list[dict[str, Any]]:
    """Plan and run one."""
    from cram.insight.plan.measuring import measure
    from cram.insight.plan.plan import make_plan
    from cram.insight.plan.text import find_text
    from cram.insight.plan.walk import outline_of

    mine = [*settings, *case.settings, f"name=plan-check-{case.size}-{case.kind}"]
    split = [text for text in mine if "=" not in text] or ["demo"], [text for text in mine if "=" in text]
    config = load(split[0], [*split[1], f"budget={SECONDS}s"])
    text = find_text(config)
    outline = outline_of(config, text.vocab_size)
    costs, share_before = _with_share(lambda: measure(config, seconds))
    if case.kind == "steps":
        each = statistics.fmean(costs.step(leg.shape, leg.flops / leg.steps)
                                for leg in make_plan(config, outline, costs, text).legs)
        config = load(split[0], [*split[1], f"budget={max(4, round(STEPS_SECONDS / each))} steps"])
    plan = make_plan(config, outline, costs, text)
    links, share = _with_share(lambda: bring([*split[0], *split[1], f"budget={config.budget}"], "pretrain"))
    ledger = read_ledger(links / "pretrain" / "ledger.jsonl")
    timed, facts = case.kind == "time", {"size": case.size, "kind": case.kind, "parameters": plan.parameters,
                                         "budget": config.budget}
    ratio = plan.tokens / ledger.tokens if timed else plan.seconds / ledger.seconds
    moved = share / share_before if timed else share_before / share
    return [facts | {"what": "foreseen", "tokens": plan.tokens, "seconds": plan.seconds, "off": ratio - 1,
                     "share": share_before,
                     "off_at_share": ratio * moved - 1, "account": plan.account},
            facts | {"what": "ledger", "tokens": ledger.tokens, "seconds": ledger.seconds, "share": share,
                     "account": ledger.account,
                     "head": ledger.head}]


def _with_share(function: Callable[[], Any]) -> tuple[Any, float]:
    """(result, processor time of this process over time while it ran)."""
    began, processor = time.perf_counter(), time.process_time()
    result = function()
    return result, (time.process_time() - processor) / (time.perf_counter() - began)


def summary(rows: Sequence[dict]) -> str:
    """How large the errors were."""
    found = [abs(row["off"]) for row in rows if "off" in row]
    if not found:
        return "No run could be compared."
    return (f"Of {len(found)} runs, {sum(error <= WITHIN for error in found)} were foreseen within {WITHIN:.0%}; on the "
            f"average off by {statistics.fmean(found):.1%}, largest {max(found):.1%}.")
