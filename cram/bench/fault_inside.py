"""Faults that strike inside a process: a clock that jumps, gradients that are no numbers, too little memory."""

from __future__ import annotations

import random
import re
import resource
import signal
import time
from pathlib import Path

from cram import checkpoint
from cram.audit import read_ledger
from cram.bench import fault_hooks
from cram.bench.fault_runs import Ground, Process, Result, Trial, last_line

BIG = ("train.batch_tokens=65536", "train.micro_batch_tokens=65536")


def clock_jumps(ground: Ground, rng: random.Random) -> Result:
    hook = fault_hooks.write(ground.folder / "hooks" / "clock", fault_hooks.CLOCK)
    trial = ground.trial()
    trial.train_a_while(rng, hook=hook).send(signal.SIGKILL)
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
    elif "3 of the last 10 steps changed nothing" not in process.output() and process.output().count("skipped:") < 2:
        problems.append("it was not said that steps were skipped")
    return Result([*problems, *unproved(trial, "finished" * (not problems))], note="skipped three steps" * (not problems))


def explode(ground: Ground, rng: random.Random) -> Result:
    """A learning rate that nothing survives: the run stops with advice, and what it spent is in the ledger."""
    trial = ground.trial(settings=("optimizer.lr=1e30", "optimizer.type=adamw", "optimizer.clip=null",
                                   f"seed={rng.randint(1, 9)}"))
    process = trial.start()
    code, problems = process.wait(), []
    if code != 2 or "lower optimizer.lr" not in process.output():
        problems.append(f"exit code {code}: {last_line(process)}")
    return Result([*problems, *unproved(trial, "stopped by Exploded")], note="stopped with advice" * (not problems))


def out_of_memory(ground: Ground, rng: random.Random) -> Result:
    """The first micro-batch does not fit: smaller ones do, and give what they would have given from the start."""
    budget, peaks = "4 steps", [(0, 0)]
    process = ground.trial(budget, BIG).start()
    process.wait_until(lambda: peaks.append((address_space(process), "plan: " not in process.output())))
    process.wait()
    built, most = (max(size for size, early in peaks if early or whole) for whole in (False, True))
    trial = ground.trial(budget, BIG)
    process = trial.start()
    limit = built + round((most - built) * rng.uniform(0.4, 0.7))
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
    code = process.wait()
    smaller = re.findall(r"step (\d+): out of memory: micro-batches of ([\d,]+) tokens", process.output())
    if code or not smaller:
        return Result([f"exit code {code}, no smaller micro-batch: {last_line(process)}"])
    note = f"micro-batches of {smaller[-1][1]} tokens instead of 65,536"
    if smaller[-1][0] != "0":   # some steps were taken in larger ones, which round otherwise
        return Result(unproved(trial, "finished"), note=note)
    return trial.judge(ground.straight(budget, (BIG[0], f"train.micro_batch_tokens={smaller[-1][1].replace(',', '')}")), note)


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
