"""cramming (Geiping & Goldstein 2023): pretrain.py with hydra overrides, its budget in hours of its own clock.

Its preparation of text is skipped: our rows and our tokenizer are written where it looks for a corpus that is ready. The rows
are the stream cut in pieces of 128, shuffled once, which is what its own preparation does; it reads them in that order with
every seed. Its clock starts behind imports and building; the referee's does not, so it is told a little less. The loader runs
in the training process, for worker processes would take the cores that compute.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np

from cram.errors import CramError
from cram.race.adapters import Job, read_number
from cram.race.clock import Command, Outcome, shared_environment
from cram.race.course import Course
from cram.race.scoring import program

SOURCE: Optional[str] = "https://github.com/JonasGeiping/cramming"
KINDS = ("masked",)
UNITS = ("seconds", "steps")
FIRST = 8.0
ROW = 128
GROUPS = ["arch=crammed-bert", "train=bert-o4", "data=sanity-check-2"]      # of that data only the name is used
FOREVER_HOURS = 1000
ORDER_SEED = 233


def refuse(device: str, checkout: Optional[Path]) -> Optional[str]:
    return None if checkout and (checkout / "pretrain.py").is_file() and (checkout / "cramming" / "config").is_dir() else \
        f"{checkout} is no checkout of cramming (pretrain.py and cramming/config)"


def _data(course: Course) -> list[str]:
    return [f"data.vocab_size={course.vocab_size}", f"data.seq_length={ROW}"]


def lay_out(course: Course, settings: Mapping[str, str], folder: Path, python: str, checkout: Optional[Path]) -> None:
    """A corpus that cramming takes for its own. CramError with the last words of the program that writes it."""
    rows = course.training.n_tokens // ROW
    stream = course.training.read(0, rows * ROW).astype(np.int64).reshape(rows, ROW)
    np.save(folder / "rows.npy", stream[np.random.default_rng(ORDER_SEED).permutation(rows)])
    shutil.copyfile(course.tokenizer / "tokenizer.json", folder / "tokenizer.json")
    argv = [*program("cramming_layout", python), str(checkout), str(folder.resolve()), *GROUPS, *_data(course)]
    done = subprocess.run(argv, capture_output=True, text=True, env=shared_environment(1))
    if done.returncode:
        raise CramError("cramming: its corpus could not be written: " + (done.stderr.strip().splitlines() or ["?"])[-1]
                        + "; give an interpreter that has what it needs (hydra-core, datasets, transformers, pynvml): "
                        "--python cramming=PATH")
    (folder / "rows.npy").unlink()


def context(settings: Mapping[str, str]) -> int:
    return ROW


def tokens_per_step(settings: Mapping[str, str]) -> int:
    """Of a micro-batch: what it calls a step."""
    return ROW * int(read_number(settings, "impl.microbatch_size", 128))


def command(job: Job) -> Command:
    budget = ([f"budget={FOREVER_HOURS}", f"train.steps={job.amount:.0f}"] if job.unit == "steps"
              else [f"budget={job.amount / 3600:.8f}"])
    values = {"impl.threads": "0", "impl.compile_torch": str(job.device == "cuda"), "impl.print_loss_every_nth_step": "20",
              **job.settings}
    folder = job.folder.resolve()
    overrides = [*GROUPS, *_data(job.course), *(f"{key}={value}" for key, value in values.items()), *budget, "name=race",
                 f"base_dir={folder / 'outputs'}", f"impl.path={job.layout.resolve()}", f"seed={job.seed}",
                 "impl.enable_huggingface_offline_mode=True", "impl.forbid_dataset_preprocessing=True"]
    return Command([*program("cramming_train", job.python), str(job.checkout), str(job.threads), *overrides], folder,
                   {"HF_HOME": str(folder / "huggingface")})


def tokens(job: Job, outcome: Outcome) -> Optional[int]:
    found = [match for _, line in outcome.lines if (match := re.match(r"race: (\d+) micro-batches", line))]
    return int(found[-1][1]) * tokens_per_step(job.settings) if found else None


def curve(job: Job, outcome: Outcome) -> list[tuple[float, float]]:
    found = ((since, re.search(r"\[Avg: ([\d.]+)\s*]", line)) for since, line in outcome.lines)
    return [(since, float(match[1])) for since, match in found if match]


def scorer(job: Job) -> tuple[Command, dict[str, Any]]:
    saved = sorted((job.folder / "outputs" / "race" / "checkpoints").glob("*"), key=lambda path: path.stat().st_mtime)
    return (Command(program("cramming_score", job.python), job.folder.resolve()),
            {"checkpoint": str(saved[-1].resolve()) if saved else "no checkpoint was saved", "checkout": str(job.checkout)})
