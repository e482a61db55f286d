"""modded-nanogpt's simple trainer (records/track_3_optimization/train_gpt_simple.py) on one card.

It counts steps and has its size, batch and schedule as numbers in its source; the race's settings replace them in memory.
settings: num_layers, model_dim (a multiple of 128), batch_size (tokens), mbs (rows of 1,024 a micro-batch). It validates at
the start and the end only, on one micro-batch. It reads its text once, so the text lies there several times over.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np

from cram.errors import CramError
from cram.race.adapters import Job, read_number
from cram.race.clock import Command, Outcome
from cram.race.course import Course
from cram.race.scoring import program

SOURCE: Optional[str] = "https://github.com/KellerJordan/modded-nanogpt"
KINDS = ("causal",)
UNITS = ("steps",)
FIRST = 10
ROW = 1024
SCRIPT = Path("records/track_3_optimization/train_gpt_simple.py")
MAGIC, VERSION, HEADER = 20240520, 1, 256       # its files begin with 256 int32
EPOCHS = 64
DEFAULTS = {"num_layers": "12", "model_dim": "768", "batch_size": "524288", "mbs": "64"}


def refuse(device: str, checkout: Optional[Path]) -> Optional[str]:
    if device != "cuda":
        return "it trains on CUDA cards only: device and NCCL are written into its source"
    return None if checkout and (checkout / SCRIPT).is_file() else f"{checkout} is no checkout of modded-nanogpt ({SCRIPT})"


def lay_out(course: Course, settings: Mapping[str, str], folder: Path, python: str, checkout: Optional[Path]) -> None:
    """Its shards: a header and a stream of uint16; the training shard under many names. CramError when the text is shorter
    than a batch, or ids take more than 16 bits."""
    batch = int(read_number({**DEFAULTS, **settings}, "batch_size", 0))
    if course.vocab_size > 2**16 or course.training.n_tokens <= batch + 1:
        raise CramError(f"modded-nanogpt needs ids of 16 bits and more text than a batch of {batch:,} tokens; the text has "
                        f"{course.training.n_tokens:,} of a vocabulary of {course.vocab_size:,}: bring more text")
    data = folder / "data" / "fineweb10B"
    data.mkdir(parents=True)
    _write(data / "shared.bin", course.training.read(0, course.training.n_tokens))
    for epoch in range(EPOCHS):
        (data / f"fineweb_train_{epoch:06}.bin").symlink_to("shared.bin")
    validation = course.held_out.read(0, course.held_out.n_tokens)
    _write(data / "fineweb_val_000000.bin", np.resize(validation, batch + 2))


def _write(path: Path, tokens: np.ndarray) -> None:
    header = np.zeros(HEADER, np.int32)
    header[:3] = MAGIC, VERSION, len(tokens)
    with open(path, "wb") as file:
        file.write(header.tobytes() + tokens.astype(np.uint16).tobytes())


def context(settings: Mapping[str, str]) -> int:
    return ROW


def tokens_per_step(settings: Mapping[str, str]) -> int:
    return int(read_number({**DEFAULTS, **settings}, "batch_size", 0))


def shape(job: Job) -> dict[str, int]:
    values = {**DEFAULTS, **job.settings}
    sizes = {key: int(read_number(values, key, 0)) for key in ("num_layers", "model_dim")}
    return {"vocab_size": job.course.vocab_size, **sizes}


def command(job: Job) -> Command:
    rows, steps = int(read_number({**DEFAULTS, **job.settings}, "mbs", 0)), int(job.amount)
    folder = job.folder.resolve()
    if not (folder / "data").exists():
        (folder / "data").symlink_to(job.layout.resolve() / "data")
    ask = {"script": str(job.checkout / SCRIPT), "seed": job.seed, "out": str(folder / "model.pt"),
           "calls": {"GPT": shape(job)},
           "constants": {"train_steps": steps, "batch_size": tokens_per_step(job.settings), "mbs": rows,
                         "val_tokens": rows * ROW, "val_step_freq": max(steps, 1)}}
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29573"}
    return Command([*program("modded_train", job.python), json.dumps(ask)], folder, alone)


def tokens(job: Job, outcome: Outcome) -> Optional[int]:
    return int(job.amount) * tokens_per_step(job.settings)


def curve(job: Job, outcome: Outcome) -> list[tuple[float, float]]:
    found = ((since, re.match(r"step:\d+/\d+ val_loss:([\d.]+)", line)) for since, line in outcome.lines)
    return [(since, float(match[1])) for since, match in found if match]


def scorer(job: Job) -> tuple[Command, dict[str, Any]]:
    return (Command(program("modded_score", job.python), job.folder.resolve()),
            {"checkpoint": str((job.folder / "model.pt").resolve()), "script": str(job.checkout / SCRIPT), "shape": shape(job)})
