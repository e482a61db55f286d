"""What a run survives: faults planted into real processes of ``cram pretrain``, each run then ended by the same command.

Every trial is compared, bit for bit, with a run that nothing happened to (``fault_runs.Trial.judge``). The faults are in
``fault_kinds.py``. With ``--kills N``, N more processes die at random moments, from their first import to their last
checkpoint, over runs with a budget of steps, time, tokens and FLOPs; the record of a timed run is replayed without a stop,
and must give the same bits.
"""

from __future__ import annotations

import math
import random
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

from cram.audit import read_ledger
from cram.bench.fault_kinds import FAULTS
from cram.bench.fault_runs import Ground, Result
from cram.bench.measure import attempt
from cram.errors import CramError

BUDGETS = ("400 steps", "40s", "200000 tokens", "4.8e10 flops")
KILLS_A_RUN = 25
QUICK = ("kill-training", "sigterm", "two-processes")
VIEW = {"title": "What a run survives", "rounds": "Every fault is tried {repeats} time(s), at random moments.",
        "panel": "{group}", "x": "fault", "line": "line", "kind": "bars", "baseline": "",
        "y": [["lost", "lost work charged, s"]],
        "columns": [["fault", "what", ""], ["times tried", "tried", ","], ["survived", "survived", ","],
                    ["lost work charged, s", "lost", ".2f"], ["bytes lost", "bytes", ","],
                    ["longest from signal to exit, s", "exit", ".2f"]]}
NOTES = ["Real processes of `cram pretrain` on a small corpus, on the CPU; after the fault the same command ends the run.",
         "Survived: the state (weights, moments, generators), progress record, metrics and prepared data are those of an "
         "uninterrupted run, bit for bit; the ledger verifies, stays inside the budget and charges at least what every process "
         "used. Numbers: the run goes on or stops with advice, its ledger and newest checkpoint whole.",
         "Lost work: work since the last checkpoint, and one heartbeat (0.25 s, or more where its rows came late) a killed "
         "process; the sum over a row's trials."]


def choose(names: Optional[Sequence[str]], quick: bool = False) -> list[str]:
    """The faults to try. CramError for one that there is not."""
    chosen = list(names or (QUICK if quick else FAULTS))
    for name in chosen:
        if name not in FAULTS:
            raise CramError(f"no fault '{name}'; possible: {', '.join(FAULTS)}")
    return chosen


def measure(names: Sequence[str], kills: int, repeats: int, folder: Optional[Path],
            say: Callable[[str], None]) -> Iterator[list[dict]]:
    """A row for every fault, then one for each kind of budget under random kills.

    folder: where runs are kept; None: nowhere.
    """
    work = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="cram-faults-"))
    try:
        ground = Ground(work)
        for name in names:
            fault = FAULTS[name]
            tried = [attempt(fault.strike, ground, random.Random(f"{name} {number}")) for number in range(repeats)]
            yield [told(row(fault.group, name, fault.what, tried), say)]
        runs = max(len(BUDGETS), math.ceil(kills / KILLS_A_RUN))
        shares = [kills * (run + 1) // runs - kills * run // runs for run in range(runs)]
        for number, budget in enumerate(BUDGETS if kills else ()):
            tried = []
            for left in shares[number::len(BUDGETS)]:
                while left > 0:  # a run may end before it was killed so often: another takes the rest
                    tried.append(attempt(kill_anywhere, ground, budget, left, random.Random(f"{budget} {left} {len(tried)}")))
                    left -= max(1, tried[-1][0].tried) if tried[-1][0] is not None else left
            yield [told(row("killed at random moments", budget, f"kill -9 at any moment of {budget}", tried), say)]
    finally:
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)


def kill_anywhere(ground: Ground, budget: str, kills: int, rng: random.Random) -> Result:
    """One run whose processes are killed so often, as long as it lasts, at any moment of their life."""
    trial, tried = ground.trial(budget), 0
    while tried < kills:
        process = trial.start()
        if rng.random() < 0.7:  # else it may well die before the first line of ours
            process.wait_until(lambda: "plan: " in process.output())
        process.live(rng.uniform(0, 1.2))
        if not process.running() and process.wait() == 0:
            break
        process.send(signal.SIGKILL)
        tried += 1
    trial.finish()
    straight = ground.replay(trial) if budget.endswith("s") and budget[:-1].isdigit() else ground.straight(budget)
    result = trial.judge(straight)
    ledger = read_ledger(trial.run_dir / "ledger.jsonl")
    result.tried, result.note = tried, f"{ledger.fraction:.1%} of the budget spent"
    return result


def row(group: str, name: str, what: str, tried: Sequence[tuple[Optional[Result], Optional[str]]]) -> dict[str, Any]:
    """All trials of one fault. A run that was killed often counts its kills, all of them lost when the run does not survive."""
    results = [result if result is not None else Result([error or ""]) for result, error in tried]
    problems = [problem for result in results for problem in result.problems]
    exits = [result.exit_seconds for result in results if result.exit_seconds is not None]
    notes = list(dict.fromkeys(problems or [result.note for result in results if result.note]))
    known = not any(error for _, error in tried)
    return {"group": group, "fault": name, "what": what, "line": "lost work", "tried": sum(result.tried for result in results),
            "survived": sum(result.tried for result in results if not result.problems),
            "lost": sum(result.lost_seconds for result in results),
            "bytes": sum(result.bytes_lost for result in results) if known else None,
            "exit": max(exits, default=None), "problems": problems, "remark": "; ".join(notes)[:400]}


def told(row: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    say(f"faults: {row['what']}: {row['survived']} of {row['tried']} survived" + f" ({row['remark']})" * bool(row["remark"]))
    return row


def conclude(rows: Sequence[dict]) -> list[str]:
    """The verdict in one line."""
    tried, survived, lost = (sum(row[name] or 0 for row in rows) for name in ("tried", "survived", "bytes"))
    return [f"Verdict: {survived:,} of {tried:,} faults survived, {lost:,} bytes lost."]
