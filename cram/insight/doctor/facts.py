"""What there is on this machine. Everything is read or tried here and judged elsewhere (checks.py), so that made-up machines
can be judged too. None: not known, or not tried."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

HUB = "https://huggingface.co"
WRITTEN = 32 * 2**20        # bytes, to see how fast the disk is
SHM = Path("/dev/shm")


@dataclass
class CardFacts:
    """A card as torch and NVML see it. others: processes of somebody else on it, with their bytes. attention: what our kernel's
    trial said, "" when it agrees with torch's."""

    name: str
    capability: tuple[int, int]
    total: int
    free: int
    bf16: bool = True
    fp8: bool = False
    energy: bool = True
    others: list[tuple[int, int]] = field(default_factory=list)
    attention: Optional[str] = ""


@dataclass
class Facts:
    """A machine. Sizes in bytes, times in seconds."""

    python: tuple[int, int, int] = (3, 11, 0)
    system: str = "Linux"
    torch: Optional[str] = None
    torch_cuda: Optional[str] = None            # CUDA version torch was built for; None: a CPU build
    driver: Optional[str] = None                # NVIDIA's, when there is one
    driver_cuda: Optional[tuple[int, int]] = None
    card: Optional[CardFacts] = None
    triton: Optional[str] = None
    memory_total: Optional[int] = None
    memory_free: Optional[int] = None
    shm_free: Optional[int] = None
    disk: str = "."
    disk_free: int = 0
    disk_error: Optional[str] = None            # why nothing can be written there
    write_speed: Optional[float] = None         # bytes a second, with fsync
    row_seconds: Optional[float] = None         # of one fsynced line, as the ledger writes
    cores: int = 1
    allowed_cores: int = 1
    group_cores: Optional[float] = None         # what the control group allows
    threads: int = 1                            # torch's choice
    cpu_bf16: bool = False                      # the CPU multiplies bf16 itself
    load: Optional[float] = None                # runnable processes over the last minute
    allocator: bool = True                      # glibc could be told to keep freed memory
    unmet: list[str] = field(default_factory=list)          # requirements of cram that are not met
    strayed: list[str] = field(default_factory=list)        # versions other than those of constraints.txt
    foreign_kernels: Optional[str] = None       # version of the package whose import name is "kernels"
    clock_year: int = 2026
    clock_step: float = 1e-9
    clock_drift: float = 0.0                    # share by which two clocks disagree
    hub: Optional[str] = None                   # "" reachable, else why not


def gather(out: Path, quick: bool = False) -> Facts:
    """The facts of this machine. out: folder of the results; quick: without the network and the card's trial."""
    import torch

    from cram.device import cpu_multiplies_bf16, keep_freed_memory
    from cram.insight.plan.host import available_bytes, physical_bytes

    facts = Facts(python=sys.version_info[:3], system=platform.system(), torch=torch.__version__, torch_cuda=torch.version.cuda,
                  triton=_version("triton"), memory_total=physical_bytes(), memory_free=available_bytes(),
                  shm_free=shutil.disk_usage(SHM).free if SHM.is_dir() else None, cores=os.cpu_count() or 1,
                  allowed_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                  group_cores=group_cores(), threads=torch.get_num_threads(), cpu_bf16=cpu_multiplies_bf16(),
                  load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None, allocator=keep_freed_memory(),
                  foreign_kernels=_version("kernels"), clock_year=time.gmtime().tm_year,
                  clock_step=time.get_clock_info("monotonic").resolution)
    facts.unmet, facts.strayed = requirements()
    facts.clock_drift = drift()
    _disk(facts, out)
    _driver(facts)
    if torch.cuda.is_available():
        facts.card = _card(quick)
    if not quick:
        facts.hub = reach(HUB)
    return facts


def _version(package: str) -> Optional[str]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def group_cores() -> Optional[float]:
    """Cores that the control group (version 2 or 1) grants; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int(Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None


def requirements() -> tuple[list[str], list[str]]:
    """(requirements of this installation that are not met, versions that differ from a checkout's constraints.txt)."""
    from packaging.requirements import Requirement

    unmet, strayed = [], []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for requirement in map(Requirement, importlib.metadata.requires("cram-lm") or []):
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            version = _version(requirement.name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                unmet.append(f"{requirement.name}{requirement.specifier} (here: {version or 'none'})")
    constraints = Path(__file__).parents[3] / "constraints.txt"
    if constraints.is_file():
        for line in constraints.read_text(encoding="utf-8").splitlines():
            name, equals, wanted = line.partition("==")
            version = _version(name.strip()) if equals and not line.startswith("#") else None
            if version is not None and version.partition("+")[0] != wanted.strip().partition("+")[0]:
                strayed.append(f"{name.strip()} {version} (tested: {wanted.strip()})")
    return unmet, strayed


def drift(seconds: float = 0.2) -> float:
    """By what share the clock of the ledger and the processor's disagree over a moment."""
    began = time.monotonic(), time.perf_counter()
    time.sleep(seconds)
    monotonic, counter = time.monotonic() - began[0], time.perf_counter() - began[1]
    return abs(monotonic / counter - 1)


def _disk(facts: Facts, out: Path) -> None:
    from data_prep.files import append_durably, replace_durably

    above = next(path for path in [out.absolute(), *out.absolute().parents] if path.exists())
    facts.disk, facts.disk_free = str(above), shutil.disk_usage(above).free
    try:
        with tempfile.TemporaryDirectory(prefix=".cram-doctor-", dir=above) as folder:
            began = time.perf_counter()
            replace_durably(Path(folder) / "block", bytes(min(WRITTEN, facts.disk_free // 4)))
            facts.write_speed = min(WRITTEN, facts.disk_free // 4) / (time.perf_counter() - began)
            rows = []
            for _ in range(5):
                began = time.perf_counter()
                append_durably(Path(folder) / "row", b"a row of a ledger\n")
                rows.append(time.perf_counter() - began)
            facts.row_seconds = statistics.median(rows)
    except OSError as error:
        facts.disk_error = error.strerror or str(error)


def _driver(facts: Facts) -> None:
    """NVIDIA's driver, whether or not torch can use it."""
    import pynvml
    try:
        pynvml.nvmlInit()
        facts.driver = str(pynvml.nvmlSystemGetDriverVersion())
        version = pynvml.nvmlSystemGetCudaDriverVersion()
        facts.driver_cuda = version // 1000, version % 1000 // 10
    except pynvml.NVMLError:
        return  # no NVIDIA driver: facts.driver stays None, and a check says what follows


def _card(quick: bool) -> CardFacts:
    import pynvml
    import torch

    from cram import fp8

    free, total = torch.cuda.mem_get_info()
    facts = CardFacts(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), total, free,
                      torch.cuda.is_bf16_supported(including_emulation=False), fp8.why_not("cuda") is None)
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        facts.others = [(process.pid, process.usedGpuMemory or 0)
                        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
                        if process.pid != os.getpid()]
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        facts.energy = False
    facts.attention = None if quick else try_attention()
    return facts


def try_attention() -> str:
    """Our kernel beside torch's attention on the card, a few hundred tokens: "" when they agree, else what went wrong."""
    import torch

    from cram.ops import Documents, attention, why_not

    if reason := why_not("triton", "cuda", 64):
        return reason
    try:
        torch.manual_seed(0)
        q, k, v = (torch.randn(256, 2, 64, device="cuda", dtype=torch.float16) for _ in range(3))
        start = (torch.arange(256, device="cuda", dtype=torch.int32) // 128) * 128
        results = [attention(q, k, v, documents=Documents(start, start + 128, 256), causal=True, backend=backend).float()
                   for backend in ("triton", "sdpa")]
    except Exception as error:  # noqa: BLE001 whatever a compiler or driver throws is the finding
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    worst = (results[0] - results[1]).abs().max().item()
    return "" if worst < 0.01 else f"differs from torch's by {worst:.3g}"


def reach(address: str, timeout: float = 5.0) -> str:
    """"" when the address answers, else why not."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=timeout):
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code < 500 else f"answers {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
