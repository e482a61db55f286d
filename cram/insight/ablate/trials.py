"""The runs of a question: which there are, and making them, one after the other or side by side.

All go through the stages of ``cram run``: a finished run is found again, an interrupted one goes on, text and shards are
shared. The order is seed after seed with all arms in turn, so that an early end leaves whole comparisons.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

from cram.bench.runs import bring, finish
from cram.config import load
from cram.errors import CramError
from cram.insight.ablate.arms import Arm, times
from cram.insight.ablate.metric import METRICS, Metric
from cram.insight.ablate.question import Question
from cram.insight.run import open_run
from data_prep.errors import DataError
from data_prep.files import replace_durably

FAILURES = (CramError, DataError, RuntimeError, MemoryError, ArithmeticError)   # of a run: a result, like any other
MEMORY_STEPS = 3
FOUND = 1.0         # seconds: what took less was there already


@dataclass(frozen=True)
class Trial:
    """One run. factor: its budget, times the question's; settings: as for ``cram run``; links: the folder where its results
    show."""

    arm: str
    seed: int
    factor: float
    budget: str
    settings: tuple[str, ...]
    links: Path

    @property
    def told(self) -> str:
        return f"{self.arm}{f' x{self.factor:g}' if self.factor != 1 else ''}, seed {self.seed}"


def trials(question: Question, out: Path, extra: Sequence[str] = ()) -> list[Trial]:
    """All runs, seed after seed: the arms, then the rest of the baseline's ladder. extra: settings of all, such as those of
    made text."""
    made, base = [], question.baseline
    same = {arm.factor for arm in question.arms if not arm.settings}    # other budgets of the baseline are on the ladder
    ladder = [(base, factor) for factor in question.ladder if factor not in same]
    for seed in range(question.seeds):
        for arm, factor in [*((arm, arm.factor) for arm in question.arms), *ladder]:
            made.append(_trial(question, arm, factor, seed, out, extra))
    return made


def _trial(question: Question, arm: Arm, factor: float, seed: int, out: Path, extra: Sequence[str]) -> Trial:
    budget = arm.budget if factor == arm.factor else times(question.budget, factor)
    name = run_name(arm.name, seed, factor)
    settings = (*question.configs, *question.common, *extra, *arm.settings, f"seed={seed}", f"budget={budget.text}",
                f"name={question.label}-{name}", f"out={out}")
    return Trial(arm.name, seed, factor, budget.text, settings, out / question.label / "runs" / name)


def run_name(arm: str, seed: int, factor: float) -> str:
    """``adamw-seed0``, ``muon-x0.5-seed0``: the folder of its links, and its name in TensorBoard."""
    return f"{arm}{f'-x{factor:g}' if factor != 1 else ''}-seed{seed}"


def is_there(trial: Trial) -> bool:
    """Whether the run is finished and evaluated, as it would be made now."""
    from cram.pipeline import STAGES
    from cram.stages import Runner

    runner = Runner(STAGES, load(*_split(trial.settings)), lambda line: None)
    return all(plan.state == "fresh" for plan in runner.plan("evaluate"))


def run_all(made: Sequence[Trial], metric: Metric, jobs: int,
            say: Callable[[str], None]) -> Iterator[tuple[Trial, dict[str, Any]]]:
    """Each run with its row of the record, in the order given. jobs: processes side by side."""
    broken = _prepare(made, say)
    whole = [trial for trial in made if trial.links not in broken]
    found = _one_by_one(whole, metric) if jobs == 1 else _side_by_side(whole, metric, jobs)
    before, took = time.monotonic(), []
    for number, trial in enumerate(made, start=1):
        row = _row(trial) | {"error": broken[trial.links]} if trial.links in broken else next(found)
        took.append(time.monotonic() - before)
        before += took[-1]
        trained = [seconds for seconds in took if seconds > FOUND]
        left = f"; {_minutes(sum(trained) / len(trained) * (len(made) - number))} left" if trained else ""
        told = f"failed: {row['error']}" if "error" in row else f"{metric.name} {row['value']:.4f}, {row['steps']:,} steps"
        say(f"{trial.told}: {told}{left}")
        yield trial, row


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _prepare(made: Sequence[Trial], say: Callable[[str], None]) -> dict[Path, str]:
    """Text, tokenizer and shards of all runs, one after the other, since several share them. Links -> why there are none."""
    broken, began = {}, time.monotonic()
    for trial in made:
        try:
            bring(trial.settings, "data", trial.links)
        except FAILURES as error:
            broken[trial.links] = _brief(error)
    if time.monotonic() - began > 5:
        say(f"text, tokenizers and shards: {time.monotonic() - began:.0f} s")
    return broken


def _one_by_one(made: Sequence[Trial], metric: Metric) -> Iterator[dict[str, Any]]:
    for trial in made:
        yield run(trial, metric)


def _side_by_side(made: Sequence[Trial], metric: Metric, jobs: int) -> Iterator[dict[str, Any]]:
    """Rows in order; the same runs, hence the same bits, since each has its own process and threads."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, initializer=_end_with, initargs=(os.getpid(),)) as pool:
        waiting: dict[tuple[str, ...], concurrent.futures.Future] = {}
        try:
            for trial in made:
                waiting[trial.settings] = pool.submit(run, trial, metric)
            for trial in made:
                yield waiting[trial.settings].result()
        except BrokenProcessPool as error:
            raise CramError(f"one of --jobs {jobs} processes was killed, perhaps for want of memory; run the same command with "
                            "fewer, finished runs are found again") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone, however that ended: else it would go on writing what another now resumes."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def run(trial: Trial, metric: Metric) -> dict[str, Any]:
    """Make or find a run; its row of the record, which holds ``error`` instead of a value where it failed."""
    try:
        peak = peak_memory(trial) if metric.name == "peak_memory" else None
        finished = finish(trial.settings, trial.links)
        held_out = finished.scores["held_out"]
        opened, ledger = open_run(trial.links), finished.ledger
        row = {"value": metric.read(finished.scores, finished.seconds, ledger.tokens, peak),
               "held_out": {name: held_out.get(name) for name in ("loss", "accuracy", "bits_per_byte", "masked_loss")},
               "scored_on": _scored_on(metric, held_out), "steps": ledger.steps, "tokens": ledger.tokens, "flops": ledger.flops,
               "seconds": ledger.seconds, "spent": ledger.spent, "training_seconds": finished.seconds, "head": ledger.head,
               "parameters": opened.plan.get("parameters"),
               "curve": [[point.spent, point.loss] for point in opened.curve()]}
    except FAILURES as error:
        return _row(trial) | _charged(trial) | {"error": _brief(error)}
    return _row(trial) | row


def _charged(trial: Trial) -> dict[str, Any]:
    """What a failed run was charged, if it got so far."""
    try:
        opened = open_run(trial.links)
    except CramError:
        return {}
    if opened.config != load(*_split(trial.settings)):
        return {}       # of an earlier run with this name
    return {name: getattr(opened.ledger, name) for name in ("steps", "tokens", "flops", "seconds", "head")}


def _split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """(configurations, overrides)"""
    return [each for each in settings if "=" not in each], [each for each in settings if "=" in each]


def _row(trial: Trial) -> dict[str, Any]:
    return {"arm": trial.arm, "seed": trial.seed, "factor": trial.factor, "budget": trial.budget}


def _brief(error: Exception) -> str:
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 300 else text[:299] + "…"


def _scored_on(metric: Metric, held_out: dict) -> Optional[int]:
    """What the score was made from, which must be equal for all: bytes of text, or predicted tokens."""
    if not metric.learns or metric.name not in METRICS:
        return None
    if metric.name == "masked_loss":
        return None     # a hybrid counts its causal predictions
    return held_out.get("bytes") if metric.name == "bits_per_byte" else held_out["predicted"]


def peak_memory(trial: Trial) -> int:
    """Bytes that torch holds at most in the run's first steps: on a card as it counts them, on the CPU from what
    ``torch.profiler`` records in a run of its own (see ``cram bench techniques``). Kept beside the links, once measured, under
    the name of that run's result: another configuration under the same arm's name is measured anew."""
    import torch

    from cram.bench.techniques import peak_bytes
    from cram.pipeline import STAGES
    from cram.stages import Runner

    short = [*(each for each in trial.settings if not each.startswith(("budget=", "name="))), f"budget={MEMORY_STEPS} steps",
             f"name={trial.links.name}-memory"]
    runner = Runner(STAGES, load(*_split(short)), lambda line: None)
    runner.links = trial.links / "memory"
    runner.run("data")      # what it reads is part of the result's name
    kept = trial.links / f"peak-{runner.plan('pretrain')[-1].folder.name}.json"
    if kept.is_file():
        return json.loads(kept.read_text())["bytes"]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    peak = peak_bytes(lambda: runner.run("pretrain", "pretrain"))
    on_card = [row["memory_bytes"] for row in open_run(runner.links).metrics if row.get("memory_bytes")]
    bytes_held = max(on_card, default=peak)
    replace_durably(kept, json.dumps({"bytes": bytes_held}).encode())
    return bytes_held
