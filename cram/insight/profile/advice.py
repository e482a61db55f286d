"""The three largest things to improve: where a step spends most above what its FLOPs and bytes allow, and which switch of
cram, if any, addresses it.

A gain is the time above the roofline's bound, so the most that could be won, not a promise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cram.insight.profile.watch import ATTENTION, HEAD, TEACHER

RECOMPUTATION = "recomputation"
OPTIMIZERS = ("Muon", "AdamW", "AdaLomo", "OffloadedAdamW", "SkippableAdamW8bit", "gradient clip", "guard, averages")
CAUSES = ("overhead", "unneeded", "memory", "compute")


@dataclass
class Candidate:
    """Milliseconds that a module takes, and those that its work needs at least; causes: milliseconds above, by CAUSES."""

    module: str
    ms: float
    floor_ms: float
    causes: dict[str, float] = field(default_factory=dict)

    @property
    def gain_ms(self) -> float:
        return max(self.ms - self.floor_ms, 0.0)

    @property
    def cause(self) -> str:
        return max(self.causes, key=self.causes.__getitem__) if self.causes else "overhead"


def candidates(modules: list[dict], operations: list[dict], needed: float) -> list[Candidate]:
    """One a module, and one for all recomputation. modules, operations: rows of ``assemble``; needed: share of attention's
    FLOPs that documents ask for."""
    found = []
    for row in modules:
        ms = row["total_ms"] - row["ms"].get("recompute", 0.0)
        own = [each for each in operations if each["module"] == row["module"] and each["phase"] != "recompute"]
        busy = sum(each["ms"] for each in own)
        causes = dict.fromkeys(CAUSES, 0.0) | {"overhead": max(ms - busy, 0.0)}
        for each in own:
            above = max(each["ms"] - each["floor_ms"], 0.0)
            wasted = (1 - needed) * each["ms"] if each["kind"] == "attention" else 0.0
            causes["unneeded"] += min(wasted, above)
            causes[each["bound"]] += above - min(wasted, above)
        found.append(Candidate(row["module"], ms, min(sum(each["floor_ms"] for each in own), ms), causes))
    again = sum(row["ms"].get("recompute", 0.0) for row in modules)
    return found + [Candidate(RECOMPUTATION, again, 0.0, {"unneeded": again})] * (again > 0)


def improvements(found: list[Candidate], step_ms: float, facts: dict, count: int = 3) -> list[dict]:
    """The ``count`` largest, each with a sentence. facts: see ``advise``."""
    best = sorted(found, key=lambda each: -each.gain_ms)[:count]
    return [{"what": each.module, "ms": each.ms, "floor_ms": each.floor_ms, "gain_ms": each.gain_ms,
             "gain": each.gain_ms / step_ms, "cause": each.cause, "told": sentence(each, step_ms, facts)}
            for each in best if each.gain_ms > 0]


def sentence(each: Candidate, step_ms: float, facts: dict) -> str:
    return (f"{each.module} takes {each.ms:.1f} ms of {step_ms:.1f}, {each.gain_ms:.1f} ms ({each.gain_ms / step_ms:.0%} of "
            "the step) more than its FLOPs and bytes need here: " + advise(each.module, each.cause, facts) + ".")


def advise(module: str, cause: str, facts: dict) -> str:
    """The remedy in words. facts: device ("cpu", "cuda"), loss, recompute, vocabulary, micro_tokens, batch_tokens, needed
    (share of attention's FLOPs), head_dim, masked (bool), compiled (bool), backend, precision."""
    if module == RECOMPUTATION:
        return (f"train.recompute={facts['recompute']} buys memory with it; where memory is enough, train.recompute="
                + ("none" if facts["recompute"] == "selective" else "selective costs less and none costs nothing"))
    if module == ATTENTION and cause == "unneeded":
        where = "" if facts["device"] == "cuda" else "on a CUDA card "
        return (f"only {facts['needed']:.0%} of the pairs it computes see each other; {where}model.attention=triton skips the "
                "others, and shorter rows (train.sequence_length) have fewer of them")
    if module == ATTENTION and cause == "compute":
        return (f"it stays below the rate of large matrix products, with heads of {facts['head_dim']} numbers; fewer and wider "
                "ones (model.heads) come nearer")
    if module in OPTIMIZERS:
        plain = "; optimizer.type=adamw computes no matrix products" if module == "Muon" else ""
        return (f"it is paid once a step whatever the batch, so twice train.batch_tokens={facts['batch_tokens']:,} halves its "
                f"cost a token (and the number of steps){plain}")
    if module == HEAD:
        less = f"a smaller tokenizer.vocab_size than {facts['vocabulary']:,}" + (
            ", or a lower objective.mask_rate, shrinks it" if facts["masked"] else " shrinks it")
        if facts["loss"] == "plain" and cause == "memory":
            return f"all logits are written and read several times, train.loss=chunked keeps them in chunks; {less}"
        return less
    if module == TEACHER:
        return "the teacher is as large as it was trained; a smaller one costs less (distill.teacher)"
    if module == "batch":
        return "the next batch is made beside the step by one thread; more cores, or larger batches, hide it"
    if cause == "overhead" and facts["micro_tokens"] < facts["batch_tokens"]:
        return (f"its operations are too small to fill the device; a larger train.micro_batch_tokens than "
                f"{facts['micro_tokens']:,} takes fewer and larger ones")
    if cause in ("overhead", "memory") and not facts["compiled"]:
        remedy = "train.compile=on fuses them" if facts["device"] == "cuda" else (
            "train.compile=on may fuse them (on a processor look first: cram profile train.compile=on)")
        return f"its operations move more than they compute, one after another; {remedy}"
    if cause == "overhead":
        return "its operations are too small to fill the device; a larger train.batch_tokens, or a wider model, fills it"
    if cause == "memory":
        return "it moves more than it computes; a lower train.precision moves half as much where the device has it" \
            if facts["precision"] == "float32" else "it moves more than it computes; nothing short of another kernel helps"
    key = "micro_batch_tokens" if facts["micro_tokens"] < facts["batch_tokens"] else "batch_tokens"
    wider = f"a larger train.{key} than {facts['micro_tokens']:,}, or a wider model, comes nearer"
    if facts["device"] == "cuda" and facts["precision"] == "float32":
        return "train.precision=bf16 uses the tensor cores"
    return f"its matrix products are too small to reach the rate of large ones; {wider}"
