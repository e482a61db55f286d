"""One competitor in one race: brought to the start, timed, run for a budget, scored."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Mapping, Optional

import cram
from cram.config import SHIPPED
from cram.race import blimp, clock, pace, scoring
from cram.race.adapters import Adapter, Job
from cram.race.clock import Outcome
from cram.race.course import Course
from cram.race.pace import Pace, Try
from cram.race.race_file import Entry, Race

LIMIT, MARGIN = 3.0, 180.0      # a process is stopped after so many budgets and so many seconds
CALIBRATION = 0.1               # share of the budget that the longer calibration takes
CURVE_POINTS = 200              # kept of a curve
ROOT = Path(cram.__file__).resolve().parents[1]
BESIDE = ("race", "insight", "bench")   # rooms of cram/ that no training enters


@dataclass(frozen=True)
class Competitor:
    """A race's entry on this machine. folder: where all of its files go; checkout: None for ours."""

    race: Race
    entry: Entry
    adapter: Adapter
    course: Course
    folder: Path
    checkout: Optional[Path]
    python: str = sys.executable
    say: Callable[[str], None] = print

    @cached_property
    def commit(self) -> str:
        """Of the checkout (ours: of this repository), see ``describe_commit``."""
        return describe_commit(self.checkout or ROOT)

    @cached_property
    def code(self) -> str:
        """What tells one version of the program from another: a peer's commit; of ours what decides how a run goes, so that a
        race goes on after a commit that changed none of that."""
        return self.commit if self.checkout is not None else digest_of_ours()

    def facts(self, **more: Any) -> dict[str, Any]:
        """What a result depends on."""
        race, course = self.race, self.course
        return {"adapter": self.entry.adapter, "settings": dict(self.entry.settings), "code": self.code,
                "python": self.python, "torch": importlib.metadata.version("torch"), "kind": race.kind,
                "device": race.device, "threads": race.threads, "data": course.data.name, "tokenizer": course.tokenizer.name,
                "heldout": [course.bytes, course.digest], **more}

    def prepare(self) -> Path:
        """The folder with text and tokenizer as the program reads them."""
        layout = self.folder / f"layout-{self.course.data.name}"
        if not (layout / "done").is_file():
            shutil.rmtree(layout, ignore_errors=True)
            layout.mkdir(parents=True)
            self.adapter.lay_out(self.course, self.entry.settings, layout, self.python, self.checkout)
            (layout / "done").touch()
        return layout

    def job(self, label: str, amount: float, *, seed: int, unit: Optional[str] = None,
            settings: Optional[Mapping[str, str]] = None) -> Job:
        """A run of its own, in an empty folder."""
        folder = self.folder / label
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Job(f"{self.entry.name}-{label}", {**self.entry.settings, **(settings or {})}, self.course, self.prepare(),
                   folder, seed, amount, unit or self.adapter.UNITS[0], self.race.device, self.race.threads, self.checkout,
                   self.python)

    def start(self, job: Job, budget: float) -> Outcome:
        """Run a job against the clock."""
        return clock.run(self.adapter.command(job), threads=job.threads, limit=LIMIT * budget + MARGIN,
                         pin=job.device == "cpu", log=job.folder / "log.txt")

    def calibrate(self) -> dict[str, Any]:
        """Its pace by short runs: {"pace", "tries"}, or {"failure"}. Exempt."""
        def time_of(amount: float) -> Try:
            outcome = self.start(self.job("calibration", amount, seed=0), self.race.budget)
            return Try(amount, outcome.seconds, outcome.failure)

        seconds = CALIBRATION * self.race.budget
        first = self.adapter.FIRST if self.whole else max(self.adapter.FIRST, seconds)
        found, tried = pace.measure(time_of, first, seconds, whole=self.whole, most=self.race.budget)
        return {"pace": found, "tries": tried, "failure": tried[-1].failure if found is None else None}

    @property
    def whole(self) -> bool:
        return self.adapter.UNITS[0] == "steps"

    def tune(self, known: Pace) -> dict[str, Any]:
        """Every choice at a share of the budget, the best by the measure: {"best", "pace", "trials"}, or {"failure"}. Exempt.

        It is chosen by the very measure of the race: a little in favour of who has choices.
        """
        trials = []
        for number, choice in enumerate(self.entry.choices):
            trial = self.run(self.entry.share, 0, known, choice, f"tune-{number}", tries=2)
            kept = ("amount", "unit", "seconds", "score", "pace", "failure")
            trials.append({"choice": dict(choice), **{name: trial[name] for name in kept}})
            self.say(f"{self.entry.name}: tried {show(choice)}: "
                     + (show_score(trial["score"]) if trial["failure"] is None else "failed"))
        good = [trial for trial in trials if trial["failure"] is None]
        if not good:
            return {"trials": trials, "failure": "none of the settings tried brought a result\n" + trials[-1]["failure"]}
        best = min(good, key=lambda trial: trial["score"][scoring.measure_name(self.race.kind)])
        return {"best": best["choice"], "pace": best["pace"], "trials": trials, "failure": None}

    def run(self, share: float, seed: int, known: Pace, settings: Mapping[str, str], label: str,
            tries: int = pace.TRIES, look_closer: bool = False) -> dict[str, Any]:
        """A run for a share of the budget, repeated until it fills that, and its score.

        look_closer: also what is slow to measure (BLiMP). The result is plain values; ``failure`` says why there is none.
        """
        budget, jobs, outcomes = share * self.race.budget, [], []

        def time_of(amount: float) -> Try:
            if jobs:
                self.say(f"  {self.entry.name}: took {outcomes[-1].seconds:.1f} s of {budget:.0f} s with {jobs[-1].amount:g} "
                         f"{jobs[-1].unit}; once more, with {amount:g}")
            jobs.append(self.job(f"{label}-try{len(jobs) + 1}", amount, seed=seed, settings=settings))
            outcomes.append(self.start(jobs[-1], budget))
            return Try(amount, outcomes[-1].seconds, outcomes[-1].failure)

        done, chosen, corrected = pace.fill(budget, Pace(*known), time_of, whole=self.whole, tries=tries)
        job, outcome = jobs[chosen], outcomes[chosen]
        result: dict[str, Any] = {
            "competitor": self.entry.name, "commit": self.commit, "share": share, "seed": seed, "settings": dict(job.settings),
            "command": list(self.adapter.command(job).argv), "amount": job.amount, "unit": job.unit,
            "seconds": outcome.seconds, "tries": [each._asdict() for each in done], "pace": corrected,
            "over": outcome.seconds > pace.OVER * budget, "failure": outcome.failure, "score": None}
        if outcome.failure is None:
            result |= self.judge(job, outcome, look_closer)
        for each in jobs:
            if each is not job:
                shutil.rmtree(each.folder, ignore_errors=True)
        return result

    def judge(self, job: Job, outcome: Outcome, look_closer: bool) -> dict[str, Any]:
        """Score, parameters, tokens and curve of a run that ended well."""
        scorer, details = self.adapter.scorer(job)
        inputs_N, positions_K, labels_K = self.course.targets()
        how = dict(vocab_size=self.course.vocab_size, device=job.device, threads=job.threads)
        request = scoring.windows(inputs_N, positions_K, labels_K, self.adapter.context(job.settings))
        answer = scoring.ask(request, scorer, details, job.folder / "score", **how)
        if answer.failure is not None:
            return {"failure": f"its model could not be scored: {answer.failure}"}
        score = scoring.count(answer, self.course, labels_K)
        if look_closer and (found := blimp.pairs(self.course.mirror)):
            from data_prep.tokenizer import load_tokenizer
            request, sentence_K = blimp.request(found, load_tokenizer(self.course.tokenizer), self.race.kind,
                                                self.course.special)
            pairs = scoring.ask(request, scorer, details, job.folder / "blimp", **how)
            if pairs.failure is not None:
                return {"failure": f"its model could not be scored on BLiMP: {pairs.failure}"}
            score["blimp"] = blimp.accuracy(found, pairs.nats, sentence_K)
        return {"score": score, "parameters": answer.parameters, "tokens": self.adapter.tokens(job, outcome),
                "curve": thin(self.adapter.curve(job, outcome))}


def thin(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most CURVE_POINTS points, each the mean of its neighbours."""
    step = max(1, -(-len(curve) // CURVE_POINTS))
    parts = [curve[low:low + step] for low in range(0, len(curve), step)]
    return [(round(part[-1][0], 2), round(statistics.fmean(loss for _, loss in part), 5)) for part in parts]


def describe_commit(folder: Path) -> str:
    """The commit of a folder; where tracked files differ from it, '+' and a hash of the differences; 'unknown' without git."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        changes = git("diff", "HEAD")
        return git("rev-parse", "HEAD").strip() + (f"+{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else "")
    except (OSError, UnicodeDecodeError, subprocess.CalledProcessError):
        return "unknown"


def digest_of_ours() -> str:
    """A hash of our sources and shipped configurations, without the rooms BESIDE training."""
    found = hashlib.sha256()
    room = Path(cram.__file__).resolve().parent
    files = [path for path in room.rglob("*.py") if path.relative_to(room).parts[0] not in BESIDE]
    for folder in ("kernels", "data_prep"):
        files += (ROOT / folder).rglob("*.py")
    for path in sorted([*files, *SHIPPED.glob("*.yaml")]):
        found.update(path.name.encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def show(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items()) or "as it is"


def show_score(score: Mapping[str, float]) -> str:
    names = {"bits_per_byte": "bits per byte", "loss": "nats a token", "accuracy": "accuracy", "blimp": "BLiMP"}
    return ", ".join(f"{value:.4f} {names[name]}" if name in ("bits_per_byte", "loss") else f"{names[name]} {value:.1%}"
                     for name, value in score.items())
