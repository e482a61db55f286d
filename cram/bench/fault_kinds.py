"""The faults: each harms a run once, lets the same command end it, and judges what came of it.

A fault takes the ``Ground``, a random generator for the moment it strikes, and returns a ``Result``. Problems are what
should not have been; raising (CramError, or whatever reading a broken run raises) is a failed trial as well.
"""

from __future__ import annotations

import dataclasses
import random
import re
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

from cram import checkpoint
from cram.bench import fault_hooks
from cram.bench.fault_disk import SmallDisk
from cram.bench.fault_runs import Ground, Process, Result, Trial, data_bytes_lost, last_line
from cram.ledger import read_ledger

MOST_TRIES = 3          # kills until one falls into the phase that is meant
BIG = ("train.batch_tokens=65536", "train.micro_batch_tokens=65536")


class Fault(NamedTuple):
    """group: under which it stands in the table; strike: what happens."""

    group: str
    what: str
    strike: Callable[[Ground, random.Random], Result]


def train_a_while(trial: Trial, rng: random.Random, most: float = 0.7, hook=None) -> Process:
    """A process that has taken some steps, up to that share of those of the budget."""
    process = trial.start(hook=hook)
    steps = rng.randint(3, max(4, int(most * int(trial.budget.split()[0]))))
    process.wait_until(lambda: len(trial.rows("train")) >= steps)
    return process


def kill_training(ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    process = train_a_while(trial, rng)
    time.sleep(rng.uniform(0, 0.03))
    process.send(signal.SIGKILL)
    trial.finish()
    return trial.judge(ground.straight())


def kill_saving(ground: Ground, rng: random.Random) -> Result:
    trial, caught = ground.trial(), False
    for number in range(MOST_TRIES):
        process = train_a_while(trial, rng, most=0.2 * (1 + number))
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
        process.wait_until(lambda end=time.monotonic() + rng.uniform(0.2, ground.preparing_seconds): time.monotonic() > end)
        process.send(signal.SIGKILL)
    trial.finish("data")
    lost = data_bytes_lost(ground.base.out, trial.out)
    left = [f"left behind: {path.name}" for path in trial.out.rglob(".*.tmp")]
    return Result(left + [f"{lost:,} bytes of data differ"] * bool(lost), bytes_lost=lost)


def ask_to_stop(number: int, ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    process = train_a_while(trial, rng)
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
            process = train_a_while(trial, rng)
            disk.fill(process)
        code, problems = process.wait(), []
        if code == 0 and moment == "before" or code not in (0, 2):
            problems.append(f"exit code {code} on a full disk: {last_line(process)}")
        if code == 2 and not re.search("MB are free|No space left|File too large", process.output()):
            problems.append(f"no word of the disk: {last_line(process)}")
        disk.empty()
        trial.finish()
        result = trial.judge(ground.straight(), f"{disk.kind}; " + ("stopped and said so" if code else "went on"))
        return dataclasses.replace(result, problems=problems + result.problems)


def damage_checkpoint(harm: Callable[[Path], None], ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    process = train_a_while(trial, rng)
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
    train_a_while(trial, rng).send(signal.SIGTERM)
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
    train_a_while(trial, rng).send(signal.SIGTERM)
    for shard in (trial.out / "run" / "data").glob("train-*.bin"):
        shutil.copy(other / "run" / "data" / shard.name, shard)
    process = trial.finish()
    result = trial.judge(ground.straight())
    told = "damaged" in process.output()
    return dataclasses.replace(result, problems=result.problems + ["the damage was not named"] * (not told))


def two_processes(ground: Ground, rng: random.Random) -> Result:
    trial = ground.trial()
    first = train_a_while(trial, rng, most=0.2)
    second, problems = trial.start(), []
    start = time.monotonic()
    code, seconds = second.wait(), time.monotonic() - start
    if code != 2 or f"process {first.pid} is writing" not in second.output():
        problems.append(f"the second process was not refused by name of the first: {last_line(second)}")
    if first.wait():
        problems.append(f"the first process was disturbed: {last_line(first)}")
    result = trial.judge(ground.straight(), "refused at once")
    return dataclasses.replace(result, problems=problems + result.problems, exit_seconds=seconds)


def clock_jumps(ground: Ground, rng: random.Random) -> Result:
    hook = fault_hooks.write(ground.folder / "hooks" / "clock", fault_hooks.CLOCK)
    trial = ground.trial()
    train_a_while(trial, rng, hook=hook).send(signal.SIGKILL)
    trial.finish(hook=hook)
    result = trial.judge(ground.straight(), clock=False)
    timed = ground.trial("4s")
    start = time.monotonic()
    timed.finish(hook=hook)
    ledger, lived = read_ledger(timed.run_dir / "ledger.jsonl"), time.monotonic() - start
    if not 0.5 < ledger.fraction <= 1 or ledger.seconds > lived:
        result.problems.append(f"{ledger.seconds:.2f} s of 4 s charged, the process lived {lived:.2f} s")
    return result


def not_a_number(ground: Ground, rng: random.Random) -> Result:
    """Three steps without a usable gradient are skipped, and the run goes on."""
    first = rng.randint(5, 60)
    hook = fault_hooks.write(ground.folder / "hooks" / f"nan-{first}",
                             fault_hooks.NOT_A_NUMBER.format(first=first, last=first + 3))
    trial = ground.trial()
    process, problems = trial.start(hook=hook), []
    if process.wait():
        problems.append(f"the run stopped: {last_line(process)}")
    elif not all(bool(weight.isfinite().all()) for weight in trial.state()["model"].values()):
        problems.append("weights that are no numbers were saved")
    return Result([*problems, *unproved(trial, "finished" * (not problems))], note="skipped three steps" * (not problems))


def explode(ground: Ground, rng: random.Random) -> Result:
    """A learning rate that nothing survives: the run stops with advice, and what it spent is in the ledger."""
    trial = ground.trial(settings=("optimizer.lr=1e30", "optimizer.type=adamw", "optimizer.clip=null",
                                   f"seed={rng.randint(1, 9)}"))
    process = trial.start()
    code, problems = process.wait(), []
    if code != 2 or "lower optimizer.lr" not in process.output():
        problems.append(f"exit code {code}: {last_line(process)}")
    return Result([*problems, *unproved(trial, "stopped by CramError")], note="stopped with advice" * (not problems))


def out_of_memory(ground: Ground, rng: random.Random) -> Result:
    """The first micro-batch does not fit: refused with a remedy, and with more memory the same command runs."""
    budget, peak = "4 steps", [0]
    straight = ground.trial(budget, BIG)
    process = straight.start()
    process.wait_until(lambda: peak.append(address_space(process)))
    process.wait()
    trial = ground.trial(budget, BIG)
    process, problems = trial.start(), []
    limit = max(peak) - 60_000_000 - rng.randint(0, 20_000_000)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    if process.wait() != 2 or "train.micro_batch_tokens" not in last_line(process):
        problems.append(f"no refusal with a remedy: {last_line(process)}")
    trial.finish()
    result = trial.judge(straight)
    return dataclasses.replace(result, problems=problems + result.problems)


def address_space(process: Process) -> int:
    """Most bytes of address space that a running process ever had; 0 when it is gone."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmPeak:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else 0


def unproved(trial: Trial, reason: str) -> list[str]:
    """What the ledger and the checkpoints of a run that ended on its own leave unproved. reason: of its end ('': any)."""
    ledger, problems = read_ledger(trial.run_dir / "ledger.jsonl"), []
    if reason and ledger.reason != reason:
        problems.append(f"the ledger ends with '{ledger.reason}'")
    if ledger.fraction > 1:
        problems.append(f"{ledger.fraction:.2%} of the budget spent")
    if not any(checkpoint.damage(path) is None for path in checkpoint.list_checkpoints(trial.run_dir / "checkpoints")):
        problems.append("no good checkpoint is left")
    return problems


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
