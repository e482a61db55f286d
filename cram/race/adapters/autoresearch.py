"""karpathy/autoresearch's train.py: one card, a clock of its own that leaves out its first eleven steps.

settings: constants of train.py in capitals (DEPTH, TOTAL_BATCH_SIZE, DEVICE_BATCH_SIZE ...), and MAX_SEQ_LEN of prepare.py. Its
text is ours in parquet files, its tokenizer ours behind its own interface; it tokenizes while it trains. Where it would
validate it is stopped and saved. Without the package 'kernels' torch's attention stands in for FlashAttention 3, which its log
says.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, Mapping, Optional

from cram.errors import CramError
from cram.race.adapters import Job, read_number
from cram.race.clock import Command, Outcome, shared_environment
from cram.race.course import Course
from cram.race.scoring import program

SOURCE: Optional[str] = "https://github.com/karpathy/autoresearch"
KINDS = ("causal",)
UNITS = ("seconds",)
FIRST = 20.0
OF_PREPARE = {"MAX_SEQ_LEN": 2048}      # settings that stand in prepare.py
TOTAL_BATCH = 2**19
VALIDATION = "shard_06542.parquet"      # the file that it never trains on


def refuse(device: str, checkout: Optional[Path]) -> Optional[str]:
    if device != "cuda":
        return "it trains on CUDA cards only: its first lines ask for the card's capability and for FlashAttention"
    return None if checkout and (checkout / "train.py").is_file() and (checkout / "prepare.py").is_file() else \
        f"{checkout} is no checkout of autoresearch (train.py and prepare.py)"


def lay_out(course: Course, settings: Mapping[str, str], folder: Path, python: str, checkout: Optional[Path]) -> None:
    """A home folder with its cache: text in parquet, the tokenizer pickled by its own Python. CramError when that fails."""
    import pyarrow
    import pyarrow.parquet

    cache = folder / ".cache" / "autoresearch"
    for name in ("data", "tokenizer"):
        (cache / name).mkdir(parents=True)
    for name, shards in (("shard_00000.parquet", course.training), (VALIDATION, course.held_out)):
        table = pyarrow.table({"text": list(_texts(course, shards))})
        pyarrow.parquet.write_table(table, cache / "data" / name, row_group_size=1024)
    shutil.copyfile(course.tokenizer / "tokenizer.json", folder / "tokenizer.json")
    done = subprocess.run([*program("autoresearch_layout", python), str((folder / "tokenizer.json").resolve()),
                           str((cache / "tokenizer" / "tokenizer.pkl").resolve())], capture_output=True, text=True,
                          env=shared_environment(1))
    if done.returncode:
        raise CramError("autoresearch: its tokenizer could not be written: " + (done.stderr.strip().splitlines() or ["?"])[-1]
                        + "; give an interpreter that has torch and tokenizers: --python autoresearch=PATH")


def _texts(course: Course, shards: Any) -> Iterator[str]:
    from data_prep.tokenizer import load_tokenizer
    tokenizer = load_tokenizer(course.tokenizer)
    for number in range(shards.n_documents):
        yield tokenizer.decode(shards.read_document(number).tolist(), skip_special_tokens=True)


def context(settings: Mapping[str, str]) -> int:
    return int(read_number(settings, "MAX_SEQ_LEN", OF_PREPARE["MAX_SEQ_LEN"]))


def tokens_per_step(settings: Mapping[str, str]) -> int:
    return int(read_number(settings, "TOTAL_BATCH_SIZE", TOTAL_BATCH))


def command(job: Job) -> Command:
    values = {key: json.loads(value) if re.fullmatch(r"[-+.\de]+", value) else value for key, value in job.settings.items()}
    ask = {"checkout": str(job.checkout), "seed": job.seed, "out": str((job.folder / "model.pt").resolve()),
           "prepare": {"TIME_BUDGET": job.amount, **{key: values.pop(key) for key in OF_PREPARE if key in values}},
           "constants": values}
    return Command([*program("autoresearch_train", job.python), json.dumps(ask)], job.folder.resolve(),
                   {"HOME": str(job.layout.resolve())})


def tokens(job: Job, outcome: Outcome) -> Optional[int]:
    found = [match for _, line in outcome.lines if (match := re.match(r"num_steps:\s+(\d+)", line))]
    return int(found[-1][1]) * tokens_per_step(job.settings) if found else None


def curve(job: Job, outcome: Outcome) -> list[tuple[float, float]]:
    found = ((since, re.search(r"step \d+ .*\| loss: ([\d.]+)", line)) for since, line in outcome.lines)
    return [(since, float(match[1])) for since, match in found if match]


def scorer(job: Job) -> tuple[Command, dict[str, Any]]:
    return (Command(program("autoresearch_score", job.python), job.folder.resolve()),
            {"checkpoint": str((job.folder / "model.pt").resolve()), "checkout": str(job.checkout)})
