"""What each technique costs and saves here: speed, memory and loss beside the same run without it.

**Speed.** Whole runs of a few steps through the real stages, every technique and every plain run once a round, every other
round backwards, so that drift meets all alike. A run's time is the sum over its quarters of the median step (schedules have
plateaus, so one median would see one of them only) without the first steps; the speed is the median over rounds.

**Memory.** The most bytes that PyTorch's CPU allocator holds at a time in a run of its own, from the allocations that
``torch.profiler`` records: exact and the same every time. The resident set of the process is neither, since the C library
keeps freed memory and pages of shared libraries come and go. Text, Python and NumPy are not in it.

**Loss.** Held-out, after as many steps with the same seed: whether it trains, not what it is worth. That takes a budget
(``cram bench defaults``).
"""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from cram.bench.measure import attempt
from cram.bench.runs import PLAIN, Finished, bring, finish, workplace
from cram.bench.techniques_list import TECHNIQUES, Technique
from cram.telemetry import read_metrics

STEPS, WARM_UP, MEMORY_STEPS, TEACHER_STEPS = 14, 2, 3, 4
BASE = ("demo", *PLAIN, "model.layers=4", "train.batch_tokens=1024", "train.validate_every=1", "train.validation_tokens=512",
        "evaluate.tokens=8192", "telemetry.log_every=1", "schedule.warmup=0.25")
QUICK = ("tokenizer.vocab_size=512", "model.width=32", "model.heads=4", "train.batch_tokens=512")
QUICK_NAMES = ("squared ReLU", "hybrid objective", "8-bit matrix products")
VIEW = {"title": "What techniques cost and save on this machine",
        "rounds": "{repeats} round(s), in each of which every run is made once.", "panel": "Beside the plain run",
        "x": "name", "line": "way", "kind": "bars", "baseline": "plain",
        "y": [["speed", "tokens/s, ratio to plain"], ["memory", "peak memory, ratio to plain"]],
        "columns": [["technique", "name", ""], ["settings", "settings", ""], ["beside", "against", ""],
                    ["tokens/s", "tokens_per_second", ",.0f"], ["ratio", "speed", ".2f"], ["peak, MiB", "peak_mib", ".1f"],
                    ["ratio", "memory", ".2f"], ["loss", "loss", ".4f"], ["difference", "loss_difference", "+.4f"]]}
NOTES = [f"A model of four layers of the demo's width, {STEPS} steps; ratios to the same run without the technique (beside: "
         "what both have beyond the demo's settings). On a CPU: what saves memory or time on a card may not do so here.",
         "Peak memory: most bytes that PyTorch holds at a time, parameters, gradients, states and activations together.",
         "Loss: held out, one seed, a few steps: shows that it trains, not what it is worth."]
REPEATS = {"cpu": 2, "cuda": 2}
Arm = tuple[tuple[str, ...], bool]      # settings of a run, and whether it has a teacher


def plain(technique: Technique) -> Arm:
    """The run that a technique is compared with; several may share one, or be what another builds on."""
    return technique.against, False


def own(technique: Technique) -> Arm:
    return (*technique.against, *technique.settings), technique.teacher


def measure(text: tuple[str, ...], repeats: int, device: str, quick: bool, say: Callable[[str], None]) -> Iterator[list[dict]]:
    """All rows at once, the plain runs first. text: settings that name it."""
    techniques = [each for each in TECHNIQUES if not quick or each.name in QUICK_NAMES]
    with workplace(None) as work:
        base = (*BASE, *(QUICK if quick else ()), *text, f"out={work}", f"train.device={device}")
        bring((*base, "name=data"), "data")
        if any(each.teacher for each in techniques):
            bring((*base, "name=teacher", f"budget={TEACHER_STEPS} steps"), "pretrain")
        found: dict[Arm, dict[str, Any]] = {arm: {"speeds": []} for each in techniques if not each.unmeasured
                                            for arm in (plain(each), own(each))}
        say(f"techniques: {len(found)} runs a round, {repeats} round(s), and as many short ones for memory")
        for number in range(repeats):
            for place, (settings, teacher) in list(enumerate(found))[::1 if number % 2 == 0 else -1]:
                if "error" not in found[settings, teacher]:
                    _once(found[settings, teacher], (*base, *_settings(work, settings, teacher), f"seed={number}",
                                                     f"name=speed-{place}-{number}"), TEACHER_STEPS * teacher, number == 0)
            say(f"techniques: round {number + 1} of {repeats} done")
        for place, (settings, teacher) in enumerate(found):
            budget = f"budget={MEMORY_STEPS + TEACHER_STEPS * teacher} steps"
            memory = (*base, *_settings(work, settings, teacher), budget, "seed=0", f"name=memory-{place}")
            peak, error = attempt(peak_bytes, lambda: bring(memory, "pretrain"))
            found[settings, teacher] = {"peak": peak} | ({"error": error} if error else {}) | found[settings, teacher]
        yield rows(techniques, found)


def _settings(work: Path, settings: Sequence[str], teacher: bool) -> tuple[str, ...]:
    return (*settings, *([f"distill.teacher={work}/teacher/pretrain"] if teacher else []))


def _once(found: dict[str, Any], settings: tuple[str, ...], teacher_steps: int, first: bool) -> None:
    """Note the speed of a run, and the loss of the first; or why there is none. teacher_steps: are charged to the budget."""
    run, error = attempt(finish, (*settings, f"budget={STEPS + teacher_steps} steps"))
    if run is None:
        found["error"] = error
        return
    found["speeds"].append(speed(run))
    if first:
        found["loss"] = run.scores["held_out"]["loss"]


def speed(run: Finished) -> float:
    """Tokens a second: each quarter of the steps takes as long as its median step."""
    written = read_metrics(run.links / "pretrain" / "metrics.jsonl")
    steps = [row for row in written if row["kind"] == "train" and row["step"] > WARM_UP]
    seconds = [row["batch_tokens"] / row["tokens_per_second"] for row in steps]
    cuts = [round(part * len(steps) / 4) for part in range(5)]
    total = sum(statistics.median(seconds[low:high]) * (high - low) for low, high in zip(cuts, cuts[1:]) if high > low)
    return sum(row["batch_tokens"] for row in steps) / total


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most bytes of PyTorch's CPU allocator that are alive at a time while ``work`` is done, beyond those before."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        recorded.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    alive = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak


def rows(techniques: Sequence[Technique], found: Mapping[Arm, dict[str, Any]]) -> list[dict]:
    """The plain runs, then every technique beside its own."""
    measured = [each for each in techniques if not each.unmeasured]
    made = [_row(f"plain {' '.join(arm[0])}".strip(), (), arm[0], "plain", found[arm], found[arm])
            for arm in dict.fromkeys(map(plain, measured))]
    for each in techniques:
        if each.unmeasured:
            made.append({"name": each.name, "settings": " ".join(each.settings), "way": "technique", "against": "",
                         "remark": each.unmeasured})
        else:
            made.append(_row(each.name, each.settings, each.against, "technique", found[own(each)], found[plain(each)]))
    return made


def _row(name: str, settings: Sequence[str], against: Sequence[str], way: str, run: dict, beside: dict) -> dict[str, Any]:
    row = {"name": name, "settings": " ".join(settings), "against": " ".join(against), "way": way}
    error: Optional[str] = run.get("error") or beside.get("error")
    if error:
        return row | {"error": error}
    pace, base = statistics.median(run["speeds"]), statistics.median(beside["speeds"])
    return row | {"tokens_per_second": pace, "speed": pace / base, "peak_mib": run["peak"] / 2**20,
                  "memory": run["peak"] / beside["peak"], "loss": run["loss"], "loss_difference": run["loss"] - beside["loss"]}
