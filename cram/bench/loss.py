"""Ways to compute the loss of the last layer and its gradients, side by side: time, memory, error.

Every way gets float32 hidden states and a float32 weight, as the model gives them, and takes its matrix products in
float32 on the CPU and in bfloat16 on CUDA. Logits have standard deviation 2.

Axes: P predicted positions, D model width, V vocabulary.
"""

from __future__ import annotations

import statistics
import time
from typing import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from cram._kernels.loss import linear_cross_entropy
from cram.bench.measure import attempt
from cram.device import keep_freed_memory

SIZES = {"cpu": [(2457, 128, 4096), (2457, 768, 32768)],          # demo; a micro-batch of the demo at the days' width
         "cuda": [(19661, 768, 32768), (65536, 768, 32768)]}      # bert_day (0.3 of 65,536 tokens); gpt_day
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
MEMORY = {"cpu": "largest sum of live tensor bytes (torch.profiler)", "cuda": "torch.cuda.max_memory_allocated minus before"}
WARM_UP = 2                                                       # runs of each way before any is timed


def plain(x_PD: Tensor, weight_VD: Tensor, labels_P: Tensor) -> Tensor:
    """What ``Transformer.logits`` and ``objective.cross_entropy`` do."""
    with torch.autocast(x_PD.device.type, torch.bfloat16, enabled=DTYPES[x_PD.device.type] is torch.bfloat16):
        return F.cross_entropy(F.linear(x_PD, weight_VD).float(), labels_P, reduction="sum")


def chunked(x_PD: Tensor, weight_VD: Tensor, labels_P: Tensor) -> Tensor:
    with torch.autocast(x_PD.device.type, torch.bfloat16, enabled=DTYPES[x_PD.device.type] is torch.bfloat16):
        return linear_cross_entropy(x_PD, weight_VD, labels_P)


def torch_chunked(x_PD: Tensor, weight_VD: Tensor, labels_P: Tensor) -> Tensor:
    """PyTorch's own, with the chunks it chooses itself. It knows no autocast, so both factors are cast here."""
    dtype = DTYPES[x_PD.device.type]
    return F.linear_cross_entropy(x_PD.to(dtype), weight_VD.to(dtype), labels_P, reduction="sum",
                                  options=torch.nn.LinearCrossEntropyOptions())


def ways() -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """Name to function; F.linear_cross_entropy only where torch has it (2.13 does, 2.11 does not)."""
    found = {"plain": plain, "compiled": torch.compile(plain, dynamic=False), "chunked": chunked}
    return found | ({"F.linear_cross_entropy": torch_chunked} if hasattr(F, "linear_cross_entropy") else {})


def measure(device: str, sizes: Iterable[tuple[int, int, int]], repeats: int) -> list[dict]:
    """One row for each size (P, D, V) and way; one that fails, out of memory, has an ``error``. device: 'cpu' or 'cuda'.

    seconds: median of ``repeats`` forward and backward passes, the ways taking turns (plain, compiled, chunked, ...,
    plain, ...); compilation and WARM_UP runs of each come before and are not counted. fastest, slowest: the extremes.
    peak_bytes: what one pass takes above its inputs, gradients included; peak_by: how that was read. The profiler does
    not see what a matrix library allocates for itself. error_loss, error_dx, error_dweight: relative (for gradients:
    in the Euclidean norm) to float64 on inputs rounded to the dtype of the products.

    On the CPU the C library is told to keep freed memory, as training does, for the rest of the process.
    """
    if device == "cpu":
        keep_freed_memory()
    return [row for size in sizes for row in _measure_size(device, size, repeats)]


def _measure_size(device: str, size: tuple[int, int, int], repeats: int) -> list[dict]:
    inputs, functions = make_inputs(device, size), ways()
    runs = {name: lambda f=f: _gradients(f, inputs) for name, f in functions.items()}
    warm = {name: attempt(lambda: [run() for _ in range(WARM_UP)])[1] for name, run in runs.items()}
    errors = {name: error for name, error in warm.items() if error is not None}
    runs = {name: run for name, run in runs.items() if name not in errors}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            seconds[name].append(_seconds(device, run))
    true, p, d, v = exact(*inputs), *size
    common = {"p": p, "d": d, "v": v, "device": device, "dtype": str(DTYPES[device]).removeprefix("torch."),
              "threads": torch.get_num_threads(), "repeats": repeats, "torch": torch.__version__}
    return [{"way": name, **common, "error": error} for name, error in errors.items()] + [
        {"way": name, **common, "seconds": statistics.median(seconds[name]), "fastest": min(seconds[name]),
         "slowest": max(seconds[name]), "peak_bytes": _peak_bytes(device, run), "peak_by": MEMORY[device],
         **{f"error_{key}": error for key, error in zip(("loss", "dx", "dweight"), _errors(run(), true), strict=True)}}
        for name, run in runs.items()]


def make_inputs(device: str, size: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """x float32 [P, D], weight float32 [V, D], both wanting gradients, labels int64 [P]; the same every time."""
    p, d, v = size
    generator = torch.Generator().manual_seed(0)
    x_PD, weight_VD = torch.randn(p, d, generator=generator), 2 * d ** -0.5 * torch.randn(v, d, generator=generator)
    labels_P = torch.randint(0, v, (p,), generator=generator)
    return x_PD.to(device).requires_grad_(), weight_VD.to(device).requires_grad_(), labels_P.to(device)


def exact(x_PD: Tensor, weight_VD: Tensor, labels_P: Tensor, rows: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64 by autograd, summed over parts of ``rows`` rows to save memory."""
    dtype = DTYPES[x_PD.device.type]
    x_PD, weight_VD = (t.detach().to(dtype).double().requires_grad_() for t in (x_PD, weight_VD))
    total = x_PD.new_zeros(())
    for x_RD, labels_R in zip(x_PD.split(rows), labels_P.split(rows), strict=True):
        loss = F.cross_entropy(F.linear(x_RD, weight_VD), labels_R, reduction="sum")
        loss.backward()
        total += loss.detach()
    return total, x_PD.grad, weight_VD.grad


def _gradients(function, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, d loss / dx, d loss / dweight: what one step needs."""
    loss = function(*inputs)
    return loss.detach(), *torch.autograd.grad(loss, inputs[:2])


def _seconds(device: str, run: Callable) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(device: str, run: Callable) -> int:
    """The most bytes that ``run`` had allocated at one time."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        run()
    alive = peak = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":  # positive: allocated, negative: freed
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


def _errors(ours: tuple[Tensor, ...], true: tuple[Tensor, ...]) -> list[float]:
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(ours, true, strict=True)]
