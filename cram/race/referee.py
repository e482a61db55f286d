"""The referee: who runs when, and what is kept.

Before the race everybody's text is laid out, its pace is measured and its choices are tried; none of that counts. Then, seed
by seed, everybody runs once, one at a time, another one first each seed: whatever drifts on the machine meets all alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional

from cram.race.adapters import find
from cram.race.competitor import Competitor, show, show_score
from cram.race.course import Course
from cram.race.race_file import Race
from cram.race.store import Store

PLAN, RUN = "plans", "results"
AGAIN = "the same command with --retry tries it again"


def enter(race: Race, course: Course, folder: Path, checkouts: Mapping[str, Path], pythons: Mapping[str, str],
          say: Callable[[str], None]) -> tuple[list[Competitor], dict[str, str]]:
    """Those who can run here, and why the others cannot: {name: reason}. A peer without a checkout is among the latter."""
    able, refused = [], {}
    for name, entry in race.entries.items():
        adapter, checkout = find(entry.adapter), checkouts.get(name)
        if race.kind not in adapter.KINDS:
            reason: Optional[str] = f"it trains {' and '.join(adapter.KINDS)} models only"
        elif adapter.SOURCE is not None and checkout is None:
            reason = f"no checkout given; git clone {adapter.SOURCE}, then --checkout {name}=PATH"
        else:
            reason = adapter.refuse(race.device, checkout)
        if reason is not None:
            refused[name] = reason
            continue
        more = {"python": pythons[name]} if name in pythons else {}
        able.append(Competitor(race, entry, adapter, course, folder / name, checkout and checkout.resolve(), say=say, **more))
    return able, refused


def order(race: Race, names: list[str]) -> Iterator[tuple[int, str, float]]:
    """(seed, name, share of the budget) of every run, in the order they take place."""
    for seed in range(race.seeds):
        first = seed % len(names)
        for name in [*names[first:], *names[:first]]:
            for share in race.shares(name):
                yield seed, name, share


def hold(race: Race, able: list[Competitor], store: Store, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """All results of a race, found again or run now."""
    plans = {each.entry.name: plan(each, store, say) for each in able}
    by_name = {each.entry.name: each for each in able}
    paces = {name: known["pace"] for name, known in plans.items()}
    results = []
    for seed, name, share in order(race, list(by_name)):
        each, known = by_name[name], plans[name]
        if known["failure"] is not None:
            results.append({"competitor": name, "share": share, "seed": seed, "failure": known["failure"], "score": None})
            continue
        facts = each.facts(seed=seed, seconds=share * race.budget, chosen=known["best"], blimp=race.blimp)
        label = f"{_label(share)}-seed{seed}"
        result = store.look(facts, RUN, name, label)
        if result is None:
            say(f"seed {seed}: {name} runs for {share * race.budget:.0f} s")
            result = each.run(share, seed, paces[name], known["best"], label, look_closer=race.blimp and share == 1.0)
            store.keep(facts, result, RUN, name, label)
            _tell(result, say)
        elif result["failure"] is not None:
            say(f"seed {seed}: {name} failed before: {result['failure'].splitlines()[-1]}; {AGAIN}")
        if share == 1.0 and result["failure"] is None:
            paces[name] = result["pace"]    # what the last whole run found
        results.append(result)
    return results


def plan(each: Competitor, store: Store, say: Callable[[str], None]) -> dict[str, Any]:
    """Pace and settings of a competitor, found again or measured now: {"pace", "best", "calibration", "trials", "failure"}."""
    name, race = each.entry.name, each.race
    facts = each.facts(budget=race.budget, share=each.entry.share, choices=[dict(choice) for choice in each.entry.choices])
    found = store.look(facts, PLAN, name)
    if found is not None:
        if found["failure"] is not None:
            say(f"{name}: failed before: {found['failure'].splitlines()[-1]}; {AGAIN}")
        return found
    say(f"{name}: its text is laid out and its pace measured (exempt)")
    calibration = each.calibrate()
    result: dict[str, Any] = {"best": {}, "trials": [], **calibration}
    if result["failure"] is None and each.entry.choices:
        tuned = each.tune(calibration["pace"])
        result |= tuned
    if result["failure"] is not None:
        say(f"{name}: failed: {result['failure'].splitlines()[-1]}")
    elif result["best"]:
        say(f"{name}: runs with {show(result['best'])}")
    return store.keep(facts, result, PLAN, name)


def _label(share: float) -> str:
    return "whole" if share == 1 else f"share{share:.4f}"


def _tell(result: dict[str, Any], say: Callable[[str], None]) -> None:
    name = result["competitor"]
    if result["failure"] is not None:
        say(f"  {name}: failed: {result['failure'].splitlines()[0]}: {result['failure'].splitlines()[-1]}")
        return
    missed = ", MORE than its budget" * result["over"]
    say(f"  {name}: {show_score(result['score'])} after {result['seconds']:.1f} s{missed}")
