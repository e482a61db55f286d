"""``cram plan --check``: plan, run, compare. For three sizes, under time and under steps: what was foreseen of tokens and of
time, beside what the ledger of the run then said.

Each plan is measured right before its run, since a machine's speed drifts; all of it is repeated in turns and judged by the
medians. How busy the machine was stands in the record.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

from cram.audit import read_ledger
from cram.bench import write
from cram.bench.measure import attempt, environment
from cram.bench.runs import PLAIN, bring
from cram.config import load

WITHIN = 0.10
SECONDS, STEPS_SECONDS = 40, 30.0       # of the runs under time, and about so long of those under steps
REPEATS = 3
SIZES = ("1x64", "2x128", "3x192")
VIEW = {"title": "The planner beside real runs",
        "rounds": "Medians of {repeats} rounds; each run was planned right before it began.",
        "panel": "{kind} budget", "x": "size", "line": "what", "kind": "bars", "baseline": "ledger",
        "y": [["tokens", "tokens"], ["seconds", "seconds"]],
        "columns": [["size", "size", ""], ["parameters", "parameters", ","], ["budget", "budget", ""], ["", "what", ""],
                    ["tokens", "tokens", ",.0f"], ["seconds", "seconds", ",.2f"], ["off by", "off", "+.1%"],
                    ["in each round", "told", ""], ["share of a core", "share", ".2f"],
                    ["off at the same share", "off_at_share", "+.1%"]]}
NOTES = ["Foreseen: from the costs of steps, checkpoints and validations, measured for {seconds:g} s in the same process "
         "before the run. ledger: what the run was charged.",
         "off by: of tokens under a time budget (the plan's own seconds are then nearly the budget), of seconds under a step "
         "budget. Of the rounds' own errors the middle one counts; tokens and seconds are medians, too, each by itself.",
         "share of a core: processor time over time, while measuring and during the run. Where neighbours compute, it is less "
         "than the threads and moves; the last column takes the plan to the share that the run had."]


class Case(NamedTuple):
    """A run that is to be foreseen. budget: '40s' or '552 steps', the same in every round."""

    size: str
    settings: tuple[str, ...]
    kind: str
    budget: str


def check(settings: Sequence[str], seconds: float, out: Path, command: str, say: Callable[[str], None],
          sizes: Sequence[str] = SIZES, repeats: int = REPEATS) -> int:
    """Plan, run, compare and write ``plan_<device>.json`` and its page; 0 when every median error is within a tenth, else 1."""
    names = [text for text in settings if "=" not in text] or ["demo"]
    settings = [*names, *PLAIN, *(text for text in settings if "=" in text)]
    config = _load(settings)
    if config.train.threads:
        import torch
        torch.set_num_threads(config.train.threads)
    from cram.device import device_kind
    notes = [note.format(seconds=seconds) for note in NOTES]
    record = {"schema": write.SCHEMA, "what": "plan", "command": command, "complete": False, "repeats": repeats,
              "environment": environment(device_kind(config.train)), "notes": notes,
              "view": VIEW | {"rounds": VIEW["rounds"].format(repeats=repeats)}, "rows": []}
    bring([*settings, "name=plan-check"], "data")
    cases = make_cases(config, settings, sizes)
    rounds: list[list[list[dict]]] = [[] for _ in cases]
    for number in range(repeats):
        for case, mine in zip(cases, rounds):
            mine.append(_attempt_case(settings, case, number, seconds, say))
        rows = [row for mine in rounds for row in medians(mine)]
        record |= {"rows": rows, "notes": [*notes, summary(rows)]}
        write.save(record, out)
    path = write.save(record | {"complete": True}, out)
    made = write.render(path)
    say(f"{summary(rows)} {path}, {', '.join(each.name for each in made)}")
    return 0 if all("off" in row and abs(row["off"]) <= WITHIN for row in rows if row["what"] == "foreseen") else 1


def make_cases(config, settings: Sequence[str], sizes: Sequence[str]) -> list[Case]:
    """Every size under a budget of time, and of about so many steps as the other takes."""
    from cram.insight.plan.measuring import measure
    from cram.insight.scale.grid import proportions

    cases = []
    for size in sizes:
        chosen = proportions(config, *map(int, size.split("x")))
        plan, costs = _plan(settings, Case(size, chosen, "time", f"{SECONDS}s"), 0, lambda config: measure(config, 1.0))
        each = statistics.fmean(costs.step(leg.shape, leg.flops / leg.steps) for leg in plan.legs)
        cases += [Case(size, chosen, "time", f"{SECONDS}s"),
                  Case(size, chosen, "steps", f"{max(4, round(STEPS_SECONDS / each))} steps")]
    return cases


def _attempt_case(settings: Sequence[str], case: Case, number: int, seconds: float, say: Callable[[str], None]) -> list[dict]:
    rows, error = attempt(run_case, settings, case, number, seconds)
    rows = rows or [{"size": case.size, "kind": case.kind, "what": "foreseen", "error": error}]
    say(f"plan: {case.size}, {case.kind} budget: " + (error or "foreseen {:,} tokens in {:.1f} s, ledger {:,} tokens in {:.1f} "
        "s: off by {:+.1%}".format(*(row[key] for row in rows for key in ("tokens", "seconds")), rows[0]["off"])))
    return rows


def run_case(settings: Sequence[str], case: Case, number: int, seconds: float) -> list[dict[str, Any]]:
    """Plan and run one: what was foreseen, and what its ledger says. number: of the round, and the run's seed."""
    from cram.insight.plan.measuring import measure

    before: list[float] = []

    def measured(config):
        costs, share = _with_share(lambda: measure(config, seconds))
        before.append(share)
        return costs

    plan, _ = _plan(settings, case, number, measured)
    links, share = _with_share(lambda: bring(_settings(settings, case, number), "pretrain", force="pretrain"))
    ledger = read_ledger(links / "pretrain" / "ledger.jsonl")
    timed, facts = case.kind == "time", {"size": case.size, "kind": case.kind, "parameters": plan.parameters,
                                         "budget": case.budget}
    ratio = plan.tokens / ledger.tokens if timed else plan.seconds / ledger.seconds
    moved = share / before[0] if timed else before[0] / share
    return [facts | {"what": "foreseen", "tokens": plan.tokens, "seconds": plan.seconds, "off": ratio - 1, "share": before[0],
                     "off_at_share": ratio * moved - 1, "account": plan.account},
            facts | {"what": "ledger", "tokens": ledger.tokens, "seconds": ledger.seconds, "share": share,
                     "account": ledger.account, "head": ledger.head}]


def _settings(settings: Sequence[str], case: Case, number: int) -> list[str]:
    return [*settings, *case.settings, f"name=plan-check-{case.size}-{case.kind}-{number}", f"seed={number}",
            f"budget={case.budget}"]


def _load(settings: Sequence[str]):
    return load([text for text in settings if "=" not in text], [text for text in settings if "=" in text])


def _plan(settings: Sequence[str], case: Case, number: int, measured: Callable) -> tuple:
    """(plan, the costs it was made with)."""
    from cram.insight.plan.plan import make_plan
    from cram.insight.plan.text import find_text
    from cram.insight.plan.walk import outline_of

    config = _load(_settings(settings, case, number))
    text, costs = find_text(config), measured(config)
    return make_plan(config, outline_of(config, text.vocab_size), costs, text), costs


def medians(rounds: Sequence[Sequence[dict]]) -> list[dict]:
    """The rows of a case over its rounds, number by number; a round that failed speaks for all."""
    if failed := [rows for rows in rounds if "error" in rows[0]]:
        return list(failed[0])
    found = []
    for rows in zip(*rounds):
        middle = {key: statistics.median(row[key] for row in rows)
                  for key in ("tokens", "seconds", "off", "share", "off_at_share") if key in rows[0]}
        found.append(rows[0] | middle | {"each": [{key: row[key] for key in (*middle, "account", "head") if key in row}
                                                  for row in rows]})
        if "off" in rows[0]:
            found[-1]["told"] = " ".join(f"{row['off']:+.1%}" for row in rows)
    return found


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
