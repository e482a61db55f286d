"""The device of the day: which one, its precision, its peak, its energy, and how much fits on it."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from dataclasses import dataclass
from typing import Callable, Optional

import torch

from cram.errors import CramError

# Dense bf16/fp16 tensor-core peak in FLOP/s with fp32 accumulation, from NVIDIA's data sheets; for MFU only.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "A10": 125e12, "L40S": 362e12, "L40": 181e12,
              "L4": 121e12,
              "RTX 4090": 165e12, "RTX 3090": 71e12, "A6000": 155e12, "T4": 65e12, "V100": 125e12}


@dataclass(frozen=True)
class Device:
    """Where a run computes. dtype: of matrix products (float32 means no autocast)."""

    kind: str
    name: str
    dtype: torch.dtype
    compile: bool
    peak_flops: Optional[float]

    @property
    def scaled(self) -> bool:
        """Whether gradients need loss scaling (float16)."""
        return self.dtype is torch.float16

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.kind, self.dtype)

    def memory(self) -> Optional[int]:
        """Peak bytes allocated on the card so far; None on the CPU."""
        return torch.cuda.max_memory_allocated() if self.kind == "cuda" else None


class Throttle:
    """Keeps the host at most one step ahead of the card: waits for the step before the one just queued.

    The card never idles, and the clock is never more than one step too early (``Pace`` keeps that step back).
    """

    def __init__(self, kind: str):
        self.ahead = 1 if kind == "cuda" else 0  # steps that may be queued and unfinished
        self._before: Optional[torch.cuda.Event] = None

    def queued(self) -> None:
        """A whole step has been handed to the device."""
        if not self.ahead:
            return
        event = torch.cuda.Event()
        event.record()
        if self._before is not None:
            self._before.synchronize()
        self._before = event


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get memory, on a card or (a plain RuntimeError) on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def device_kind(train) -> str:
    """"cuda" or "cpu", without touching a card. train: ``cram.schema.Train``. CramError when there is no card to take."""
    available = torch.cuda.is_available()
    if train.device == "cuda" and not available:
        raise CramError("train.device=cuda: torch sees no CUDA card here; use train.device=cpu or check the driver")
    return "cuda" if available and train.device != "cpu" else "cpu"


def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products, as torch knows; without, they are emulated and slower than fp32."""
    known = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def compiles(train, kind: str) -> bool:
    """Whether the model is compiled on a device of this kind."""
    return train.compile == "on" or (train.compile == "auto" and kind == "cuda")


def choose_device(train) -> Device:
    """Resolve device, precision and compilation. train: ``cram.schema.Train``. CramError when impossible."""
    kind = device_kind(train)
    if kind == "cpu" and train.precision == "fp16":
        raise CramError("train.precision=fp16: needs a CUDA card; use fp32 or bf16 on the CPU")
    if kind == "cuda" and train.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise CramError("train.precision=bf16: this card has no bf16; use train.precision=fp16")
    precision = train.precision
    if precision in ("auto", "native"):
        if kind == "cpu":
            precision = "bf16" if precision == "native" and cpu_multiplies_bf16() else "fp32"
        else:
            precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {threads} thread{'s' * (threads > 1)}"
    peak = next((flops for card, flops in PEAK_FLOPS.items() if card in name), None) if kind == "cuda" else None
    return Device(kind, name, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision],
                  compiles(train, kind), peak)


def keep_freed_memory() -> bool:
    """Let the C library keep freed buffers for the next step; returns whether it could be asked (glibc only).

    By default glibc maps every tensor over 32 MB anew and unmaps it when freed, so the kernel clears the
    logits' pages again in every step. mallopt(3): M_MMAP_MAX (-4) 0, M_TRIM_THRESHOLD (-1) at its maximum; M_ARENA_MAX (-8) 1,
    for the heaps that other threads get of their own go back to the kernel even so.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(*option) for option in ((-4, 0), (-1, 2**31 - 1), (-8, 1)))


def energy_meter(enabled: bool, kind: str, say: Callable[[str], None], cards: int = 1) -> Callable[[], Optional[float]]:
    """A function giving the sum of the energy counters of the first ``cards`` in joules (NVML), or None where there is
    none; said once."""
    if kind != "cuda" or not enabled:
        return lambda: None
    import pynvml
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(card).uuid}")
                   for card in range(cards)]
        for handle in handles:
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        say(f"energy: not measured (NVML: {error})")
        return lambda: None
    return lambda: sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles)) / 1000.0


def largest_micro_batch(attempt: Callable[[int], object], *, row: int, batch: int, keep_free: int, cap: int = 65536) -> int:
    """The most tokens per forward/backward that fit the card with a tenth of its memory to spare.

    attempt(tokens): one forward and backward, raising torch.OutOfMemoryError when it does not fit.
    keep_free: bytes that will be needed besides (optimizer states). Candidates divide the batch into
    equal parts of whole rows. CramError when one row does not fit.
    """
    rows = batch // row
    candidates = [batch // parts for parts in range(1, rows + 1) if rows % parts == 0 and batch // parts <= max(cap, row)]
    total = torch.cuda.get_device_properties(0).total_memory
    for tokens in candidates:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            attempt(tokens)
        except torch.OutOfMemoryError:
            continue
        if torch.cuda.max_memory_reserved() + keep_free <= 0.9 * total:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return tokens
    raise CramError(f"not even one row of {row} tokens fits in {total / 2**30:.1f} GiB: "
                    "make the model smaller or train.sequence_length shorter")
