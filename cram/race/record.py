"""The record of a race: all that its page says, as plain values without the paths of the machine that made it."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Mapping, Sequence

import yaml

from cram.bench.measure import environment
from cram.errors import CramError
from cram.race.competitor import ROOT, Competitor
from cram.race.course import Course
from cram.race.race_file import Race
from cram.race.referee import PLAN
from cram.race.scoring import measure_name
from cram.race.store import Store

NEEDED = ("race", "kind", "budget", "measure", "ours", "sources", "course", "environment", "commits", "refused", "plans",
          "results", "command")


def make(race: Race, course: Course, able: Sequence[Competitor], refused: Mapping[str, str],
         results: Sequence[dict[str, Any]], store: Store, out: Path, command: str) -> dict[str, Any]:
    """What ``race.json`` holds. ``plans`` names the competitors in their order; every result has the commit of its own run."""
    plans = {each.entry.name: json.loads(store.path(PLAN, each.entry.name).read_text())["result"] for each in able}
    record = {"race": race.name, "kind": race.kind, "budget": race.budget, "measure": measure_name(race.kind),
              "ours": race.ours, "sources": {each.entry.name: each.adapter.SOURCE for each in able if each.adapter.SOURCE},
              "course": course.facts(), "environment": environment(race.device) | {"threads": race.threads},
              "commits": {each.entry.name: each.commit for each in able}, "refused": dict(refused), "plans": plans,
              "results": list(results), "command": command}
    return json.loads(hide(json.dumps(record, default=str), able, course, out))


def read(path: Path) -> dict[str, Any]:
    """A record again. CramError for a file that is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CramError(f"{path}: not the record of a race ({error}); give the race.json that cram race wrote") from error
    missing = [key for key in NEEDED if key not in record] if isinstance(record, dict) else NEEDED
    if missing:
        raise CramError(f"{path}: not the record of a race: without {', '.join(missing)}; give the race.json of cram race")
    return record


def hide(text: str, able: Sequence[Competitor], course: Course, out: Path) -> str:
    """A text without the paths of this machine: checkouts by their names, the rest by what it is."""
    places = [(str(each.checkout), each.entry.name) for each in able if each.checkout is not None]
    places += [(each.python, "python") for each in able] + [(str(out), "OUT")]
    places += [(str(course.mirror), "MIRROR")] if course.mirror and Path(str(course.mirror)).is_absolute() else []
    data = yaml.safe_load(course.settings.read_text())["data"]
    places += [(str(Path(name).parent), "TEXTS") for name in data["files"] if Path(name).is_absolute()]
    places += [(str(Path(sys.prefix)), "ENVIRONMENT"), (sys.base_prefix, "PYTHON"), (str(ROOT), "CRAM"), (str(Path.cwd()), "."),
               (str(Path.home()), "~"), (tempfile.gettempdir(), "TMP")]
    for place, name in sorted(places, key=lambda each: -len(each[0])):
        if place.count("/") > 1 or place in (tempfile.gettempdir(), str(Path.home())) and len(place) > 1:
            text = text.replace(place, name)
    return text
