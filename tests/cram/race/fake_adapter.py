"""The adapter of the fake peer (cram.race.adapters.Adapter)."""

import json
import re
import sys
from pathlib import Path

import numpy as np

from cram.race.clock import Command

SOURCE = None
KINDS = ("causal",)
UNITS = ("steps",)
FIRST = 2
HERE = Path(__file__).parent


def refuse(device, checkout):
    return None


def lay_out(course, settings, folder, python, checkout):
    course.training.read(0, course.training.n_tokens).astype(np.uint16).tofile(folder / "train.bin")


def context(settings):
    return int(settings.get("context", 16))


def tokens_per_step(settings):
    return int(settings.get("tokens", 50))


def command(job):
    ask = {"start": float(job.settings.get("start", 0)), "each": float(job.settings.get("each", 0.02)),
           "fail": job.settings.get("fail") == "yes", "tokens": tokens_per_step(job.settings), "amount": job.amount,
           "label": job.label, "vocab_size": job.course.vocab_size, "folder": str(job.folder), "layout": str(job.layout),
           "started": str(job.layout.parents[1] / "started.txt")}
    return Command([sys.executable, str(HERE / "fake_peer.py"), json.dumps(ask)], HERE)


def tokens(job, outcome):
    return int(job.amount) * tokens_per_step(job.settings)


def curve(job, outcome):
    found = ((since, re.match(r"step \d+ loss ([\d.]+)", line)) for since, line in outcome.lines)
    return [(since, float(match[1])) for since, match in found if match]


def scorer(job):
    return Command([sys.executable, str(HERE / "fake_score.py")], HERE), {"checkpoint": str(job.folder / "table.npy")}
