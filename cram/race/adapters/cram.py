"""Our own trainer: ``cram pretrain`` as a process like everybody else's; its budget is what is left once it has started.

settings: ``config`` (the configuration; default demo), every other key goes on the command line as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional

import cram
from cram.audit import read_ledger
from cram.config import load
from cram.race.adapters import Job
from cram.race.clock import Command, Outcome
from cram.race.course import Course
from cram.race.scoring import program
from cram.telemetry import read_metrics

SOURCE: Optional[str] = None
KINDS = ("causal", "masked")
UNITS = ("seconds", "steps")
FIRST = 15.0
ROOT = Path(cram.__file__).resolve().parents[1]


def refuse(device: str, checkout: Optional[Path]) -> Optional[str]:
    return None


def lay_out(course: Course, settings: Mapping[str, str], folder: Path, python: str, checkout: Optional[Path]) -> None:
    """Nothing: the course is in our own format."""


def overrides(settings: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items() if key != "config"]


def context(settings: Mapping[str, str]) -> int:
    return load(settings.get("config", "demo"), overrides(settings)).train.sequence_length


def tokens_per_step(settings: Mapping[str, str]) -> int:
    return load(settings.get("config", "demo"), overrides(settings)).train.batch_tokens


def command(job: Job) -> Command:
    artifacts = job.folder.resolve() / "artifacts"      # everything of the run lies in its folder, the shared stages by links
    artifacts.mkdir(exist_ok=True)
    for shared in (job.course.out / "artifacts").iterdir():
        if not (artifacts / shared.name).exists():
            (artifacts / shared.name).symlink_to(shared)
    budget = f"{job.amount:.0f} steps" if job.unit == "steps" else f"{job.amount}s"
    argv = [job.python, "-m", "cram", "pretrain", job.settings.get("config", "demo"), str(job.course.settings),
            *overrides(job.settings), f"out={artifacts.parent}", "name=run", f"budget={budget}", f"seed={job.seed}",
            f"train.threads={job.threads}", f"train.device={job.device}"]
    return Command(argv, Path.cwd(), {"PYTHONPATH": str(ROOT)})


def _folder(job: Job) -> Path:
    return job.folder / "run" / "pretrain"


def tokens(job: Job, outcome: Outcome) -> Optional[int]:
    return int(read_ledger(_folder(job) / "ledger.jsonl").tokens)


def curve(job: Job, outcome: Outcome) -> list[tuple[float, float]]:
    started = max(0.0, outcome.seconds - read_ledger(_folder(job) / "ledger.jsonl").seconds)
    return [(row["spent"] + started, row["loss"]) for row in read_metrics(_folder(job) / "metrics.jsonl")
            if row["kind"] == "train"]


def scorer(job: Job) -> tuple[Command, dict[str, Any]]:
    return (Command(program("cram_score", job.python), job.folder, {"PYTHONPATH": str(ROOT)}),
            {"checkpoint": str(_folder(job).resolve()), "tokenizer": str(job.course.tokenizer)})
