"""What each shipped configuration would buy on this machine."""

from __future__ import annotations

from typing import Callable, Iterator, Optional

from cram.config import load
from cram.errors import CramError
from cram.insight.doctor.checks import NOTE, OK, WARNING, Finding
from cram.insight.plan.cards import CARDS
from cram.insight.plan.costs import Costs, of_card
from cram.insight.plan.plan import Plan, make_plan
from cram.insight.plan.text import find_text
from cram.insight.plan.walk import outline_of

PRESETS = ("demo", "demo_gpt", "bert_day", "gpt_day", "cramming2022")
REFERENCE = "H100"
FEW = 1.0               # tokens a parameter, below which a model hardly learns


def judge(settings: list[str], seconds: float, measure: Callable[..., Costs], names=PRESETS) -> Iterator[Finding]:
    """A finding for each configuration. settings: ``key=value`` for all, such as out=; seconds: of measuring, each; measure: as
    ``cram.insight.plan.measuring.measure``."""
    for name in names:
        config = load(name, settings)
        try:
            costs = measure(config, seconds)
            text = find_text(config)
            outline = outline_of(config, text.vocab_size)
            yield judge_plan(make_plan(config, outline, costs, text), costs, _as_reference(config, outline, text))
        except CramError as error:
            yield Finding(WARNING, name, str(error), f"from a data sheet: cram plan {name} --gpu {REFERENCE}")


def _as_reference(config, outline, text) -> Optional[Plan]:
    """The plan on the reference card; None for configurations that are made for the CPU."""
    if config.data.source == "installed-docs":
        return None
    return make_plan(config, outline, of_card(config, outline, CARDS[REFERENCE]), text)


def judge_plan(plan: Plan, costs: Costs, reference: Optional[Plan]) -> Finding:
    """What a plan says about a machine."""
    each = plan.tokens / plan.parameters
    told = (f"{plan.budget} buys {plan.tokens:,.3g} tokens in {plan.steps:,} steps, {each:,.1f} a parameter; memory "
            f"{sum(plan.memory.values()) / 2**30:.2f} GiB, disk {sum(plan.disk.values()) / 1e9:.1f} GB")
    if reference is not None and plan.account["steps"] > 0 and plan.flops > 0:
        days = reference.flops / (plan.flops / plan.account["steps"]) / 86400
        told += f"; what the day buys on an {REFERENCE} (assumed) takes {days:,.1f} days here"
    if each < FEW:
        return Finding(WARNING, plan.name, told, "too little to learn from: the demo fits this machine, a card fits the day")
    if plan.warnings:
        return Finding(NOTE, plan.name, told, f"{plan.warnings[0]} (cram plan {plan.name} says all)")
    return Finding(OK, plan.name, told)
