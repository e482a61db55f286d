"""Whether a run came out as expected.

A budget of steps, tokens or FLOPs buys the same everywhere, so its counts must be equal to the last one, and its score all but
equal: machines add in another order. A budget of time buys what the machine can do in it, so there the band widens with the
tokens that were read: a share of PER_DOUBLING for each halving (worse) or doubling (better). That slope is an estimate, from
two runs of the shipped demo of three minutes, on a quiet and on a busy machine: 1,778 steps led to 2.62 nats and 1,306 to 2.75,
which is 11% a doubling.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Optional

from cram.config import KEYS, lookup
from cram.explain import show
from cram.insight.compare.side import Side

TOLERANCE = 0.03       # of the score; seeds of small runs differ by 0.1% to 2% (reports/bench/defaults_cpu.md)
PER_DOUBLING = 0.12
WITHOUT_EFFECT = ("name", "out", "telemetry.", "data.workers", "data.engine", "data.mirror", "evaluate.mirror", "train.threads",
                  "train.workers", "train.checkpoint_every", "train.keep_checkpoints", "quantize.", "evaluate.prompts",
                  "evaluate.blanks", "evaluate.tasks", "evaluate.minimal_pairs", "evaluate.sample_tokens", "evaluate.finetune.")


class Check(NamedTuple):
    """One thing looked at. passed: None where it is told and not judged."""

    what: str
    expected: str
    found: str
    passed: Optional[bool]


def check(side: Side, expected: Side, tolerance: Optional[float] = None) -> list[Check]:
    """What was expected of the run, and how it came out. tolerance: share of the score, instead of TOLERANCE."""
    changed = [key for key in KEYS if not key.startswith(WITHOUT_EFFECT)
               and lookup(side.config, key) != lookup(expected.config, key)]
    told = "; ".join(f"{key} {show(lookup(side.config, key))}, not {show(lookup(expected.config, key))}" for key in changed[:4])
    told += f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
    checks = [Check("configuration", "the same", told or "the same", not changed),
              Check("finished", "yes", "yes" if side.finished else "no", side.finished),
              Check("budget spent", "at most 100%", f"{100 * side.spent / side.amount:.2f}%",
                    side.spent <= side.amount * (1 + 1e-9))]
    counted = expected.kind != "time"
    for name, unit in (("steps", ","), ("tokens", ","), ("flops", ".6g")):
        then, now = getattr(expected, name), getattr(side, name)
        checks.append(Check(name, format(then, unit), format(now, unit),
                            math.isclose(then, now, rel_tol=1e-9) if counted else None))
    same_text = None not in (side.text, expected.text) and side.text == expected.text
    checks.append(Check("held-out text", (expected.text or "unknown")[:12], "the same" if same_text else
                        f"{(side.text or 'unknown')[:12]}: other versions of its sources, so the band is twice as wide", None))
    low, high = band(side, expected, TOLERANCE if tolerance is None else tolerance, same_text or tolerance is not None)
    metric, score = side.score
    judged = score is not None and metric == expected.score[0] and low <= score <= high
    found = "not evaluated" if score is None else f"{score:.4f}" + ("" if metric == expected.score[0] else f" {metric}")
    return [*checks, Check(expected.score[0], f"{low:.4f} to {high:.4f}", found, judged)]


def band(side: Side, expected: Side, tolerance: float, same_text: bool) -> tuple[float, float]:
    """Least and highest score that is as expected."""
    share = tolerance * (1 if same_text else 2)
    doublings = math.log2(max(side.tokens, 1) / max(expected.tokens, 1)) if expected.kind == "time" else 0.0
    score = expected.score[1] or 0.0
    return (score * max(0.0, 1 - share - PER_DOUBLING * max(doublings, 0.0)),
            score * (1 + share + PER_DOUBLING * max(-doublings, 0.0)))
