"""One record of one step: timed by turns, then once more operation by operation, beside what the machine can do."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Callable, Optional

import torch

from cram.bench.measure import environment
from cram.bench.step import switches_of_training
from cram.device import choose_device, is_out_of_memory
from cram.errors import CramError
from cram.insight.profile.advice import candidates, improvements
from cram.insight.profile.assemble import by_module, by_operation, flops_account
from cram.insight.profile.clock import fastest, time_steps, watching
from cram.insight.profile.machine import better, measure_machine
from cram.insight.profile.memory import Storages
from cram.insight.profile.operations import Cost, Key, Operations
from cram.insight.profile.step import Step, prepared, refuse, text_of_the_run
from cram.insight.profile.traced import compiled_step, write_trace
from cram.insight.profile.watch import LOOKING, PHASES, Label
from cram.objective import predicted_fraction

SCHEMA = 1
CLOSE = 0.05  # so near to the step the sum of its modules should come
LOOKS = 3  # at the operations of a step: of each the quickest counts


def profile(config, *, progress: float, steps: int, trace: Optional[Path], say: Callable[[str], None],
            thread_time: bool = False) -> dict:
    """The record, ready for JSON. steps: that nobody looks at, and as many that are timed. Writes the trace when asked.
    thread_time: not the wall's time but what one thread has computed.

    Raises CramError for what cannot be profiled, and when memory runs out.
    """
    refuse(config, progress, steps, thread_time)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, workers=1))  # modules are watched in one thread
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = choose_device(config.train)
    text, said = text_of_the_run(config)
    with switches_of_training(config.train, device):
        say(f"{device.name}; text: {said}")
        try:
            with prepared(config, text, progress, clock="thread" if thread_time else None) as step:
                record = look(step, steps)
                if trace is not None:
                    write_trace(step, trace)
                    say(f"trace: {trace} (open it in ui.perfetto.dev)")
                wanted = step.wanted
            record["compiled"] = compiled_step(config, text, progress, steps, step.clock) if wanted else None
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise CramError(f"out of memory: set a smaller train.micro_batch_tokens or train.batch_tokens, or a smaller model "
                            f"({config.name})") from error
    return {"schema": SCHEMA, "what": "profile", "name": config.name, "environment": environment(device.kind),
            "text": said, "progress": progress, **record, "doubts": doubts(record)}


def doubts(record: dict) -> list[str]:
    """What speaks against these figures, to be said aloud: neighbours on the processor, parts that do not add up."""
    said, looking = [], record["step"]["looking"]
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if record["step"]["clock"] == "cpu" and load - torch.get_num_threads() > 0.5 and load > 0.75 * cores:
        said.append(f"The machine was busy (load average {load:.1f} on {cores} cores): times are longer, and shares of its "
                    "limits smaller, than on an idle one.")
    if abs(looking) > CLOSE:
        said.append(f"The modules add up to {looking:+.1%} of the step, more than {CLOSE:.0%} away: take more --steps, or a "
                    "quieter machine.")
    return said


def look(step: Step, steps: int) -> dict:
    """All that is measured of a step."""
    machine = measure_machine(step.device, step.clock)
    plain, looked_at = time_steps(step, steps)
    seconds, times = fastest(plain, looked_at)
    costs, storages, micro_batches, allocator = operations(step)
    machine = better(machine, measure_machine(step.device, step.clock))
    pairs, facts = step.needed_pairs(micro_batches), facts_of(step)
    computed = sum(len(micro.ids_N) for micro in micro_batches) * step.shape.row
    facts["needed"] = 1.0 if facts["backend"] in ("triton", "varlen") else pairs / computed
    flops = flops_of(step, costs, pairs)
    modules, table = by_module(times, costs, storages.kept), by_operation(costs, machine, facts["needed"])
    total, formula = sum(times.values()), flops[-1]["formula"]
    peak = machine.sheet_flops or machine.flops
    return {
        "step": {"plain_ms": 1e3 * seconds, "sum_ms": 1e3 * total, "looking": total / seconds - 1, "steps": steps,
                 "clock": step.clock,
                 "ms": {phase: 1e3 * sum(t for label, t in times.items() if label.phase == phase) for phase in PHASES},
                 "tokens": step.shape.tokens, "tokens_per_second": step.shape.tokens / seconds,
                 "mfu": formula / seconds / peak, "hardware_flops_utilisation": flops[-1]["counted"] / seconds / peak},
        "setting": facts, "machine": machine._asdict(), "modules": modules,
        "layers": by_module(times, costs, storages.kept, layers=True), "operations": table, "flops": flops,
        "memory": memory_of(step, storages, allocator),
        "improvements": improvements(candidates(modules, table, facts["needed"]), 1e3 * total, facts)}


def operations(step: Step, looks: int = LOOKS) -> tuple[dict[Key, Cost], Storages, list, Optional[int]]:
    """The costs of a step's operations, of each the least seconds of a few looks; its storages, its micro-batches, and a card's
    own count of its peak bytes."""
    costs: dict[Key, Cost] = {}
    for _ in range(looks):
        storages = Storages(step.at_rest())
        if step.device.kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with watching(step, storages.switched) as watch, Operations(watch, storages, step.clock) as seen:
            watch.turn(Label("forward", "rest"))
            micro_batches = step(prefetch=False)
            watch.turn(LOOKING)
        step.wait()
        seen.settle()
        for key, cost in seen.costs.items():
            cost.seconds = min(cost.seconds, costs[key].seconds) if key in costs else cost.seconds
        costs = dict(seen.costs)
    return costs, storages, micro_batches, step.device.memory()


def facts_of(step: Step) -> dict:
    """What the step is, for the page and for advice."""
    config, shape = step.config, step.shape
    masked = [kind for kind in step.kinds if not kind]
    predicted = sum(predicted_fraction(kind, shape.mask_rate, shape.row) for kind in step.kinds) / len(step.kinds)
    return {"device": step.device.kind, "device_name": step.device.name,
            "precision": str(step.device.dtype).removeprefix("torch."), "compiled": step.wanted,
            "parameters": step.learner.model.parameter_count(), "vocabulary": step.learner.model.vocab_size,
            "objective": config.objective.type, "masked": bool(masked), "predicted": predicted,
            "batch_tokens": shape.tokens, "micro_tokens": step.micro_tokens, "row": shape.row, "blocks": shape.layers,
            "head_dim": config.model.width // config.model.heads,
            "backend": step.learner.model.backend, "loss": config.train.loss, "recompute": config.train.recompute}


def flops_of(step: Step, costs: dict[Key, Cost], pairs: int) -> list[dict]:
    """FLOPs counted beside the formula's, which is split as ``Transformer.flops_per_token`` makes it up."""
    model, shape, tokens = step.learner.model, step.shape, step.shape.tokens
    width, kinds = step.config.model.width, step.kinds
    seen = min(shape.row, 2 * shape.window + 1) if shape.window else shape.row
    attention = sum(12 * shape.layers * width * seen * (0.5 if kind else 1.0) for kind in kinds) / len(kinds) * tokens
    head = 6 * width * model.vocab_size * tokens * sum(
        predicted_fraction(kind, shape.mask_rate, shape.row) for kind in kinds) / len(kinds)
    return flops_account(costs, step.learner.flops(shape, kinds), attention, head, 12 * shape.layers * width * pairs)


def memory_of(step: Step, storages: Storages, allocator: Optional[int]) -> dict:
    """Bytes: at rest by kind, the most that lived in each phase, and a card's own count."""
    learner = step.learner
    averages = sum(x.nbytes for x in learner.ema.averages.values()) if learner.ema is not None else 0
    weights = sum(p.nbytes for p in learner.model.parameters())
    return {"weights": weights, "optimizer": learner.optimizers.memory(), "averages": averages, "at_rest": storages.rest,
            "peak": {phase: storages.peak[phase] for phase in PHASES if phase in storages.peak},
            "kept_for_backward": sum(storages.kept.values()), "allocator_peak": allocator}
