"""Run stages whose results are named by what they were made from.

A stage's key is the hash of its name, its version, the values of the configuration keys it declares, facts about
the outside world it reads, and the content digests of its inputs. The result lives in
``<out>/artifacts/<stage>-<key>/`` and ``stage.json``, written last, proves it complete. Same key, same result: a stage
whose folder is there and whole is skipped. Inputs count by content, so an input made again with identical bytes
stops the cascade. A stage sees only the keys that it declared; reading any other raises ``UndeclaredKey``.

An ordinary stage writes into a temporary folder that is renamed when complete, so a crash leaves what was there
before. A resumable stage (measure, data, pretraining) works in its final folder, keeps what a crash left and continues
from it.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, Sequence

from cram import artifacts
from cram.artifacts import Damage
from cram.config import KEYS, SECTIONS, keys_under, lookup
from cram.explain import show
from cram.schema import Config

Say = Callable[[str], None]
MOST_REASONS = 4            # told; the rest is counted


class UndeclaredKey(LookupError):
    """A stage read a configuration key it had not declared: its result could change without its key changing."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    function(config, inputs, out, key, say): config is a view of the declared keys, inputs maps each input stage to its
    folder, out is the folder to fill, key the twelve hex digits of this result.
    keys: configuration keys or sections that decide the result (hashed). free: readable, but without effect on it.
    facts(config): what the stage reads from outside (package versions, file sizes), JSON-ready, hashed.
    version: raise it when the code changes what comes out.
    resumable: it works in its final folder and goes on from what an interruption left there.
    precious: an earlier result is moved aside, never removed (pretraining: it has cost a budget).
    """

    name: str
    version: int
    keys: tuple[str, ...]
    inputs: tuple[str, ...]
    function: Callable[[Any, Mapping[str, Path], Path, str, Say], None]
    free: tuple[str, ...] = ()
    facts: Optional[Callable[[Any], dict]] = None
    resumable: bool = False
    precious: bool = False


class View:
    """Read-only window on a Config that raises UndeclaredKey outside the allowed keys."""

    def __init__(self, config: Config, allowed: frozenset[str], stage: str, prefix: str = ""):
        object.__setattr__(self, "_view", (config, allowed, stage, prefix))

    def __getattr__(self, name: str) -> Any:
        config, allowed, stage, prefix = object.__getattribute__(self, "_view")
        key = prefix + name
        if key in SECTIONS:
            return View(config, allowed, stage, key + ".")
        if key not in KEYS:
            raise AttributeError(f"the configuration has no key '{key}'")
        if key not in allowed:
            raise UndeclaredKey(f"stage '{stage}' reads '{key}' without declaring it")
        return copy.deepcopy(lookup(config, key))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("the configuration is read-only inside a stage")


def view(stage: Stage, config: Config) -> Any:
    """What the stage may read: a View, or a copy of the whole Config where every key is declared."""
    allowed = frozenset(keys_under(stage.keys + stage.free))
    return copy.deepcopy(config) if allowed == set(KEYS) else View(config, allowed, stage.name)


@dataclass(frozen=True)
class Plan:
    """What is to be done about one stage."""

    stage: Stage
    state: str                  # "fresh", "run", or "interrupted" (a resumable stage that will go on)
    reason: str                 # why it runs; "" when fresh
    folder: Optional[Path]      # None while an input has yet to be made
    digest: Optional[str]       # of a fresh result


class Runner:
    """Plans and runs stages, given in pipeline order, for one configuration."""

    def __init__(self, stages: Sequence[Stage], config: Config, say: Say = print):
        self.stages = {stage.name: stage for stage in stages}
        self.config, self.say = config, say
        self.artifacts = Path(config.out) / "artifacts"
        self.links = Path(config.out) / config.name

    # ---- planning: reads, never writes

    def chain(self, target: Optional[str]) -> list[Stage]:
        """The stages needed for ``target`` (None: all), in order."""
        if target is None:
            return list(self.stages.values())
        needed = {target}
        for stage in reversed(self.stages.values()):
            if stage.name in needed:
                needed.update(stage.inputs)
        return [stage for stage in self.stages.values() if stage.name in needed]

    def plan(self, target: Optional[str] = None, force: Optional[str] = None) -> list[Plan]:
        """What ``run`` would do. force: this stage and all that depend on it run whatever their state."""
        plans: dict[str, Plan] = {}
        for stage in self.chain(target):
            plans[stage.name] = self._plan(stage, plans, self._forced(force))
        return list(plans.values())

    def _forced(self, force: Optional[str]) -> set[str]:
        forced = {force} & set(self.stages)
        for stage in self.stages.values():
            if forced & set(stage.inputs):
                forced.add(stage.name)
        return forced

    def _plan(self, stage: Stage, plans: Mapping[str, Plan], forced: set[str]) -> Plan:
        waiting = [name for name in stage.inputs if plans[name].state != "fresh"]
        if waiting:
            return Plan(stage, "run", f"input will be made: {', '.join(waiting)}", None, None)
        identity = self._identity(stage, {name: plans[name].digest for name in stage.inputs})
        folder = self.artifacts / f"{stage.name}-{_key(identity)}"
        record = artifacts.read_record(folder)
        if stage.name in forced:
            return Plan(stage, "run", "--force", folder, None)
        if record is not None:
            try:
                artifacts.check_sizes(folder, record)
            except Damage as damage:
                return Plan(stage, "run", f"damaged: {damage}", folder, None)
            return Plan(stage, "fresh", "", folder, record["digest"])
        if stage.resumable and (folder / artifacts.STARTED).exists():
            return Plan(stage, "interrupted", "interrupted: continues", folder, None)
        return Plan(stage, "run", self._reason(stage, identity), folder, None)

    def _identity(self, stage: Stage, digests: Mapping[str, Optional[str]]) -> dict:
        """Everything that decides the result, JSON-ready."""
        return {"stage": stage.name, "version": stage.version,
                "config": {key: lookup(self.config, key) for key in keys_under(stage.keys)},
                "facts": stage.facts(view(stage, self.config)) if stage.facts else {}, "inputs": dict(digests)}

    def _reason(self, stage: Stage, identity: dict) -> str:
        """Why the result that this run's link shows does not serve."""
        old = artifacts.read_identity(self.links / stage.name)
        if old is None:
            return "missing"
        reasons = []
        if old["version"] != identity["version"]:
            reasons.append(f"changed: version of the stage {old['version']} -> {identity['version']}")
        for part in ("config", "facts"):
            for key in sorted({*old[part], *identity[part]}):
                before, now = old[part].get(key), identity[part].get(key)
                if before != now:
                    reasons.append(f"changed: {key} {_brief(before)} -> {_brief(now)}")
        reasons += [f"input changed: {name}" for name, digest in identity["inputs"].items()
                    if old["inputs"].get(name) != digest]
        more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS + 1 else []
        return "; ".join((reasons[:MOST_REASONS] if more else reasons) + more) or "missing"

    # ---- running

    def run(self, target: Optional[str] = None, force: Optional[str] = None) -> None:
        """Bring ``target`` (None: everything) up to date. Raises CramError where the output cannot be written."""
        artifacts.prepare_folders(self.artifacts, self.links)
        artifacts.sweep(self.artifacts)
        forced, plans = self._forced(force), {}
        for stage in self.chain(target):
            plan = self._plan(stage, plans, forced)
            if plan.state != "fresh":
                with artifacts.lock(plan.folder):
                    plan = self._plan(stage, plans, forced)  # another process may have made it meanwhile
                    if plan.state != "fresh":
                        plan = self._make(plan, {name: plans[name] for name in stage.inputs})
            else:
                self.say(f"{stage.name}: fresh")
            artifacts.link(plan.folder, self.links / stage.name)
            plans[stage.name] = plan

    def follow(self, shared: str, force: Optional[str] = None) -> None:
        """In a process that is not the first of several (torchrun): wait until the first one has made what the stage
        ``shared`` needs, take part in that stage, and make nothing else. Nothing when its result is there already."""
        forced, plans = self._forced(force), {}
        for stage in self.chain(shared):
            while (plan := self._plan(stage, plans, forced & {shared})).state != "fresh" and stage.name != shared:
                time.sleep(0.2)
            plans[stage.name] = plan
        if plan.state != "fresh":
            inputs = {name: plans[name] for name in stage.inputs}
            key = _key(self._identity(stage, {name: made.digest for name, made in inputs.items()}))
            stage.function(view(stage, self.config), {name: made.folder for name, made in inputs.items()}, plan.folder, key,
                           self.say)

    def _make(self, plan: Plan, inputs: Mapping[str, Plan]) -> Plan:
        stage, folder = plan.stage, plan.folder
        self.say(f"{stage.name}: {plan.reason}")
        identity = self._identity(stage, {name: made.digest for name, made in inputs.items()})
        start = time.monotonic()

        def fill(work: Path) -> dict:
            stage.function(view(stage, self.config), {name: made.folder for name, made in inputs.items()}, work,
                           _key(identity), self.say)
            return artifacts.seal(work, identity, seconds=round(time.monotonic() - start, 3),
                                  finished=datetime.now(timezone.utc).isoformat(timespec="seconds"))

        if stage.resumable:
            if plan.reason == "--force" and folder.exists():
                if stage.precious:
                    self.say(f"{stage.name}: the earlier result is kept in {artifacts.move_aside(folder)}")
                else:
                    artifacts.remove(folder)
            artifacts.begin(folder, identity)
            if stage.precious:
                artifacts.link(folder, self.links / stage.name)  # to be watched while it runs
            try:
                record = fill(folder)
            finally:
                if not stage.precious:
                    artifacts.forget_if_empty(folder)
        else:
            with artifacts.temporary(folder) as work:
                record = fill(work)
                artifacts.swap_in(work, folder)
        self.say(f"{stage.name}: done in {record['seconds']:.1f} s")
        return dataclasses.replace(plan, state="fresh", reason="", digest=record["digest"])


def _key(identity: dict) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


def _brief(value: Any) -> str:
    text = show(value)
    return text if len(text) <= 60 else text[:57] + "..."
