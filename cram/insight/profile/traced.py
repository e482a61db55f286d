"""What torch's own profiler tells: a Chrome trace with our modules named, and the kernels of a compiled step."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any, Optional

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from cram.insight.profile.clock import quickest, watching
from cram.insight.profile.step import Step, prepared
from cram.insight.profile.watch import LOOKING, Label
from data_prep.files import replace_durably

KERNELS = 15  # told of a compiled step


class Ranges:
    """Named ranges in torch's trace: one a phase, and within it one a turn."""

    def __init__(self):
        self.phase: Optional[str] = None
        self._open: list[Any] = []

    def switched(self, label: Label) -> None:
        """Close the last turn's range, and its phase's when another begins; open this one's."""
        keep = 1 if label.phase == self.phase else 0
        while len(self._open) > keep:
            self._open.pop().__exit__(None, None, None)
        self.phase = label.phase if label != LOOKING else None
        if self.phase is not None:
            for text in ([] if keep else [label.phase]) + [named(label)]:
                range_ = record_function(text)
                range_.__enter__()
                self._open.append(range_)


def named(label: Label) -> str:
    """As in the trace: forward/block 0/qkv projection."""
    block = [] if label.layer is None else [f"block {label.layer}"]
    return "/".join([label.phase, *block, label.module])


def activities(kind: str) -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (kind == "cuda")


def write_trace(step: Step, path: Path) -> None:
    """One step as a Chrome trace (chrome://tracing, ui.perfetto.dev); gzipped when the name ends in .gz."""
    ranges = Ranges()
    with profile(activities=activities(step.device.kind)) as found, watching(step, ranges.switched) as watch:
        watch.turn(Label("forward", "rest"))
        step()
        watch.turn(LOOKING)
        step.wait()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "trace.json"
        found.export_chrome_trace(str(made))
        content = made.read_bytes()
    replace_durably(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def compiled_step(config, text, progress: float, steps: int, clock: str) -> dict:
    """The same step under torch.compile, where modules are no more: its milliseconds, and its kernels by time."""
    torch.compiler.reset()
    with prepared(config, text, progress, True, clock) as step:
        ms = 1e3 * quickest(step.seconds() for _ in range(steps))
        with profile(activities=activities(step.device.kind)) as found:
            step()
            step.wait()
    on_card = step.device.kind == "cuda"
    rows = [{"name": event.key, "calls": event.count,
             "ms": (event.self_device_time_total if on_card else event.self_cpu_time_total) / 1e3}
            for event in found.key_averages()]
    return {"step_ms": ms, "kernels": sorted(rows, key=lambda row: -row["ms"])[:KERNELS]}
