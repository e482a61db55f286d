"""What arms are compared by, and which arms it can compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional, Sequence

from cram.config import KEYS, lookup
from cram.errors import CramError
from cram.schema import Config

# Keys of the data section without effect on what documents there are.
BESIDE_TEXT = ("data.workers", "data.engine", "data.packing", "data.mirror", "data.licence", "data.part_bytes")


@dataclass(frozen=True)
class Metric:
    """One number of a run. label: with its unit, for tables and axes; less: whether less is better; learns: whether it
    gets better with the budget, so that a compute multiplier has a meaning."""

    name: str
    label: str
    less: bool = True
    learns: bool = True

    def gain(self, value: float, baseline: float) -> float:
        """How much better than the baseline, in the metric's unit."""
        return baseline - value if self.less else value - baseline

    def read(self, scores: Mapping[str, Any], seconds: float, tokens: int, peak_bytes: Optional[int]) -> float:
        """Its value for a finished run. scores: of the evaluate stage; seconds: in which the run's tokens were trained on at
        its median speed; peak_bytes: most memory held at a time. CramError when the run has no such number."""
        held_out = scores["held_out"]
        if self.name == "tokens_per_second":
            return tokens / seconds
        value = peak_bytes / 2**20 if self.name == "peak_memory" and peak_bytes is not None else held_out.get(self.name)
        if self.name == "masked_loss" and scores["objective"] == "masked":
            value = held_out["loss"]
        if value is None and self.name not in METRICS:
            result = scores["benchmarks"].get(self.name, {"skipped": "it was not asked for"})
            value = result.get("score")
            if value is None:
                raise CramError(f"{self.name}: not scored: {result.get('skipped', 'no score')}")
        if value is None:
            raise CramError(f"this run has no {self.name}; a lossy tokenizer or another objective has none")
        return float(value)


METRICS = {each.name: each for each in (
    Metric("loss", "held-out loss, nats a predicted token"),
    Metric("masked_loss", "held-out masked loss, nats a hidden token"),
    Metric("bits_per_byte", "held-out bits per byte"),
    Metric("accuracy", "held-out accuracy, share of tokens guessed", less=False),
    Metric("tokens_per_second", "tokens per second", less=False, learns=False),
    Metric("peak_memory", "peak memory, MiB", learns=False))}


def find(name: str, tasks: Sequence[str]) -> Metric:
    """The metric of a name, or the score of a benchmark among ``tasks`` (evaluate.tasks). CramError for another."""
    if name in METRICS:
        return METRICS[name]
    if name in tasks:
        return Metric(name, f"{name}, score", less=False)
    raise CramError(f"metric: '{name}' is none of {', '.join(METRICS)} and no benchmark in evaluate.tasks; "
                    f"add it to evaluate.tasks, or choose one of these")


def incomparable(metric: Metric, baseline: Config, arm: Config) -> Optional[str]:
    """Why this number of an arm does not compare with the baseline's, and the remedy; None when it does."""
    if not metric.learns or metric.name not in METRICS:
        return None
    kinds, name = {baseline.objective.type, arm.objective.type}, metric.name
    if name == "bits_per_byte":
        if "masked" in kinds:
            return "bits_per_byte: a masked model has none; compare masked_loss or a benchmark"
        if lossy := [config.tokenizer.type for config in (baseline, arm) if config.tokenizer.type != "bpe"]:
            return f"bits_per_byte: tokens of tokenizer.type={lossy[0]} do not say the text, so there is none; use bpe, or " \
                   "compare a benchmark"
    elif name == "masked_loss":
        if "causal" in kinds:
            return "masked_loss: a causal model has none; compare bits_per_byte or a benchmark"
    elif len(kinds) > 1:
        return f"{name}: objective.type={' and '.join(sorted(kinds))} predict different tokens; compare bits_per_byte " \
               "(causal and hybrid), masked_loss (masked and hybrid) or a benchmark"
    if baseline.evaluate.mask_rate != arm.evaluate.mask_rate:
        return f"{name}: evaluate.mask_rate differs, so other tokens are scored; keep it equal"
    changed = [key for key in KEYS if (key.startswith("tokenizer.") or key.startswith("data.")) and key not in BESIDE_TEXT
               and lookup(baseline, key) != lookup(arm, key)]
    if changed and name != "bits_per_byte":
        return f"{name}: {changed[0]} changes the tokens that are predicted; compare bits_per_byte of causal models, or a " \
               "benchmark"
    if [key for key in changed if key.startswith("data.")] and not arm.data.validation_files:
        return f"{name}: {changed[0]} changes the held-out text as well; give data.validation_files, the same for all, or " \
               "corpus: clean or web"
    return None
