"""What the facts of a machine mean: one finding a line, each with its remedy. Knows nothing of this machine."""

from __future__ import annotations

import os
from typing import Iterator, NamedTuple

from cram.insight.doctor.facts import Facts

OK, NOTE, WARNING, PROBLEM = "ok", "note", "warning", "problem"
OLDEST_PYTHON = (3, 11)
LEAST_MEMORY, LEAST_DISK, LEAST_SHM = 2 * 2**30, 2 * 10**9, 64 * 2**20
SLOW_DISK, SLOW_ROW = 20e6, 0.1             # bytes a second, seconds
CARD_MEMORY = 7.5 * 2**30                   # the day's configurations begin at 8 GB
BUSY = 0.25                                 # runnable processes a core beside ours


class Finding(NamedTuple):
    """state: ok, note, warning (a run works, but worse) or problem (it would be stopped)."""

    state: str
    what: str
    told: str
    remedy: str = ""


def examine(facts: Facts) -> list[Finding]:
    """All findings, in the order of printing."""
    return [finding for part in (_python, _torch, _card, _memory, _disk, _cores, _packages, _clock, _network)
            for finding in part(facts)]


def _python(facts: Facts) -> Iterator[Finding]:
    version = ".".join(map(str, facts.python))
    if facts.python < OLDEST_PYTHON:
        yield Finding(PROBLEM, "Python", version, "cram needs 3.11 or newer")
    else:
        yield Finding(OK, "Python", f"{version} on {facts.system}")
    if facts.system != "Linux":
        yield Finding(NOTE, "system", facts.system, "tested on Linux; there are no Triton kernels elsewhere")


def _torch(facts: Facts) -> Iterator[Finding]:
    if facts.torch is None:
        yield Finding(PROBLEM, "torch", "not installed", "install cram again: pip install -e .")
        return
    build = f"CUDA {facts.torch_cuda}" if facts.torch_cuda else "CPU"
    yield Finding(OK, "torch", f"{facts.torch}, built for {build}")
    if facts.driver is None:
        if facts.torch_cuda and facts.card is None:
            yield Finding(NOTE, "driver", "no NVIDIA driver: runs take the CPU", "with a card here, install NVIDIA's driver")
        return
    runs = ".".join(map(str, facts.driver_cuda)) if facts.driver_cuda else "unknown"
    if not facts.torch_cuda:
        yield Finding(WARNING, "driver", f"{facts.driver} (CUDA {runs}), but torch is a CPU build: the card stays idle",
                      "install torch for CUDA: pytorch.org, 'Get started'")
    elif facts.driver_cuda and facts.driver_cuda[0] < int(facts.torch_cuda.split(".")[0]):
        yield Finding(PROBLEM, "driver", f"{facts.driver} runs CUDA {runs}; torch wants {facts.torch_cuda}",
                      f"update the driver, or install torch for CUDA {facts.driver_cuda[0]}")
    elif facts.card is None:
        yield Finding(WARNING, "driver", f"{facts.driver} is there, but torch sees no card",
                      "look at nvidia-smi and at CUDA_VISIBLE_DEVICES; in a container, pass the card on (--gpus all)")
    else:
        yield Finding(OK, "driver", f"{facts.driver}, up to CUDA {runs}")


def _card(facts: Facts) -> Iterator[Finding]:
    card = facts.card
    if card is None:
        yield Finding(NOTE, "card", "none: runs take the CPU", "demo and demo_gpt are made for that; for the days rent a card")
        return
    capability = ".".join(map(str, card.capability))
    yield Finding(OK, "card", f"{card.name}, {card.total / 2**30:.1f} GiB, compute capability {capability}")
    if not card.bf16:
        yield Finding(NOTE, "precision", "no bf16: trains in fp16 with loss scaling")
    else:
        yield Finding(OK, "precision", "bf16" + (", fp8 (train.fp8=true)" if card.fp8 else "; no fp8 (needs capability 8.9)"))
    if card.total < CARD_MEMORY:
        yield Finding(WARNING, "card memory", f"{card.total / 2**30:.1f} GiB",
                      "the day's configurations begin at 8 GB; smaller train.micro_batch_tokens, train.recompute=full, "
                      "train.loss=chunked")
    if card.others:
        held = sum(size for _, size in card.others)
        state = WARNING if card.free > 0.5 * card.total else PROBLEM
        who = ", ".join(str(pid) for pid, _ in card.others[:4])
        yield Finding(state, "card shared", f"{len(card.others)} other processes hold {held / 2**30:.1f} GiB (pid {who}); "
                                            f"{card.free / 2**30:.1f} GiB are free",
                      "end them, or wait: a time budget pays for their share too")
    if facts.triton is None:
        yield Finding(WARNING, "triton", "not installed: attention by sdpa, and no torch.compile", "pip install triton")
    elif card.attention:
        yield Finding(WARNING, "attention", f"our kernel does not run here: {card.attention}",
                      "runs fall back to sdpa, which is slower; say model.attention=sdpa, and report it")
    elif card.attention is not None:
        yield Finding(OK, "attention", f"triton {facts.triton}: our kernel agrees with torch's")
    if not card.energy:
        yield Finding(NOTE, "energy", "NVML has no energy counter here: the ledger goes without")


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory_free is None or facts.memory_total is None:
        yield Finding(NOTE, "memory", "cannot be read on this system")
    elif facts.memory_free < LEAST_MEMORY:
        yield Finding(PROBLEM, "memory", f"{facts.memory_free / 2**30:.1f} GiB free of {facts.memory_total / 2**30:.1f}",
                      "preparing text and the demo take about 1 GiB: close other programs, or data.workers=1")
    else:
        yield Finding(OK, "memory", f"{facts.memory_free / 2**30:.1f} GiB free of {facts.memory_total / 2**30:.1f}")
    if facts.shm_free is not None and facts.shm_free < LEAST_SHM:
        yield Finding(WARNING, "/dev/shm", f"{facts.shm_free / 2**20:.0f} MiB free",
                      "several processes (torchrun, data.workers) share memory there; in a container: --shm-size=1g")


def _disk(facts: Facts) -> Iterator[Finding]:
    if facts.disk_error:
        yield Finding(PROBLEM, "disk", f"{facts.disk}: {facts.disk_error}", "choose another folder with out=...")
        return
    if facts.disk_free < LEAST_DISK:
        yield Finding(WARNING, "disk", f"{facts.disk}: {facts.disk_free / 1e9:.1f} GB free",
                      "the demo takes 0.1 GB, a day about 100 GB; out=... names another disk")
    else:
        yield Finding(OK, "disk", f"{facts.disk}: {facts.disk_free / 1e9:.1f} GB free")
    if facts.write_speed is not None and facts.row_seconds is not None:
        slow = facts.write_speed < SLOW_DISK or facts.row_seconds > SLOW_ROW
        told = f"{facts.write_speed / 1e6:,.0f} MB/s with fsync, {1e3 * facts.row_seconds:.1f} ms a row of the ledger"
        remedy = "checkpoints are charged to the budget: a local disk is faster than a network's" if slow else ""
        yield Finding(WARNING if slow else OK, "writing", told, remedy)


def _cores(facts: Facts) -> Iterator[Finding]:
    usable = min(facts.allowed_cores, facts.group_cores or facts.allowed_cores)
    limited = "" if usable >= facts.cores else f" of {facts.cores}"
    yield Finding(OK, "cores", f"{usable:g}{limited} usable, torch takes {facts.threads} thread{'s' * (facts.threads != 1)}")
    if facts.threads > usable + 0.5:
        yield Finding(WARNING, "threads", f"{facts.threads} threads on {usable:g} cores hinder each other",
                      f"train.threads={max(1, int(usable))}, or OMP_NUM_THREADS={max(1, int(usable))}")
    if facts.load is not None and facts.load > BUSY * usable and facts.card is None:
        yield Finding(WARNING if facts.load > usable else NOTE, "load", f"{facts.load:.1f} processes want the {usable:g} cores",
                      "a time budget buys less while others compute; step, token and FLOP budgets do not care")
    if facts.cpu_bf16 and facts.card is None:
        yield Finding(NOTE, "precision", "the CPU multiplies bf16 itself, but auto is float32 here",
                      "train.precision=native trains faster, to other bits than elsewhere")
    if not facts.allocator:
        yield Finding(NOTE, "allocator", "not glibc: large tensors are mapped anew in each step, which costs some speed on "
                                         "the CPU")


def _packages(facts: Facts) -> Iterator[Finding]:
    if facts.unmet:
        yield Finding(PROBLEM, "packages", "; ".join(facts.unmet), "install cram again: pip install -e .")
    if facts.strayed:
        shown = "; ".join(facts.strayed[:3]) + (f" and {len(facts.strayed) - 3} more" if len(facts.strayed) > 3 else "")
        yield Finding(NOTE, "versions", shown, "should something fail: pip install -c constraints.txt -e .")
    if not facts.unmet:
        yield Finding(OK, "packages", "all that cram needs" + ("" if facts.strayed else ", in the versions it was tested with"))
    if facts.foreign_kernels:
        yield Finding(OK, "kernels", f"Hugging Face's package of that name ({facts.foreign_kernels}) is installed and not in "
                                     "the way")


def _clock(facts: Facts) -> Iterator[Finding]:
    if facts.clock_drift > 0.01 or facts.clock_step > 0.01:
        yield Finding(PROBLEM, "clock", f"two clocks differ by {facts.clock_drift:.1%}, steps of {facts.clock_step:g} s",
                      "a time budget cannot be trusted here; use steps, tokens or FLOPs, and mend the virtual machine's clock")
    elif facts.clock_year < 2024:
        yield Finding(WARNING, "clock", f"says it is {facts.clock_year}",
                      "budgets are kept all the same, but certificates and dates are wrong")
    else:
        yield Finding(OK, "clock", "steady")


def _network(facts: Facts) -> Iterator[Finding]:
    if facts.hub is None:
        return
    if facts.hub:
        yield Finding(NOTE, "network", f"the Hugging Face hub cannot be reached: {facts.hub}",
                      "the demo needs none; for others data.mirror or local files")
    else:
        yield Finding(OK, "network", "the Hugging Face hub answers")


def lines(findings: list[Finding]) -> list[str]:
    """What is printed."""
    return [f"{finding.state:<8} {finding.what:<12} {finding.told}"
            + (f"{os.linesep}{'':<22}-> {finding.remedy}" if finding.remedy else "")
            for finding in findings]
