"""``cram race RACE --speed``: tokens a second at the same architecture and batch.

Every ``speed`` setting of every competitor in the race's file trains short runs of two lengths, in turns; what the longer
takes more than the shorter is the time of the steps between, free of start, compilation and saving. Medians over rounds.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from cram.bench.measure import environment
from cram.errors import CramError
from cram.race.competitor import Competitor, show
from cram.race.race_file import Race
from cram.race.store import Store
from cram.report_page import to_html, to_markdown
from data_prep.files import replace_durably

ROUNDS = 3
FEW = 2             # steps of the shorter run
SECONDS = 45.0      # that the steps between should take: a start of ten varies by one
SEEN = 0.1          # share of these that tells steps from the noise of starting
MOST = 2000         # steps of the longer run
LIMIT = 3600.0


@dataclass(frozen=True)
class Timed:
    """A competitor at one of its ``speed`` settings; ``name`` says what it changes about the first of them."""

    name: str
    competitor: Competitor
    settings: Mapping[str, str]

    @property
    def all_settings(self) -> Mapping[str, str]:
        return {**self.competitor.entry.settings, **self.settings}

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.competitor.adapter.tokens_per_step(self.all_settings)

    def seconds(self, steps: int, failures: dict[str, str]) -> Optional[float]:
        """Of a process of so many steps; None, and the reason kept, when it failed."""
        outcome = self.competitor.start(self.competitor.job("speed", steps, seed=0, unit="steps", settings=self.settings), LIMIT)
        if outcome.failure is not None:
            failures[self.name] = outcome.failure
            return None
        return outcome.seconds

    def seconds_a_step(self, longer: int, failures: dict[str, str]) -> Optional[float]:
        """By the difference of two runs; None after a failure, or where noise was larger than the difference."""
        short, long = self.seconds(FEW, failures), None
        if short is not None:
            long = self.seconds(longer, failures)
        return (long - short) / (longer - FEW) if long is not None and long > short else None


def measure_speed(race: Race, able: Sequence[Competitor], refused: Mapping[str, str], store: Store, out: Path, command: str,
                  say: Callable[[str], None]) -> int:
    """Measure, write ``speed.json``, ``.md`` and ``.html``; the exit code. CramError when ours has no speed settings."""
    racing = [timed for each in able for timed in _timed(each)]
    if race.ours not in [each.name for each in racing]:
        raise CramError(f"{race.name}: {race.ours} has no 'speed:' settings in the race's file; give it a peer's architecture")
    paces: dict[str, list[Optional[float]]] = {each.name: [] for each in racing}      # tokens/s, a round each
    failures: dict[str, str] = dict(refused)
    steps = {each.name: _find_length(each, failures, say) for each in racing}
    for turn in range(ROUNDS):
        for each in [*racing[turn % len(racing):], *racing[:turn % len(racing)]]:
            took = each.seconds_a_step(steps[each.name], failures) if each.name not in failures else None
            paces[each.name].append(each.tokens / took if took is not None else None)
            if took is not None:
                say(f"round {turn + 1}: {each.name} {each.tokens / took:,.0f} tokens/s")
    rows = [_row(each, paces[each.name], paces[race.ours]) for each in racing if any(paces[each.name])]
    return _write(race, rows, failures, out, command, say)


def _timed(each: Competitor) -> list[Timed]:
    """Its settings: the first as they are, the others laid over them."""
    if not each.entry.speed:
        return []
    first, *changes = each.entry.speed
    return [Timed(each.entry.name, each, first),
            *(Timed(f"{each.entry.name} with {show(change)}", each, {**first, **change}) for change in changes)]


def _find_length(each: Timed, failures: dict[str, str], say: Callable[[str], None]) -> int:
    """Steps of the longer run: so many that those between take some SECONDS; found by going up until they are clearly seen."""
    longer = 2 * FEW
    while True:
        took = each.seconds_a_step(longer, failures)
        if each.name in failures:
            say(f"{each.name}: failed: {failures[each.name].splitlines()[-1]}")
            return longer
        if took is not None and took * (longer - FEW) >= SEEN * SECONDS:
            return FEW + max(2, min(MOST, round(SECONDS / took)))
        if longer >= MOST:
            return MOST
        longer = min(MOST, 4 * longer)


def _row(each: Timed, paces: list[Optional[float]], ours: list[Optional[float]]) -> dict[str, Any]:
    """Medians over rounds; the ratio by what each round says, for the machine's speed drifts."""
    ratios = [first / second for first, second in zip(ours, paces, strict=True) if first and second]
    return {"name": each.name, "tokens_per_step": each.tokens, "context": each.competitor.adapter.context(each.all_settings),
            "tokens_per_second": statistics.median(filter(None, paces)), "tokens_per_second_by_round": paces,
            "ours_over_it": statistics.median(ratios) if ratios else None, "ours_over_it_by_round": ratios,
            "settings": show(each.all_settings), "commit": each.competitor.commit}


def _write(race: Race, rows: list[dict[str, Any]], failures: Mapping[str, str], out: Path, command: str,
           say: Callable[[str], None]) -> int:
    header = ["competitor", "rows x tokens", "tokens/s", "slowest", "fastest", f"{race.ours} / it", "lowest", "highest"]
    body = []
    for row in rows:
        paces, ratios = [pace for pace in row["tokens_per_second_by_round"] if pace], row["ours_over_it_by_round"]
        body.append([row["name"], f"{row['tokens_per_step'] // row['context']} x {row['context']}",
                     *(f"{pace:,.1f}" for pace in (row["tokens_per_second"], min(paces), max(paces))),
                     *(f"{ratio:.2f}" for ratio in ((row["ours_over_it"], min(ratios), max(ratios)) if ratios else ()))])
        body[-1] += ["–"] * (len(header) - len(body[-1]))
    machine = environment(race.device) | {"threads": race.threads}
    blocks: list[tuple] = [
        ("title", f"Speed at the same architecture: {race.name}"),
        ("text", f"{machine['name']} ({race.device}, {race.threads} threads), torch {machine['torch']}, {machine['date']}. "
                 f"Medians of {ROUNDS} rounds in turns (ratios within each); whole steps: the difference of two runs, "
                 "without their start."),
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
