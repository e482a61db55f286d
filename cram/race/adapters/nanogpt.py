"""nanoGPT's train.py: its own data files, settings on its command line, steps for a clock.

It has no clock, so the referee sets the number of steps, and the length of its schedule with it. It saves only where it
validates: that is after the last step, on a single batch. Unless set otherwise, the warm-up is at most a tenth of the steps
and the last rate a tenth of the peak. Its batches are drawn at random from the whole stream.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np

from cram.errors import CramError
from cram.race.adapters import Job, read_number
from cram.race.clock import Command, Outcome
from cram.race.course import Course
from cram.race.scoring import program

SOURCE: Optional[str] = "https://github.com/karpathy/nanoGPT"
KINDS = ("causal",)
UNITS = ("steps",)
FIRST = 20
DEFAULTS = {"gradient_accumulation_steps": "1", "batch_size": "12", "block_size": "64", "log_interval": "10",
            "learning_rate": "1e-3", "warmup_iters": "100"}
CHUNK = 2**24


def refuse(device: str, checkout: Optional[Path]) -> Optional[str]:
    return None if checkout and (checkout / "train.py").is_file() and (checkout / "configurator.py").is_file() else \
        f"{checkout} is no checkout of nanoGPT (train.py and configurator.py)"


def lay_out(course: Course, settings: Mapping[str, str], folder: Path, python: str, checkout: Optional[Path]) -> None:
    """train.bin, val.bin (uint16 streams) and meta.pkl (the vocabulary's size). CramError for ids of more than 16 bits."""
    if course.vocab_size > 2**16:
        raise CramError(f"nanoGPT reads ids of 16 bits, the vocabulary has {course.vocab_size:,}; set tokenizer.vocab_size")
    for name, shards in (("train", course.training), ("val", course.held_out)):
        with open(folder / f"{name}.bin", "wb") as file:
            for low in range(0, shards.n_tokens, CHUNK):
                file.write(shards.read(low, min(low + CHUNK, shards.n_tokens)).astype(np.uint16).tobytes())
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": course.vocab_size}))


def context(settings: Mapping[str, str]) -> int:
    return int(read_number({**DEFAULTS, **settings}, "block_size", 64))


def tokens_per_step(settings: Mapping[str, str]) -> int:
    values = {**DEFAULTS, **settings}
    return context(settings) * int(read_number(values, "batch_size", 12) * read_number(
        values, "gradient_accumulation_steps", 1))


def command(job: Job) -> Command:
    steps = int(job.amount)
    values = {**DEFAULTS, "compile": str(job.device == "cuda"), **job.settings}
    values.setdefault("min_lr", f"{read_number(values, 'learning_rate', 1e-3) / 10:g}")
    values["warmup_iters"] = str(int(min(read_number(values, "warmup_iters", 100), steps // 10)))
    values |= {"device": job.device, "dataset": str(job.layout.resolve()), "out_dir": str(job.folder.resolve()),
               "max_iters": str(steps), "lr_decay_iters": str(steps), "eval_interval": str(steps), "eval_iters": "1",
               "always_save_checkpoint": "True", "wandb_log": "False"}
    return Command([*program("seeded", job.python), str(job.seed), str((job.checkout / "train.py").resolve()),
                    *(f"--{key}={value}" for key, value in values.items())], job.checkout)


def tokens(job: Job, outcome: Outcome) -> Optional[int]:
    return int(job.amount) * tokens_per_step(job.settings)


def curve(job: Job, outcome: Outcome) -> list[tuple[float, float]]:
    found = ((since, re.match(r"iter \d+: loss ([\d.]+)", line)) for since, line in outcome.lines)
    return [(since, float(match[1])) for since, match in found if match]


def scorer(job: Job) -> tuple[Command, dict[str, Any]]:
    return (Command(program("nanogpt_score", job.python), job.folder),
            {"checkpoint": str((job.folder / "ckpt.pt").resolve()), "checkout": str(job.checkout.resolve())})
