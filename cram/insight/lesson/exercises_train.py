"""Exercises of lessons 5 to 7: budget and schedule, optimizer, evaluation."""

from __future__ import annotations

import math
import statistics

from cram.audit import read_ledger
from cram.errors import CramError
from cram.insight.lesson.judge import Asked, Verdict, compared, number, only_differs, read, yes_no
from cram.insight.run import open_run

SEEDS = 0.003  # bits per byte: twice the standard deviation over the seeds of lesson 7
RATES = ("optimizer.lr", "optimizer.embedding_lr", "optimizer.muon_lr")


def rate_at(asked: Asked) -> Verdict:
    """5.1: the rate at three quarters of the budget, as a share of the peak."""
    from cram.schedule import learning_rate

    config = open_run(asked.made("tiny")).config
    return number(asked, 100 * learning_rate(0.75, config.schedule), f"schedule.type={config.schedule.type} with decay="
                  f"{config.schedule.decay}: flat until 1 - decay, from there a line to 0, in percent of the peak", 0.01)


def token_budget(asked: Asked) -> Verdict:
    """5.2: a run under a budget of tokens."""
    run = asked.run()
    if run.ledger.kind != "tokens":
        return Verdict(False, f"its budget is '{run.ledger.budget}'; ask for one in tokens: budget='60000 tokens'")
    left, batch = run.ledger.amount - run.ledger.spent, run.config.train.batch_tokens
    return compared(0 <= left < batch, f"{run.ledger.spent:,.0f} of {run.ledger.amount:,.0f} tokens: what is left, "
                    f"{left:,.0f}, is less than a step of {batch:,}",
                    f"{left:,.0f} tokens are left, and a step takes {batch:,}")


def forged_ledger(asked: Asked) -> Verdict:
    """5.3: an edited copy of a ledger, which must not pass."""
    folder = asked.folder()
    path = next((path for path in (folder / "ledger.jsonl", folder / "pretrain" / "ledger.jsonl") if path.is_file()), None)
    if path is None:
        raise CramError(f"{folder}: no ledger.jsonl there; copy the folder runs/lessons/tiny/pretrain, and edit the copy")
    try:
        read_ledger(path)
    except CramError as refusal:
        return Verdict(True, f"it is refused: {refusal}")
    return Verdict(False, "this ledger verifies: nothing in it was changed; edit a figure in one of its rows")


def better_adamw(asked: Asked) -> Verdict:
    """6.1: rates with which AdamW does better than with Muon's."""
    mine, theirs = asked.run(), open_run(asked.made("adamw"))
    if (key := only_differs(mine, theirs, RATES)) is not None:
        return Verdict(False, f"{key} differs from runs/lessons/adamw, too; only rates ({', '.join(RATES)}) may")
    gain = theirs.score[1] - mine.score[1]
    told = f"{abs(gain):.4f} {mine.score[0]} {'less' if gain > 0 else 'more'} than runs/lessons/adamw"
    if abs(gain) < SEEDS:
        return Verdict(False, f"{told}: no more than another seed changes it (lesson 7); try a rate several times as large, or "
                       "as small")
    return compared(gain > 0, told, f"{told}; try a rate several times as large, or as small")


def moments(asked: Asked) -> Verdict:
    """6.2: bytes of AdamW's two moments."""
    parameters = open_run(asked.made("adamw")).plan["parameters"]
    return number(asked, parameters * 2 * 4, "two float32 numbers for each parameter; the line 'plan:' counts those", 0.01)


def orthogonal_size(asked: Asked) -> Verdict:
    """6.3: the root mean square of the entries of a 64 x 256 matrix whose singular values are all 1."""
    return number(asked, math.sqrt(64 / (64 * 256)), "the squares of all entries add up to the squares of the singular values: "
                  "64 ones, spread over 64 x 256 entries")


def compressed(asked: Asked) -> Verdict:
    """7.1: bytes of the scored held-out text, compressed by the model."""
    scores = read(asked.made("seed0") / "evaluate" / "scores.json")["held_out"]
    return number(asked, scores["loss"] * scores["predicted"] / math.log(2) / 8,
                  "nats a token x tokens predicted, over ln 2 in bits, over 8 in bytes", 0.01)


def seed_noise(asked: Asked) -> Verdict:
    """7.2: the standard deviation over three seeds."""
    found = [open_run(asked.made(f"seed{seed}")).score[1] for seed in range(3)]
    return number(asked, statistics.stdev(found), "the sample standard deviation (over n - 1) of the three figures of bits per "
                  "byte", 0.06)


def knows_agreement(asked: Asked) -> Verdict:
    """7.3: whether minimal pairs show anything."""
    results = read(asked.made("seed0") / "benchmarks" / "benchmarks.json")["results"]
    found = next((result for name, result in results.items() if name.startswith("pairs:")), None)
    if found is None:
        raise CramError("no minimal pairs were scored; run: cram evaluate runs/lessons/seed0 "
                        "tasks=pairs:runs/lessons/text/pairs.jsonl")
    return yes_no(asked, found["low"] > 0.5, f"95% of such intervals hold the truth, and this one reaches from "
                  f"{100 * found['low']:.1f} to {100 * found['high']:.1f}; guessing is 50")


CHECKS = {("5", "1"): rate_at, ("5", "2"): token_budget, ("5", "3"): forged_ledger,
          ("6", "1"): better_adamw, ("6", "2"): moments, ("6", "3"): orthogonal_size,
          ("7", "1"): compressed, ("7", "2"): seed_noise, ("7", "3"): knows_agreement}
