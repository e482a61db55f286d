"""A plan in words: what, how much, and whence we know."""

from __future__ import annotations

from typing import Optional

from cram.budget import Budget
from cram.insight.plan.cards import MFU, Card
from cram.insight.plan.costs import CARD_DISK, CARD_GRAPH, CARD_SETUP, Costs
from cram.insight.plan.expected import Expected
from cram.insight.plan.plan import Plan
from cram.insight.plan.text import Text

TIME = Budget("time", 1.0, "")
ASSUMED = "assumed, not measured"


def rows(plan: Plan, costs: Costs, text: Text, expected: Expected, card: Optional[Card], usd: Optional[float],
         usd_source: str, kwh: Optional[float]) -> list[tuple[str, str, str]]:
    """(what, how much, whence) in order."""
    legs, batch = plan.legs, sorted({leg.shape.tokens for leg in plan.legs})
    speed = plan.tokens / plan.account["steps"] if plan.steps else 0.0
    whence = f"measured, {costs.steps} steps"
    if card is not None:
        whence = f"MFU {MFU[1]:.0%} of {card.peak / 1e12:.0f} TFLOP/s, {ASSUMED}"
    changes = [f"{name} {values[0]:g} to {values[-1]:g}" for name, values in (
        ("row", [leg.shape.row for leg in legs]), ("mask rate", [leg.shape.mask_rate for leg in legs]),
        ("window", [leg.shape.window or leg.shape.row for leg in legs]), ("layers", [leg.shape.layers for leg in legs]))
        if len(set(values)) > 1]
    found = [
        ("model", f"{plan.parameters:,} parameters", f"{plan.inner_parameters:,} without tables"),
        ("compute", f"{plan.flops:.3g} FLOPs", f"{plan.flops / plan.tokens:.3g} a token" if plan.tokens else ""),
        ("speed", f"{speed:,.0f} tokens/s", whence),
        ("micro-batch", f"{plan.micro_tokens:,} tokens", "the largest that fits by the sum of parts" if card else ""),
        ("steps", f"{plan.steps:,}", " ".join([f"of {batch[0]:,}" + (f" to {batch[-1]:,}" if len(batch) > 1 else "") + " tokens"
                                               if batch else "", *changes])),
        ("tokens", f"{plan.tokens:,}" + _span(plan, 0), _epochs(plan, text)),
        ("time", TIME.show(plan.seconds) + _span(plan, 1), ", ".join(
            f"{name} {seconds:,.1f} s" for name, seconds in plan.account.items() if seconds >= 0.05)),
        ("teacher", Budget.parse(plan.budget).show(plan.teacher), "charged to the budget first, by its ledger; not in the rows "
                                                                  "above and below") if plan.teacher else None,
        ("memory", _size(sum(plan.memory.values())),
         ", ".join(f"{name} {_size(size)}" for name, size in plan.memory.items() if size >= 2**16)
         + " (eager code; compiled keeps less)" * (costs.kind == "cuda")),
        ("", _size(costs.peak_bytes), "measured: what the process grew by, its workspace included") if costs.peak_bytes
        else None,
        ("disk", _size(sum(plan.disk.values())), ", ".join(f"{name} {_size(size)}" for name, size in plan.disk.items() if size)
         + ("" if text.exact else " (text estimated)" if text.disk else " (text unknown)")),
        ("energy", "unknown" if kwh is None else f"{kwh:,.3g} kWh", "no meter here" if kwh is None else
         "measured power" if plan.measured else "at the card's design power, the most it draws; the machine around it comes "
                                                "on top"),
        ("cost", "unknown" if usd is None else f"${plan.seconds / 3600 * usd:,.2f}", usd_source),
        ("loss", "unknown" if expected.loss is None else f"{expected.loss:.3f} [{expected.low:.3f}, {expected.high:.3f}]",
         expected.told.removeprefix("unknown: "))]
    return [row for row in found if row is not None]


def lines(plan: Plan, found: list[tuple[str, str, str]], costs: Costs) -> list[str]:
    """What is printed."""
    told = [f"plan of {plan.name}: {plan.budget} on {plan.device}; preparing text and evaluation cost no budget"]
    told += [f"  {what:<12} {value}" + (f"    {note}" if note else "") for what, value, note in found]
    if not plan.measured:
        told.append(f"  assumed      MFU {MFU[0]:.0%} to {MFU[2]:.0%}; setup {CARD_SETUP:.0f} s, compiling {CARD_GRAPH:.0f} s "
                    f"a shape, checkpoints at {CARD_DISK / 1e9:.0f} GB/s; on the card itself, cram plan measures")
    told += [f"  note         {remark}" for remark in costs.remarks]
    return told + [f"warning: {warning}" for warning in plan.warnings]


def _span(plan: Plan, part: int) -> str:
    """The range of a plan on an assumed card: of tokens (0) under a time budget, of seconds (1) under another."""
    if plan.slow is None or plan.fast is None or plan.slow[part] == plan.fast[part]:
        return ""
    low, high = sorted((plan.slow[part], plan.fast[part]))
    if Budget.parse(plan.budget).kind == "time":
        return f" ({low:,.3g} to {high:,.3g})" if part == 0 else ""
    return f" ({TIME.show(low)} to {TIME.show(high)})" if part == 1 else ""


def _epochs(plan: Plan, text: Text) -> str:
    if plan.epochs is None:
        return f"epochs {text.told}"
    return f"{plan.epochs:.2f} epochs of {text.tokens:,}, {text.told}"


def _size(size: float) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
