"""The faults: each harms a run once, lets the same command end it, and judges what came of it. FAULTS names them all.

A fault takes the ``Ground``, a random generator for the moment it strikes, and returns a ``Result``. Problems are what
should not have been; raising (CramError, or whatever reading a broken run raises) is a failed trial as well.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

from cram import checkpoint
from cram.bench.fault_disk import SmallDisk
from cram.bench.fault_inside import clock_jumps, explode, not_a_number, out_of_memory
from cram.bench.fault_runs import Ground, Result, Trial, data_bytes_lost, last_line

MOST_TRIES = 3          # kills until one falls into the phase that is meant


class Fault(NamedTuple):
    """group: under which it stands in the table; strike: what happens."""

    group: str
    what: str
    strike: Callable[[Ground, random.Random], Result]


def kill_training(ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    process = trial.train_a_while(rng)
    time.sleep(rng.uniform(0, 0.03))
    process.send(signal.SIGKILL)
    trial.finish()
    return trial.judge(ground.straight())


def kill_saving(ground: Ground, rng: random.Random) -> Result:
    trial, caught = ground.trial(), False
    for number in range(MOST_TRIES):
        process = trial.train_a_while(rng, most=0.2 * (1 + number))
        process.wait_until(trial.writing, every=0.0005)
        time.sleep(rng.uniform(0, 0.008))
        process.send(signal.SIGKILL)
        if caught := bool(trial.writing()):
            break
    trial.finish()
    return trial.judge(ground.straight(), note="" if caught else "no kill fell into a save")


def kill_validating(ground: Ground, rng: random.Random) -> Result:
    straight, trial, caught = ground.straight(), ground.trial(), False
    for moment in sorted(rng.sample([row["step"] for row in straight.rows("validation")][:-1], MOST_TRIES)):
        process = trial.start()
        process.wait_until(lambda: any(row["step"] == moment for row in trial.rows("train")))
        time.sleep(rng.uniform(0, 0.01))
        process.send(signal.SIGKILL)
        if caught := all(row["step"] < moment for row in trial.rows("validation")) and \
                trial.rows("train")[-1]["step"] == moment:
            break
    trial.finish()
    return trial.judge(straight, note="" if caught else "no kill fell into a validation")


def kill_preparing(ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial(bare=True)
    for _ in range(2):
        process = trial.start("data")
        process.live(rng.uniform(0.2, ground.preparing_seconds))
        process.send(signal.SIGKILL)
    trial.finish("data")
    lost = data_bytes_lost(ground.base.out, trial.out)
    left = [f"left behind: {path.name}" for path in trial.out.rglob(".*.tmp")]
    return Result(left + [f"{lost:,} bytes of data differ"] * bool(lost), bytes_lost=lost)


def ask_to_stop(number: int, ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    process = trial.train_a_while(rng)
    code, seconds = process.send(number)
    said, problems = process.output(), []
    if code != 143:
        problems.append(f"exit code {code}, not 143")
    elif "resume with: cram pretrain" not in said:
        problems.append("the command to resume was not said")
    trial.finish()
    result = trial.judge(ground.straight())
    return dataclasses.replace(result, problems=problems + result.problems, exit_seconds=seconds)


def disk_full(moment: str, ground: Ground, rng: random.Random) -> Result:
    """moment: 'before' the run starts, or 'during' it."""
    with SmallDisk(ground.folder / "disks") as disk:
        trial = ground.trial(place=disk.place)
        if moment == "before":
            disk.fill(leave=200_000)    # less than one checkpoint
            process = trial.start()
            disk.fill(process)
        else:
            process = trial.train_a_while(rng)
            disk.fill(process)
        code, problems = process.wait(), []
        if code == 0 and moment == "before" or code not in (0, 2):
            problems.append(f"exit code {code} on a full disk: {last_line(process)}")
        if code == 2 and not re.search("MB are free|No space left|File too large", process.output()):
            problems.append(f"no word of the disk: {last_line(process)}")
        disk.empty()
        trial.finish()
        result = trial.judge(ground.straight(), f"{disk.kind}; " + ("stopped and said so" if code else "went on"),
                             unwritten=math.inf if code else 0.01)     # the way out is not in a ledger that takes no row
        return dataclasses.replace(result, problems=problems + result.problems)


def damage_checkpoint(harm: Callable[[Path], None], ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    process = trial.train_a_while(rng)
    process.wait_until(lambda: len(checkpoint.list_checkpoints(trial.run_dir / "checkpoints")) > 1)
    process.send(signal.SIGKILL)
    newest = checkpoint.list_checkpoints(trial.run_dir / "checkpoints")[0]
    harm(newest)
    said = trial.finish().output()
    result = trial.judge(ground.straight())
    told = f"{newest.name} is damaged" in said
    return dataclasses.replace(result, problems=result.problems + ["the damage was not named"] * (not told))


def truncate(path: Path) -> None:
    (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-1000])


def flip_a_byte(path: Path) -> None:
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 3] ^= 1
    (path / "state.pt").write_bytes(content)


def edit_shard(ground: Ground, rng: random.Random) -> Result:
    """One bit of the text changes under an interrupted run: refused, and not a second charged."""
    trial = ground.trial()
    trial.train_a_while(rng).send(signal.SIGTERM)
    shard = next((trial.out / "run" / "data").glob("train-*.bin"))
    whole, charged = shard.read_bytes(), (trial.run_dir / "ledger.jsonl").read_bytes()
    at = rng.randrange(len(whole))
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    process, problems = trial.start(), []
    if process.wait() != 2 or shard.name not in process.output():
        problems.append(f"not refused by name: {last_line(process)}")
    if (trial.run_dir / "ledger.jsonl").read_bytes() != charged:
        problems.append("the refused start was charged")
    shard.write_bytes(whole)
    trial.finish()
    result = trial.judge(ground.straight())
    return dataclasses.replace(result, problems=problems + result.problems)


def foreign_shard(ground: Ground, rng: random.Random) -> Result:
    """A shard of another corpus in the place of ours: its size tells, and the data are made again."""
    other = ground.folder / "other"
    if not other.exists():
        Trial(other, ground.write("other.jsonl", 500, seed=1), "1 steps").finish("data", starts=1)
    trial = ground.trial()
    trial.train_a_while(rng).send(signal.SIGTERM)
    for shard in (trial.out / "run" / "data").glob("train-*.bin"):
        shutil.copy(other / "run" / "data" / shard.name, shard)
    process = trial.finish()
    result = trial.judge(ground.straight())
    told = "damaged" in process.output()
    return dataclasses.replace(result, problems=result.problems + ["the damage was not named"] * (not told))


def two_processes(ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    first = trial.train_a_while(rng, most=0.2)
    second, problems = trial.start(), []
    start = time.monotonic()
    code, seconds = second.wait(), time.monotonic() - start
    if code != 2 or f"process {first.pid} is writing" not in second.output():
        problems.append(f"the second process was not refused by name of the first: {last_line(second)}")
    if first.wait():
        problems.append(f"the first process was disturbed: {last_line(first)}")
    result = trial.judge(ground.straight(), "refused at once")
    return dataclasses.replace(result, problems=problems + result.problems, exit_seconds=seconds)


FAULTS = {
    "kill-training": Fault("killed", "kill -9 while training", kill_training),
    "kill-saving": Fault("killed", "kill -9 while a checkpoint is written", kill_saving),
    "kill-validating": Fault("killed", "kill -9 while validating", kill_validating),
    "kill-preparing": Fault("killed", "kill -9 while preparing data", kill_preparing),
    "sigterm": Fault("asked to stop", "SIGTERM", partial(ask_to_stop, signal.SIGTERM)),
    "sigint": Fault("asked to stop", "SIGINT (Ctrl-C)", partial(ask_to_stop, signal.SIGINT)),
    "sigusr1": Fault("asked to stop", "SIGUSR1 (Slurm)", partial(ask_to_stop, signal.SIGUSR1)),
    "disk-before": Fault("disk and files", "disk full before the run", partial(disk_full, "before")),
    "disk-during": Fault("disk and files", "disk full during the run", partial(disk_full, "during")),
    "truncated": Fault("disk and files", "newest checkpoint cut short", partial(damage_checkpoint, truncate)),
    "flipped": Fault("disk and files", "one bit of it flipped", partial(damage_checkpoint, flip_a_byte)),
    "no-manifest": Fault("disk and files", "its manifest gone",
                         partial(damage_checkpoint, lambda path: (path / "manifest.json").unlink())),
    "shard-edited": Fault("disk and files", "one bit of a shard flipped", edit_shard),
    "shard-foreign": Fault("disk and files", "a shard of another corpus", foreign_shard),
    "two-processes": Fault("neighbours and clocks", "two processes on one run", two_processes),
    "clock": Fault("neighbours and clocks", "the wall clock jumps", clock_jumps),
    "nan": Fault("numbers and memory", "three gradients are no numbers", not_a_number),
    "explosion": Fault("numbers and memory", "the loss explodes", explode),
    "memory": Fault("numbers and memory", "no memory for a micro-batch", out_of_memory),
}
