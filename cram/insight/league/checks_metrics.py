"""What the rows of metrics must agree about with ledger, configuration and formula."""

from __future__ import annotations

import bisect
import math
from datetime import datetime
from typing import Iterator

from cram import schedule
from cram.insight.league.card import MOST_ROWS, Card, evenly
from cram.insight.league.formula import counted, tokens_per_step

CLOCKS = 2.0             # seconds between a row of metrics and the rows of the ledger around it, at most
HURRIED = 60.0           # seconds of a budget that may leave no time for validations
CPU_PEAK = {"float32": 3e11, "bfloat16": 5e12}  # FLOP/s of one thread that no CPU exceeds (two AVX-512 units; AMX)


def check_rows(card: Card) -> Iterator[str]:
    """Rows follow each other, and each lies between two rows of the ledger, by seconds, clock and steps."""
    own, ledger = card.ledger.teacher, card.ledger.rows
    seconds = [row["seconds"] for row in ledger]
    stamps = [datetime.fromisoformat(row["at"]).timestamp() for row in ledger]
    paid = own.steps if own else 0
    paid_from = next((row["row"] for row in ledger if row["kind"] == "teacher"), len(ledger))
    steps = [row["steps"] - (paid if row["row"] >= paid_from else 0) for row in ledger]
    if not card.rows("train"):
        yield "no training step among its metrics"
    for kind in ("train", "validation"):
        for before, row in zip(card.rows(kind), card.rows(kind)[1:]):
            if row["step"] <= before["step"] or row["spent"] < before["spent"] or row["progress"] < before["progress"]:
                yield f"metrics: the {kind} row of step {row['step']:,} does not follow the one before"
                return
    for row in card.rows("train") + card.rows("validation"):
        after = bisect.bisect_right(seconds, row["spent"] + 1e-4)
        if row["spent"] > seconds[-1] + 1e-4:
            yield f"metrics: step {row['step']:,} was at {row['spent']:.1f} s, beyond the {seconds[-1]:.1f} s of the ledger"
            return
        here = max(bisect.bisect_left(seconds, row["spent"] - 1e-4) - 1, 0)
        if steps[here] > row["step"] or after < len(ledger) and steps[after] < row["step"]:
            yield (f"metrics: step {row['step']:,} at {row['spent']:.1f} s, where the ledger counts {steps[here]:,} to "
                   f"{steps[min(after, len(ledger) - 1)]:,} steps: not the same run")
            return
        if not stamps[here] - CLOCKS <= row["time"] <= stamps[min(after, len(ledger) - 1)] + CLOCKS:
            yield f"metrics: the clock at step {row['step']:,} is not the ledger's at {row['spent']:.1f} s"
            return


def check_whole(card: Card) -> Iterator[str]:
    """All rows of metrics that the configuration asks for are there: who leaves out a stretch of the curve may claim any score.

    Training rows come at step 1, at every ``telemetry.log_every``-th and at the end; validations where progress passes a
    multiple of ``train.validate_every``, fewer where a step passes several or a clock leaves no time for them.
    """
    every, steps, ends = card.config.telemetry.log_every, card.ledger.own("steps"), card.rows("end")
    ended = ends[-1]["progress"] if ends else 1.0
    first = int(every > 1)
    count = first + steps // every + (ended == 1.0 and steps % every > 0 and steps > 1)
    due = [1 if place < first else min((place + 1 - first) * every, steps) for place in evenly(count)]
    found = [row["step"] for row in card.rows("train")]
    if found != due:
        odd = min({*found} ^ {*due}, default=steps)
        yield f"metrics: {len(found)} training rows, where {len(due)} are due; that of step {odd:,} was removed or added"
    silent = sum(row["loss"] is None for row in card.rows("train"))
    if silent and not any(row["event"] == "skipped" for row in card.rows("event")):
        yield f"metrics: {silent} training rows without a loss, though no step was skipped"
    looks, share = len(card.rows("validation")), card.config.train.validate_every
    passed = min(math.ceil(ended / share) - 1, steps - 1, MOST_ROWS)
    if looks < passed / 2 and (card.ledger.kind != "time" or card.ledger.amount >= HURRIED):
        yield f"metrics: {looks} validations, where {passed} are due (train.validate_every={share:g}): some were removed"


def check_formula(card: Card) -> Iterator[str]:
    """Parameters and FLOPs per token of the plan are those of the configuration."""
    parameters, low, high = counted(card)
    if card.plan["parameters"] != parameters:
        yield f"the plan says {card.plan['parameters']:,} parameters, the configuration makes {parameters:,}"
    told, taught = card.plan["flops_per_token"], card.config.distill.teacher is not None
    if told < low * (1 - 1e-9) or told > high * (1 + 1e-9) and not taught:
        yield f"the plan says {told:.6g} FLOPs per token, the formula {low:.6g}" + (f" to {high:.6g}" if high > low else "")
    if card.plan["device"] != card.body["hardware"]["device"] or card.plan["processes"] != card.body["hardware"]["processes"]:
        yield "the plan names other hardware than the card"


def check_schedule(card: Card) -> Iterator[str]:
    """Learning rates are the schedule's at the progress told; tokens are steps times batch; progress follows the budget."""
    config, ledger = card.config, card.ledger
    least, most = tokens_per_step(card)
    went_back = any(row["event"] == "rolled back" for row in card.rows("event"))
    paid = 0.0
    if (teacher := ledger.teacher) is not None:
        paid = teacher.seconds if ledger.kind == "time" else getattr(teacher, ledger.kind)
    seconds_a_step = ledger.seconds / max(ledger.own("steps"), 1)
    for row in card.rows("train"):
        share, at = schedule.learning_rate(row["progress"], config.schedule), f"metrics: step {row['step']:,}: "
        for name, peak in (("lr", config.optimizer.lr), ("muon_lr", config.optimizer.muon_lr)):
            if row.get(name) is not None and not math.isclose(row[name], peak * share, rel_tol=1e-6, abs_tol=1e-12):
                yield f"{at}{name} {row[name]:.6g} is not the schedule's {peak * share:.6g} at progress {row['progress']:.4f}"
                return
        if not least * row["step"] <= row["tokens"] <= most * row["step"] and not went_back:
            yield f"{at}{row['tokens']:,} tokens read, but steps have {least:,} to {most:,}"
            return
        if not least <= row["batch_tokens"] <= most:
            yield f"{at}a batch of {row['batch_tokens']:,} tokens, where the configuration says {least:,} to {most:,}"
            return
        if not 0 < row["progress"] <= 1:
            yield f"{at}progress {row['progress']}"
            return
        done = {"time": row["spent"], "steps": row["step"], "tokens": row["tokens"]}.get(ledger.kind)
        done = None if done is None else done - paid * (ledger.kind == "time")
        slack = 4 * seconds_a_step + 1.0 + 0.01 * ledger.amount if ledger.kind == "time" else 1.5 * most
        if done is not None and config.train.replay is None and not went_back \
                and done > row["progress"] * (ledger.amount - paid) + slack:
            yield f"{at}{done:,.1f} of the budget was spent, but progress was {row['progress']:.4f}: another budget's schedule"
            return


def check_speed(card: Card) -> Iterator[str]:
    """No faster than the hardware can be, and no other speed in the metrics than in the ledger."""
    from cram.device import PEAK_FLOPS

    account, world = card.ledger.account, card.plan["processes"]
    stepping = account["steps"] + account["data_wait"]
    if stepping <= 0:
        yield "no time was charged to steps"
        return
    device, rate = card.plan["device"], card.ledger.own("flops") / stepping
    if device.startswith("CPU"):
        peak = CPU_PEAK.get(card.plan["precision"], max(CPU_PEAK.values())) * int(device.split(",")[1].split()[0])
    else:
        peak = next((2 * flops for name, flops in PEAK_FLOPS.items() if name in device), math.inf)  # twice: 8 bits
    if rate > peak:
        yield f"{rate:.3g} FLOP/s in steps; {device} has at most {peak:.3g}: more was computed than its time allows"
    speeds = sorted(row["tokens_per_second"] for row in card.rows("train") if row.get("tokens_per_second"))
    whole = card.ledger.own("tokens") / stepping * world
    if speeds and not whole / 3 <= speeds[len(speeds) // 2] <= 3 * whole:
        yield (f"metrics tell of {speeds[len(speeds) // 2]:,.0f} tokens/s, the ledger of {whole:,.0f}")


def check_end(card: Card) -> Iterator[str]:
    """Ledger, metrics, record of progress and weights end at the same step."""
    ends, record, steps = card.rows("end"), card.body["progress"], card.ledger.own("steps")
    if not ends:
        yield "its metrics do not end"
        return
    end, saved = ends[-1], [row["step"] for row in card.ledger.rows if row["kind"] == "checkpoint"]
    told = {"ledger": steps, "metrics": end["step"], "record of progress": record["steps"],
            "weights": card.body["weights"]["step"], "last checkpoint": saved[-1] if saved else 0}
    if len(set(told.values())) > 1:
        yield "ends at different steps: " + ", ".join(f"{name} {step:,}" for name, step in told.items())
    if abs(end["spent"] - card.ledger.seconds) > 1e-3:
        yield f"metrics end at {end['spent']:.1f} s, the ledger at {card.ledger.seconds:.1f} s"
    if record["last"] != end["progress"]:
        yield f"the record of progress ends at {record['last']}, the metrics at {end['progress']}"
    if end["progress"] != 1.0 and card.ledger.kind != "time":
        yield f"ended at progress {end['progress']:.4f}, before its budget"
