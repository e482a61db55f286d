"""Real runs of the real command line that something happens to, and what is left of them beside an uninterrupted run.

A ``Ground`` holds a small corpus, prepared once, and the uninterrupted runs. A ``Trial`` is one run on a copy of the
prepared corpus: its process is started, harmed by a fault, and started again by the same command until the run ends.
``Trial.judge`` then compares: every byte of the prepared data, of ``progress.f64`` and of the final state (weights, moments,
generators); the rows of metrics; and the ledger, which must verify, stay inside the budget, and charge at least what every
process used, however it died.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import numpy as np
import torch

import cram
from cram import checkpoint
from cram.audit import Summary, read_ledger
from cram.errors import CramError
from cram.telemetry import read_metrics

WORDS = ("model attention layer token budget gradient update step matrix vector sample batch loss rate mask row head key "
         "value query norm scale weight train data text word the a of and to in is it that for on with as by at").split()
SETTINGS = ("demo", "name=run", "data.source=files", "data.filters.min_chars=20", "data.workers=1",
            "data.filters.max_repeated_line_fraction=null", "data.validation_fraction=0.1", "tokenizer.vocab_size=300",
            "model.width=32", "model.heads=2",
            "train.sequence_length=32", "train.batch_tokens=512", "train.validation_tokens=4096", "train.threads=1",
            "train.device=cpu", "telemetry.heartbeat=0.25", "telemetry.log_every=1", "telemetry.energy=false",
            "train.checkpoint_every_steps=5", "objective.mask_rate=0.3", "optimizer.lr=0.01")
STEPS = "80 steps"              # the budget of most trials: a second or two
MOST_STARTS, PATIENCE = 4, 120.0    # processes until a run must have ended; seconds that one may take
COMPARED = ("step", "progress", "loss", "lr", "muon_lr", "grad_norm", "tokens", "batch_tokens", "mask_rate", "accuracy")


@dataclasses.dataclass
class Result:
    """What became of one trial. problems: why it did not survive; lost_seconds: charged as lost work; bytes_lost: that
    differ from the uninterrupted run; exit_seconds: from a signal to the end of the process."""

    problems: list[str]
    lost_seconds: float = 0.0
    bytes_lost: int = 0
    note: str = ""
    exit_seconds: Optional[float] = None
    tried: int = 1


class Process:
    """One process of the command line. ``output()`` is what it said so far."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]):
        self.log, self.began = log, time.time()
        with open(log, "wb") as file:
            self._process = subprocess.Popen([sys.executable, "-m", "cram", *arguments], stdout=file,
                                             stderr=subprocess.STDOUT, env=environment)
        self.pid, self.ended = self._process.pid, math.inf

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def running(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, condition: Callable[[], Any], every: float = 0.01) -> bool:
        """Whether ``condition``, looked at ``every`` so many seconds, came true while the process was running."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if not self.running() or time.monotonic() > end:
                return False
            time.sleep(every)
        return True

    def live(self, seconds: float) -> None:
        """Leave it alone so long, or to its end."""
        end = time.monotonic() + seconds
        self.wait_until(lambda: time.monotonic() > end)

    def send(self, number: int) -> tuple[int, float]:
        """Send a signal and wait for the end: (exit code, seconds it took)."""
        start = time.monotonic()
        self._process.send_signal(number)
        return self.wait(), time.monotonic() - start

    def wait(self) -> int:
        """The exit code. CramError when the process takes longer than it may."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise CramError(f"{self.log}: the process did not end within {PATIENCE:.0f} s") from None
        self.ended = min(self.ended, time.time())
        return code


class Trial:
    """One run in a folder of its own."""

    def __init__(self, out: Path, corpus: Path, budget: str, settings: Sequence[str] = ()):
        self.out, self.corpus, self.budget, self.settings = out, corpus, budget, tuple(settings)
        self.processes: list[Process] = []

    @property
    def run_dir(self) -> Path:
        return self.out / "run" / "pretrain"

    def start(self, verb: str = "pretrain", hook: Optional[Path] = None) -> Process:
        """Start the command. hook: a folder whose ``sitecustomize.py`` the process imports first."""
        root = Path(cram.__file__).resolve().parents[1]
        path = os.pathsep.join(str(each) for each in (hook, root, os.environ.get("PYTHONPATH")) if each)
        arguments = [verb, *SETTINGS, f"data.files=[{self.corpus}]", f"out={self.out}", f"budget={self.budget}", *self.settings]
        log = self.corpus.parent / "logs" / f"{self.out.name}-{len(self.processes)}.log"
        log.parent.mkdir(exist_ok=True)
        self.processes.append(Process(arguments, log, {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}))
        return self.processes[-1]

    def train_a_while(self, rng: random.Random, most: float = 0.7, hook: Optional[Path] = None) -> Process:
        """A process that has taken some steps, up to that share of those of a step budget."""
        process = self.start(hook=hook)
        steps = rng.randint(3, max(4, int(most * int(self.budget.split()[0]))))
        process.wait_until(lambda: len(self.rows("train")) >= steps)
        return process

    def finish(self, verb: str = "pretrain", hook: Optional[Path] = None, starts: int = MOST_STARTS) -> Process:
        """The same command again until it succeeds; returns the last process. CramError when it never does."""
        for _ in range(starts):
            process = self.start(verb, hook)
            if process.wait() == 0:
                return process
        raise CramError(f"{starts} starts did not end the run: {last_line(process)}")

    def rows(self, kind: str) -> list[dict]:
        """Valid rows of the metrics, as far as they are there."""
        path = self.run_dir / "metrics.jsonl"
        return [row for row in read_metrics(path) if row["kind"] == kind] if path.exists() else []

    def writing(self) -> list[Path]:
        """Checkpoints that are being written."""
        return list((self.run_dir / "checkpoints").glob(".step-*.tmp"))

    def state(self) -> dict:
        """The newest good checkpoint. CramError when there is none."""
        state = checkpoint.load_newest(self.run_dir / "checkpoints", None, lambda line: None)
        if state is None:
            raise CramError(f"{self.run_dir}: no good checkpoint is left")
        return state

    def judge(self, straight: Trial, note: str = "", clock: bool = True, unwritten: float = 0.01) -> Result:
        """Compare the ended run with an uninterrupted one. clock: the processes knew the time of day. unwritten: seconds that
        may be missing in the ledger, more than rounding where the disk took no row any more."""
        problems = [*self._accounting(clock, unwritten), *self._rows_that_differ(straight)]
        problems += [f"left behind: {path.name}" for path in self.out.rglob(".*.tmp")]
        lost = {"data": data_bytes_lost(straight.out, self.out), "state": state_bytes_lost(straight.state(), self.state()),
                "progress": differing((straight.run_dir / "progress.f64").read_bytes(),
                                      (self.run_dir / "progress.f64").read_bytes())}
        problems += [f"{count:,} bytes of {name} differ" for name, count in lost.items() if count]
        return Result(problems, read_ledger(self.run_dir / "ledger.jsonl").account["lost"], sum(lost.values()), note)

    def _accounting(self, clock: bool, unwritten: float) -> Iterator[str]:
        ledger = read_ledger(self.run_dir / "ledger.jsonl")
        if ledger.reason != "finished":
            yield f"the ledger ends with '{ledger.reason}'"
        if ledger.fraction > 1:
            yield f"{ledger.fraction:.2%} of the budget spent"
        if clock and ledger.seconds < (used := sum(self._used(ledger))) - unwritten:
            yield f"{ledger.seconds:.2f} s charged, {used:.2f} s used"
        present = sum(min(process.ended, time.time()) - process.began for process in self.processes)
        crashes = sum(row["charged"] for row in ledger.rows if row["kind"] == "crash")     # up to a heartbeat that never came
        if clock and ledger.seconds > present + crashes + 0.01:
            yield f"{ledger.seconds:.2f} s charged, but the processes lived for {present:.2f} s"

    def _used(self, ledger: Summary) -> Iterator[float]:
        """Seconds of each session, from its opening to its closing row or the death of its process. A session of a time
        budget that has run out is charged no more than was left."""
        ended = {process.pid: process.ended for process in self.processes}
        if ledger.kind == "time" and ledger.fraction > 1 - 1e-6:
            return
        opened: Optional[dict] = None
        for row in [*ledger.rows, {"kind": "open"}]:
            if row["kind"] in ("open", "close"):
                if opened is not None:
                    yield (_moment(row) if row["kind"] == "close" else ended[opened["pid"]]) - _moment(opened)
                opened = row if row["kind"] == "open" else None

    def _rows_that_differ(self, straight: Trial) -> Iterator[str]:
        for kind in ("train", "validation"):
            if kind == "validation" and self.budget != straight.budget:
                continue    # under a clock there may be no room for one; it changes nothing in the run
            mine, others = self.rows(kind), straight.rows(kind)
            steps = [row["step"] for row in mine]
            if steps != sorted(set(steps)):
                yield f"{kind} rows stand twice in the metrics"
            if [{name: row.get(name) for name in COMPARED} for row in mine] != \
                    [{name: row.get(name) for name in COMPARED} for row in others]:
                yield f"{kind} rows differ"


class Ground:
    """A corpus, prepared once in ``folder``, and uninterrupted runs on it."""

    def __init__(self, folder: Path, documents: int = 2000):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._straight: dict[tuple, Trial] = {}
        self._count = 0
        self.corpus = self.write("corpus.jsonl", documents, seed=0)
        self.base = Trial(self.folder / "base", self.corpus, STEPS)
        shutil.rmtree(self.base.out, ignore_errors=True)
        start = time.monotonic()
        self.base.finish("data", starts=1)
        self.preparing_seconds = time.monotonic() - start

    def write(self, name: str, documents: int, seed: int) -> Path:
        """A file of documents of random words."""
        rng, path = random.Random(seed), self.folder / name
        texts = (" ".join(rng.choices(WORDS, k=rng.randint(20, 120))) + "." for _ in range(documents))
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    def trial(self, budget: str = STEPS, settings: Sequence[str] = (), place: Optional[Path] = None,
              bare: bool = False) -> Trial:
        """A new run on a copy of the prepared corpus; bare: on none. place: another folder to hold it."""
        self._count += 1
        out = (place or self.folder / "trials") / f"{self._count:04}"
        shutil.rmtree(out, ignore_errors=True)
        if not bare:
            shutil.copytree(self.base.out, out, symlinks=True)
        return Trial(out, self.corpus, budget, settings)

    def straight(self, budget: str = STEPS, settings: Sequence[str] = ()) -> Trial:
        """The uninterrupted run of these settings, made once."""
        key = (budget, *settings)
        if key not in self._straight:
            trial = self.trial(budget, settings)
            trial.finish(starts=1)
            self._straight[key] = trial
        return self._straight[key]

    def replay(self, trial: Trial) -> Trial:
        """What the ended ``trial`` of a time budget must equal: its record of progress, replayed without a stop."""
        steps = len(np.fromfile(trial.run_dir / "progress.f64"))
        return self.straight(f"{steps} steps", (*trial.settings, f"train.replay={trial.run_dir / 'progress.f64'}"))


def last_line(process: Process) -> str:
    return (process.output().strip().splitlines() or ["it said nothing"])[-1][:200]


def differing(expected: bytes, found: bytes) -> int:
    """Bytes that differ, are missing or too many."""
    least = min(len(expected), len(found))
    first, second = (np.frombuffer(each[:least], np.uint8) for each in (expected, found))
    return int((first != second).sum()) + abs(len(expected) - len(found))


def data_bytes_lost(expected: Path, found: Path) -> int:
    """Bytes of the prepared stages in the output folder ``found`` that are not those of ``expected``; extra files count too."""
    contents = [{path.relative_to(out / "artifacts"): path for stage in ("measure", "text", "tokenizer", "data")
                 for path in (out / "artifacts").glob(f"{stage}-*/**/*") if path.is_file() and path.name != "stage.json"}
                for out in (expected, found)]
    return sum(differing(*(each[name].read_bytes() if name in each else b"" for each in contents))
               for name in {*contents[0], *contents[1]})


def state_bytes_lost(expected: Any, found: Any) -> int:
    """Bytes of two nested states that differ. What things have cost (``pace``) may, and how many judgements nobody has looked at
    yet (``unread``): a run that is closed at a checkpoint does not look once more, as its replay does at its end."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return sum(state_bytes_lost(expected.get(name), found.get(name)) for name in {*expected, *found} - {"pace", "unread"})
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)) and len(expected) == len(found):
        return sum(map(state_bytes_lost, expected, found))
    return differing(_bytes(expected), _bytes(found))


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return repr(value).encode()


def _moment(row: dict) -> float:
    return datetime.fromisoformat(row["at"]).timestamp()
