"""``cram race RACE --speed``: tokens a second at the same architecture and batch.

Every competitor that has ``speed`` settings in the race's file trains short runs of two lengths, in turns; what the longer
takes more than the shorter is the time of the steps between, free of start, compilation and saving. Medians over rounds.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from cram.bench.measure import environment
from cram.errors import CramError
from cram.race.competitor import Competitor, show
from cram.race.race_file import Race
from cram.race.store import Store
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

ROUNDS = 3
FEW = 2             # steps of the shorter run
SECONDS = 60.0      # that the steps between should take: a start of ten varies by one
SEEN = 0.1          # share of these that tells steps from the noise of starting
MOST = 2000         # steps of the longer run
LIMIT = 3600.0


def measure_speed(race: Race, able: Sequence[Competitor], refused: Mapping[str, str], store: Store, out: Path, command: str,
                  say: Callable[[str], None]) -> int:
    """Measure, write ``speed.json``, ``.md`` and ``.html``; the exit code. CramError when ours has no speed settings."""
    racing = [each for each in able if each.entry.speed is not None]
    if race.ours not in [each.entry.name for each in racing]:
        raise CramError(f"{race.name}: {race.ours} has no 'speed:' settings in the race's file; give it a peer's architecture")
    steps, seconds = {}, {each.entry.name: [] for each in racing}
    failures: dict[str, str] = dict(refused)
    for each in racing:
        steps[each.entry.name] = _find_length(each, failures, say)
    for turn in range(ROUNDS):
        for each in [*racing[turn % len(racing):], *racing[:turn % len(racing)]]:
            name = each.entry.name
            if name not in failures:
                took = _between(each, steps[name], failures)
                if took is not None:
                    seconds[name].append(took)
                    say(f"round {turn + 1}: {name} {_tokens(each) / took:,.0f} tokens/s")
    rows = [_row(each, seconds[each.entry.name]) for each in racing if seconds[each.entry.name]]
    return _write(race, rows, failures, out, command, say)


def _tokens(each: Competitor) -> int:
    return each.adapter.tokens_per_step({**each.entry.settings, **each.entry.speed})


def _steps(each: Competitor, steps: int, failures: dict[str, str]) -> float | None:
    """Seconds of a process of so many steps; None, and the reason kept, when it failed."""
    job = each.job("speed", steps, seed=0, unit="steps", settings=each.entry.speed)
    outcome = each.start(job, LIMIT)
    if outcome.failure is not None:
        failures[each.entry.name] = outcome.failure
        return None
    return outcome.seconds


def _between(each: Competitor, longer: int, failures: dict[str, str]) -> float | None:
    """Seconds a step by the difference of two runs; None after a failure, or where noise was larger than the difference."""
    short, long = _steps(each, FEW, failures), None
    if short is not None:
        long = _steps(each, longer, failures)
    return (long - short) / (longer - FEW) if long is not None and long > short else None


def _find_length(each: Competitor, failures: dict[str, str], say: Callable[[str], None]) -> int:
    """Steps of the longer run: so many that those between take some SECONDS; found by going up until they are clearly seen."""
    longer = 2 * FEW
    while True:
        took = _between(each, longer, failures)
        if each.entry.name in failures:
            say(f"{each.entry.name}: failed: {failures[each.entry.name].splitlines()[-1]}")
            return longer
        if took is not None and took * (longer - FEW) >= SEEN * SECONDS:
            return FEW + max(2, min(MOST, round(SECONDS / took)))
        if longer >= MOST:
            return MOST
        longer = min(MOST, 4 * longer)


def _row(each: Competitor, seconds: list[float]) -> dict[str, Any]:
    settings = {**each.entry.settings, **each.entry.speed}
    return {"name": each.entry.name, "tokens_per_step": _tokens(each), "context": each.adapter.context(settings),
            "seconds_per_step": seconds, "tokens_per_second": _tokens(each) / statistics.median(seconds),
            "settings": show(settings), "commit": each.commit}


def _write(race: Race, rows: list[dict[str, Any]], failures: Mapping[str, str], out: Path, command: str,
           say: Callable[[str], None]) -> int:
    ours = next((row["tokens_per_second"] for row in rows if row["name"] == race.ours), None)
    header = ["competitor", "rows x tokens", "tokens/s", "slowest", "fastest", f"{race.ours} / it"]
    body = [[row["name"], f"{row['tokens_per_step'] // row['context']} x {row['context']}", f"{row['tokens_per_second']:,.1f}",
             f"{row['tokens_per_step'] / max(row['seconds_per_step']):,.1f}",
             f"{row['tokens_per_step'] / min(row['seconds_per_step']):,.1f}",
             f"{ours / row['tokens_per_second']:.2f}" if ours else "–"] for row in rows]
    machine = environment(race.device) | {"threads": race.threads}
    blocks: list[tuple] = [
        ("title", f"Speed at the same architecture: {race.name}"),
        ("text", f"{machine['name']} ({race.device}, {race.threads} threads), torch {machine['torch']}, {machine['date']}. "
                 f"Medians of {ROUNDS} rounds in turns; whole steps: the difference of two runs, without their start."),
        *([("table", header, body)] if body else []),
        *(("text", f"{row['name']} ({row['commit']}): {row['settings']}.") for row in rows),
        *(("text", f"{name}: {reason.splitlines()[-1]}") for name, reason in failures.items()),
        ("code", command)]
    record = {"race": race.name, "rows": rows, "failures": dict(failures), "environment": machine, "command": command}
    for name, content in {"speed.json": json.dumps(record, indent=1) + "\n", "speed.md": to_markdown(blocks),
                          "speed.html": to_html(blocks, f"Speed: {race.name}")}.items():
        replace_durably(out / name, content.encode())
    for line in [header, *body]:
        say("  ".join(line))
    say(f"page: {out / 'speed.html'}")
    return 0 if len(body) > 1 else 1
