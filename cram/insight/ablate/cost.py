"""What an ablation will cost, before it starts: runs, their budgets, and seconds estimated from a step tried here.

A step of every arm is tried on made-up tokens, without text; validations and the evaluation are counted as forward passes, a
third of that each, and a second or two a run besides. It is an estimate: a busy machine takes longer, growing batches and rows
cost otherwise.
"""

from __future__ import annotations

import statistics
import time
from typing import Callable, Sequence

from cram.errors import CramError
from cram.insight.ablate.question import Question
from cram.insight.ablate.trials import Trial

NAMED_SPEED = 3e10      # FLOP/s of the demo on one CPU core of 2020 or later: for lists, where nothing is measured
ASIDE = 1.5             # seconds a run besides: loading, the first step, writing
HELD_OUT = 100_000      # tokens that a small corpus holds out, at a guess
TRIES = 3


def planned(question: Question) -> str:
    """The runs and what they cost in the budget's unit, with seconds at a named speed: one line, nothing is measured."""
    factors = [arm.factor for arm in question.arms] + [
        factor for factor in question.ladder if factor not in {arm.factor for arm in question.arms if not arm.settings}]
    runs, amount = question.seeds * len(factors), question.seeds * sum(factors) * question.budget.amount
    told = f"{runs} runs, {question.budget.show(amount)}"
    if question.budget.kind == "flops":
        told += f", about {minutes(amount / NAMED_SPEED + runs * ASIDE)} on a CPU core"
    return told


def minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def estimate(question: Question, made: Sequence[Trial], jobs: int, say: Callable[[str], None]) -> float:
    """Seconds that these runs will take, said and returned (0 where nobody can say). Time budgets take what they say;
    for others a step is tried, but for runs made for a card where there is none: they might not fit into memory."""
    from cram.budget import Budget

    amounts = {trial.links: Budget.parse(trial.budget).amount for trial in made}
    if question.budget.kind == "time":
        seconds = sum(amounts.values()) + ASIDE * len(made)
        say(f"cost: {len(made)} runs, {minutes(sum(amounts.values()))} charged, one after the other")
        return seconds
    from cram.device import device_kind
    if question.size == "card" and device_kind(question.baseline.config.train) != "cuda":
        say(f"cost: {len(made)} runs, {question.budget.show(sum(amounts.values()))} in all; how long that takes is not tried "
            "here: there is no card")
        return 0.0
    rates = {}
    for arm in question.arms:
        try:
            rates[arm.name] = step_cost(arm.config, question.budget.kind)
        except (CramError, RuntimeError) as error:
            say(f"{arm.name}: a step of it fails here ({' '.join(str(error).split())})")
    known = tuple(map(statistics.mean, zip(*rates.values()))) if rates else (0.0, 0.0)
    seconds = 0.0
    for trial in made:
        unit, looks = rates.get(trial.arm, known)
        seconds += (amounts[trial.links] * unit + looks + ASIDE) / jobs
    total = question.budget.show(sum(amounts.values()))
    say(f"cost: {len(made)} runs, {total} in all; about {minutes(seconds)}{f' with --jobs {jobs}' if jobs > 1 else ''}, "
        "estimated from a step of each arm tried here, text not counted")
    return seconds


def step_cost(config, kind: str) -> tuple[float, float]:
    """Seconds for one unit of a budget of this kind (a FLOP, a token or a step), and for all looks at held-out text, from steps
    on made-up tokens. Torch's number of threads and its random state are put back."""
    import torch

    from cram.device import choose_device, keep_freed_memory
    from cram.learner import Learner
    from cram.parallel import World

    threads, deterministic, state = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_rng_state()
    try:
        torch.set_num_threads(config.train.threads or threads)
        device = choose_device(config.train)
        if device.kind == "cpu":
            keep_freed_memory()
        learner = Learner(config, device, World.start(config.train, device.kind), config.tokenizer.vocab_size)
        seconds, tokens, flops = _step(learner, config)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_rng_state(state)
    train, looked_at = config.train, min(config.evaluate.tokens, HELD_OUT)
    looked_at += (1 / train.validate_every - 1) * train.validation_tokens
    return seconds / {"steps": 1, "tokens": tokens, "flops": flops}[kind], looked_at * seconds / tokens / 3


def _step(learner, config) -> tuple[float, int, float]:
    """(seconds, tokens, FLOPs) of an optimizer step, the best of some."""
    import torch

    from cram.objective import predicted_fraction, step_kinds
    from cram.ops import Documents
    from cram.sizing import choose_micro_batch

    shape, row = learner.shape, learner.shape.row
    micro = choose_micro_batch(learner, config, 1)
    kinds = step_kinds(config.objective, 0, max(1, shape.tokens // micro))
    device, best = learner.device.kind, float("inf")
    ids_N = torch.arange(micro, device=device) % learner.model.vocab_size
    start_N = torch.arange(micro, device=device, dtype=torch.int32) // row * row
    for _ in range(TRIES):
        began = time.perf_counter()
        for causal in kinds:
            hidden = round(micro * predicted_fraction(causal, shape.mask_rate, row))
            positions_K, labels_K = None if causal else torch.arange(hidden, device=device), ids_N[:hidden]
            with learner.device.autocast():
                total, _ = learner.loss.forward(ids_N, Documents(start_N, start_N + row, row), positions_K, labels_K, causal)
            if learner.optimizers.fused:
                learner.optimizers.before_backward(torch.ones((), device=device))
            (total / micro).backward()
        learner.update(torch.ones((), device=device))
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best, micro * len(kinds), learner.flops(shape, kinds)
