"""From labels and operations to tables: by module, by block, by operation; FLOPs counted beside the formula's."""

from __future__ import annotations

from collections import defaultdict
from typing import Callable, Mapping

from cram.insight.profile.machine import Machine
from cram.insight.profile.operations import Cost, Key
from cram.insight.profile.watch import ATTENTION, HEAD, PHASES, TEACHER, VIEW, Label

LINEAR = ("qkv projection", "output projection", "mlp up, gate", "mlp down", "value embedding")
ORDER = ("batch", VIEW, "embedding", "embedding norm", "norm", "qkv projection", "value embedding", ATTENTION,
         "output projection", "mlp up, gate", "activation", "mlp down", "residual", "final norm", HEAD, TEACHER, "rest",
         "gradient clip")  # as data flows; what is not named here (the optimizers) comes behind


def by_module(times: Mapping[Label, float], costs: Mapping[Key, Cost], kept: Mapping[Label, int],
              layers: bool = False) -> list[dict]:
    """A row a module (layers: and block): milliseconds, FLOPs and bytes of each phase, bytes kept for the backward pass."""
    def name(label: Label) -> tuple:
        return (label.module, label.layer) if layers else (label.module, None)

    rows: dict[tuple, dict] = {}

    def row(label: Label) -> dict:
        module, layer = name(label)
        fresh = {"module": module} | ({"layer": layer} if layers else {})
        return rows.setdefault((module, layer), fresh | {"ms": defaultdict(float), "flops": defaultdict(int),
                                                         "bytes": defaultdict(int), "kept_bytes": 0})
    for label, seconds in times.items():
        row(label)["ms"][label.phase] += 1e3 * seconds
    for key, cost in costs.items():
        row(key.label)["flops"][key.label.phase] += cost.flops
        row(key.label)["bytes"][key.label.phase] += cost.bytes
    for label, size in kept.items():
        row(label)["kept_bytes"] += size
    for each in rows.values():
        each["total_ms"] = sum(each["ms"].values())
        for what in ("ms", "flops", "bytes"):
            each[what] = {phase: each[what][phase] for phase in PHASES if each[what].get(phase)}
    return [rows[key] for key in sorted(rows, key=_place)]


def _place(key: tuple) -> tuple:
    """Where a row stands: what comes before the blocks, the blocks one by one, what comes after them."""
    module, layer = key
    at = ORDER.index(module) if module in ORDER else len(ORDER)
    between = ORDER.index("norm") <= at <= ORDER.index("residual")
    return (0 if at < ORDER.index("norm") else 1 if between else 2, -1 if layer is None else layer, at, module)


def by_operation(costs: Mapping[Key, Cost], machine: Machine, needed: float) -> list[dict]:
    """A row for each phase, module and kind of operation, slowest first: what limits it, and how near it comes.

    needed: share of attention's FLOPs that documents ask for. floor_ms: what the machine's limits allow; attained: its share
    of the time taken. intensity: FLOPs a byte, with an estimate of one FLOP a number where flop_counter counts none.
    """
    groups: dict[tuple, Cost] = defaultdict(Cost)
    floors: dict[tuple, float] = defaultdict(float)
    for key, cost in costs.items():
        group = key.label.module, key.label.phase, key.kind
        groups[group].add(cost)
        floors[group] += machine.floor(cost.flops * (needed if key.kind == "attention" else 1.0), cost.bytes)
    rows = []
    for (module, phase, kind), cost in groups.items():
        work, floor = cost.flops or cost.elementwise, min(floors[module, phase, kind], cost.seconds)  # a cache may do better
        rows.append({"module": module, "phase": phase, "kind": kind, "calls": cost.calls, "ms": 1e3 * cost.seconds,
                     "flops": cost.flops, "elementwise": cost.elementwise, "bytes": cost.bytes, "floor_ms": 1e3 * floor,
                     "bound": machine.bound(cost.calls, cost.flops, cost.bytes),
                     "intensity": work / cost.bytes if cost.bytes else None,
                     "flops_per_second": work / cost.seconds if cost.seconds else None,
                     "attained": floor / cost.seconds if cost.seconds else None})
    return sorted(rows, key=lambda row: -row["ms"])


def flops_account(costs: Mapping[Key, Cost], formula: float, attention: float, head: float, needed_attention: float
                  ) -> list[dict]:
    """FLOPs counted, beside those of ``Transformer.flops_per_token``: total and its parts for attention and head; the rest are
    linear layers. needed_attention: of the pairs that see each other alone, three times the forward pass."""
    def counted(chosen: Callable[[Key], bool]) -> int:
        return sum(cost.flops for key, cost in costs.items() if chosen(key))

    model = ("forward", "backward")
    parts = [
        {"part": "linear layers", "formula": formula - attention - head,
         "counted": counted(lambda key: key.label.phase in model and key.label.module in LINEAR),
         "why": "2 a weight and token forward, 4 backward"},
        {"part": "attention", "formula": attention, "needed": needed_attention,
         "counted": counted(lambda key: key.label.phase in model and key.kind == "attention"),
         "why": "formula: whole rows, half of them when causal; counted: what the back end computes (sdpa with a mask: whole "
                "rows; a fused backward pass makes the scores once more, 5 products and not 4); needed: pairs that see each "
                "other"},
        {"part": "head", "formula": head, "counted": counted(lambda key: key.label.phase in model and key.label.module == HEAD),
         "why": "at the predicted positions only"},
        {"part": "recomputation", "formula": 0.0, "counted": counted(lambda key: key.label.phase == "recompute"),
         "why": "no part of the model, so no part of the formula"},
        {"part": "optimizer", "formula": 0.0, "counted": counted(lambda key: key.label.phase == "optimizer"),
         "why": "Muon's matrix products; the formula counts the model alone"}]
    told, total = sum(part["counted"] for part in parts), counted(lambda key: True)
    parts.append({"part": "other", "formula": 0.0, "counted": total - told, "why": "whatever is left, a teacher for one"})
    return parts + [{"part": "step", "formula": formula, "counted": total, "why": "", "needed": None}]
