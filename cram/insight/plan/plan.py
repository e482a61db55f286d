"""The plan of a run: what its budget buys, from the costs of things; pure arithmetic."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field
from typing import Any, Optional

from cram.budget import Budget
from cram.checkpoint import most_bytes
from cram.insight.plan.costs import Costs
from cram.insight.plan.memory import memory
from cram.insight.plan.text import Text, disk_folder
from cram.insight.plan.walk import Leg, Outline, walk
from cram.learner import teacher_bill
from cram.objective import step_kinds
from cram.shapes import shape_at
from cram.sizing import refuse_hasty_compilation
from cram.errors import CramError

EPOCHS = 4              # repeated so often, text is nearly as good as new (Muennighoff et al. 2023, section 6)
FEW_STEPS = 200
NOMINAL = 0.9           # of a device's memory that may be filled, as cram.device.largest_micro_batch has it


@dataclass
class Plan:
    """What is foreseen of a run. seconds: charged, of the whole run; account: by what they go to; memory, disk: bytes by part.

    teacher: what its ledger takes of the budget first, in the budget's unit; not in the rest.
    ``fast`` and ``slow`` are (tokens, seconds) at the ends of an assumed range, None for what was measured.
    """

    name: str
    budget: str
    device: str
    measured: bool
    parameters: int
    inner_parameters: int
    micro_tokens: int
    steps: int
    tokens: int
    flops: float
    seconds: float
    account: dict[str, float]
    memory: dict[str, int]
    disk: dict[str, int]
    legs: list[Leg] = field(repr=False)
    epochs: Optional[float] = None
    fast: Optional[tuple[int, float]] = None
    slow: Optional[tuple[int, float]] = None
    teacher: float = 0.0
    warnings: list[str] = field(default_factory=list)


def make_plan(config, outline: Outline, costs: Costs, text: Text, free_disk: Optional[int] = None) -> Plan:
    """The plan. free_disk: bytes, None to ask. Raises CramError for a teacher's ledger that will not do."""
    budget = Budget.parse(config.budget)
    left = _left_by_teacher(config, budget)
    legs, account = spend(config, outline, costs, text, budget, left)
    tokens = sum(leg.tokens for leg in legs)
    parts = memory(config, outline.model.vocab_size, costs.micro_tokens, costs.precision)
    disk = {"checkpoints": (config.train.keep_checkpoints + 1) * most_bytes(outline.model, config), **text.disk}
    plan = Plan(config.name, config.budget, costs.device, costs.measured, outline.parameters, outline.inner_parameters,
                costs.micro_tokens, sum(leg.steps for leg in legs), tokens, sum(leg.flops for leg in legs),
                sum(account.values()),
                account, parts, disk, legs, tokens / text.tokens if text.tokens else None, teacher=budget.amount - left)
    free = shutil.disk_usage(disk_folder(config)).free if free_disk is None else free_disk
    plan.warnings = _warnings(config, costs, plan, budget, free)
    return plan


def _left_by_teacher(config, budget: Budget) -> float:
    """What remains of the budget, in its unit, once the teacher's ledger is paid. CramError for a ledger that will not do."""
    bill = teacher_bill(config)
    return budget.amount - (0.0 if bill is None else bill.seconds if budget.kind == "time" else getattr(bill, budget.kind))


def spend(config, outline: Outline, costs: Costs, text: Text, budget: Budget,
          amount: float) -> tuple[list[Leg], dict[str, float]]:
    """(legs, seconds by what they go to) of ``amount`` of the budget's unit.

    Under a time budget what lies beside the steps makes each step as much dearer, so that it moves progress as it will.
    """
    train, start = config.train, costs.setup + costs.compile + costs.save
    looks = max(0, math.ceil(1 / train.validate_every - 1e-9) - 1)
    share = min(1.0, text.held_out / train.validation_tokens) if text.held_out else 1.0
    if budget.kind == "time":  # a look as dear as many steps is taken at every step, until there is no room for one
        first = shape_at(0.0, config, costs.micro_tokens)
        turn = share * costs.validation + costs.step(first, outline.flops(first, step_kinds(
            config.objective, 0, first.tokens // costs.micro_tokens)))
        looks = min(looks, int(max(amount - start, 0.0) / turn))
    looking, beside, legs, seconds = looks * share * costs.validation, 0.0, [], 0.0
    for _ in range(3):  # how many checkpoints there will be depends on how long it takes, and that on them
        if budget.kind == "time":
            reserve = train.reserve if train.reserve is not None else 2 * costs.save + min(0.2 + 0.004 * budget.amount, 10.0)
            room = amount - start - reserve
            dearer = room / (room - beside) if beside < room else math.inf
            legs = [] if math.isinf(dearer) else walk(
                config, outline, costs.micro_tokens, amount, lambda shape, flops: dearer * costs.step(shape, flops), start,
                reserve)
        else:
            unit = {"tokens": lambda shape, flops: shape.tokens, "flops": lambda shape, flops: flops,
                    "steps": lambda shape, flops: 1}[budget.kind]
            legs = legs or walk(config, outline, costs.micro_tokens, amount, unit)
        seconds = sum(leg.steps * costs.step(leg.shape, leg.flops / leg.steps) for leg in legs)
        beside = looking + _saves(train, costs.save, sum(leg.steps for leg in legs), seconds) * costs.save
    account = {"setup": costs.setup, "compile": costs.compile, "steps": seconds, "validation": looking if legs else 0.0,
               "saving": (beside - looking + 2 * costs.save) if legs else costs.save}
    return legs, account


def _saves(train, each: float, steps: int, seconds: float) -> int:
    """Checkpoints between the first and the last, as ``Pace.save_is_due`` has them."""
    if train.checkpoint_every_steps is not None:
        return max(0, math.ceil(steps / train.checkpoint_every_steps) - 1)
    every = train.checkpoint_every if train.checkpoint_every is not None else min(max(100 * each, 10.0), 600.0)
    return int(seconds / every)


def add_range(plan: Plan, config, outline: Outline, costs: Costs, text: Text, low: float, high: float) -> None:
    """The plan's range for steps of ``low`` and ``high`` times the expected speed."""
    budget = Budget.parse(config.budget)
    for name, factor in (("slow", low), ("fast", high)):
        legs, account = spend(config, outline, costs.faster(factor), text, budget,
                              _left_by_teacher(config, budget))
        setattr(plan, name, (sum(leg.tokens for leg in legs), sum(account.values())))


def _warnings(config, costs: Costs, plan: Plan, budget: Budget, free_disk: int) -> list[str]:
    """What speaks against starting this run as it is, each with its remedy."""
    told, train = [], config.train
    try:
        refuse_hasty_compilation(config, costs.kind)
    except CramError as error:
        told.append(f"it will be refused: {error}")
    if not plan.steps:
        paid = f", of which the teacher's ledger takes {budget.show(plan.teacher)}," if plan.teacher else ""
        told.append(f"budget too short: {config.budget}{paid} is not enough for one step of {train.batch_tokens:,} tokens; "
                    "give it more, or a smaller train.batch_tokens or model")
    elif plan.steps < FEW_STEPS:
        rows = train.batch_tokens * plan.steps / (2 * FEW_STEPS) / train.sequence_length
        smaller = max(1, round(rows)) * train.sequence_length
        hint = f"train.batch_tokens={smaller} makes more of it" if smaller < train.batch_tokens else "give it more"
        told.append(f"budget too short, or batch too large for it: {plan.steps} steps; {hint}")
    if budget.kind == "time" and plan.steps and plan.account["steps"] < 0.8 * plan.seconds:
        told.append(f"only {plan.account['steps'] / plan.seconds:.0%} of the time goes to steps; a longer budget wastes less")
    if plan.epochs is not None and plan.epochs > EPOCHS:
        told.append(f"the text is read {plan.epochs:.1f} times; beyond {EPOCHS} epochs repeated text is worth ever less "
                    "(Muennighoff et al. 2023); bring more text, or a smaller budget")
    total = sum(plan.memory.values())
    if costs.memory_bytes is not None and total > NOMINAL * costs.memory_bytes:
        told.append(f"memory: {total / 2**30:.1f} GiB, more than nine tenths of the {costs.memory_bytes / 2**30:.1f} GiB there "
                    "are; smaller train.micro_batch_tokens, or train.recompute=full")
    if sum(plan.disk.values()) > free_disk:
        told.append(f"disk: up to {sum(plan.disk.values()) / 1e9:.1f} GB, {free_disk / 1e9:.1f} GB are free; choose another "
                    "with out=...")
    return told


def to_record(plan: Plan, **more: Any) -> dict[str, Any]:
    """JSON-ready."""
    values = {name: value for name, value in vars(plan).items() if name != "legs"}
    return {**values, **more, "legs": [{"steps": leg.steps, "tokens": leg.tokens, "flops": leg.flops,
                                        "batch_tokens": leg.shape.tokens,
                                        "row": leg.shape.row, "mask_rate": leg.shape.mask_rate, "window": leg.shape.window,
                                        "layers": leg.shape.layers} for leg in plan.legs]}
