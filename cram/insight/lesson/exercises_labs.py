"""Exercises of the failure labs: kill, NaN, full disk, learning rate too high."""

from __future__ import annotations

from pathlib import Path

from cram.audit import read_ledger
from cram.errors import CramError
from cram.insight.lesson.judge import Asked, Verdict, compared, number, only_differs, yes_no
from cram.insight.run import Run, open_run


def same_weights(asked: Asked) -> Verdict:
    """lab1.1: a run that was never stopped ends with the same weights."""
    import torch

    straight, killed = asked.run(), open_run(asked.made("killed"))
    if straight.ledger.sessions > 1:
        return Verdict(False, f"{straight.folder}: was stopped itself, {straight.ledger.sessions - 1} time(s)")
    if (key := only_differs(straight, killed, ())) is not None:
        return Verdict(False, f"{key} differs from runs/lessons/killed; only 'out' and 'name' may")
    mine, theirs = (_weights(run.folder) for run in (straight, killed))
    same = all(torch.equal(mine[name], theirs[name]) for name in theirs)
    return compared(same, f"{sum(value.numel() for value in theirs.values()):,} numbers, all with the same bits",
                    "the weights differ: another number of threads, machine or version of torch?")


def _weights(folder: Path) -> dict:
    from cram import checkpoint

    run_id = open_run(folder).ledger.run_id
    return checkpoint.load_newest(folder / "pretrain" / "checkpoints", run_id, lambda line: None)["model"]


def lost_seconds(asked: Asked) -> Verdict:
    """lab1.2: what the kill cost."""
    ledger = open_run(asked.made("killed")).ledger
    return number(asked, ledger.account["lost"], "the row 'lost' of cram ledger runs/lessons/killed: work done after the "
                  "checkpoint, and one heartbeat that no row tells of", 0.05 if ledger.account["lost"] > 1 else 0.2)


def asked_to_stop(asked: Asked) -> Verdict:
    """lab1.3: a run stopped by a signal that it may answer, and resumed."""
    run = asked.run()
    ends = [row.get("reason") for row in run.ledger.rows if row["kind"] == "close"]
    if run.ledger.sessions < 2:
        return Verdict(False, "it ran in one session: stop it with Ctrl-C, or kill -TERM, before it has ended")
    return compared("interrupted" in ends[:-1],
                    f"closed as 'interrupted', then resumed; lost {run.ledger.account['lost']:.1f} s",
                    "it was resumed, but no session of it was closed as 'interrupted': kill -9 leaves it no time to")


def rollbacks(asked: Asked) -> Verdict:
    """lab2.1: how often the run of the lab went back."""
    return number(asked, _events(open_run(asked.made("nan"))).count("rolled back"),
                  "lines that say 'rolled back'; train.rollback_limit allows so many", 0.001)


def skips_before_rollback(asked: Asked) -> Verdict:
    """lab2.2: after how many steps skipped in a row it goes back."""
    return number(asked, open_run(asked.made("nan")).config.train.skip_limit,
                  "train.skip_limit of runs/lessons/nan, in pretrain/config.json there or by: cram config lessons/tiny "
                  "(lessons/explode has one of its own)", 0.001)


def calmed(asked: Asked) -> Verdict:
    """lab2.3: the exploding recipe, calmed by rates alone."""
    run, hot = asked.run(), open_run(asked.made("explode"))
    if (key := only_differs(run, hot, ("optimizer.", "schedule."))) is not None:
        return Verdict(False, f"{key} differs from runs/lessons/explode; only optimizer.* and schedule.* may")
    if run.config.optimizer.type != hot.config.optimizer.type:
        return Verdict(False, f"it uses {run.config.optimizer.type}; stay with {hot.config.optimizer.type}")
    if events := _events(run):
        return Verdict(False, f"{len(events)} times something was {events[0]}; lower the rate further, or warm up longer")
    final, first = (run.curve()[place].loss for place in (-1, 0))
    return compared(final < first, f"no step was skipped, and the loss on held-out text fell from {first:.2f} to {final:.2f}",
                    f"no step was skipped, but the loss on held-out text did not fall: {first:.2f} to {final:.2f}")


def proven_room(asked: Asked) -> Verdict:
    """lab3.1: the bytes of the largest file that the run must be able to write."""
    return number(asked, _largest(asked.made("disk")), "the size of state.pt in the newest checkpoint: ls -l "
                  "runs/lessons/disk/pretrain/checkpoints/*/", 0.02)


def state_numbers(asked: Asked) -> Verdict:
    """lab3.2: float32 numbers kept for each parameter."""
    run = open_run(asked.made("disk"))
    share = _largest(run.folder) / 4 / run.plan["parameters"]
    return number(asked, share, "the size of state.pt / 4 bytes / parameters: the weights, "
                  "one momentum of what Muon trains, two moments of what AdamW trains, and a little more", 0.06)


def _largest(folder: Path) -> int:
    """Bytes of the largest state in a run's checkpoints."""
    sizes = [path.stat().st_size for path in (folder / "pretrain" / "checkpoints").rglob("state.pt")]
    if not sizes:
        raise CramError(f"{folder}: has no checkpoint; run the commands of the lab first")
    return max(sizes)


def survived(asked: Asked) -> Verdict:
    """lab3.3: the run that met the full disk has finished, and nothing was charged twice."""
    run = asked.run()
    failed = [row for row in run.ledger.rows if row["kind"] == "close" and row["reason"] != "finished"]
    if not failed:
        return Verdict(False, "no session of it failed: limit its files with ulimit -f, smaller than a checkpoint")
    ledger = read_ledger(run.folder / "pretrain" / "ledger.jsonl")
    return compared(ledger.fraction <= 1, f"a session ended as '{failed[0]['reason']}', a later one finished within the budget",
                    f"{ledger.fraction:.0%} of the budget was spent")


def gap_early(asked: Asked) -> Verdict:
    """lab4.1: how far apart the two runs are at half the budget."""
    good, bad = (_at(open_run(asked.made(name)), 0.5) for name in ("good", "hot"))
    return number(asked, bad - good, "validation loss at progress 0.5 in metrics.jsonl (or in TensorBoard: validation), hot "
                  "minus good, nats", 0.05)


def guard_saw(asked: Asked) -> Verdict:
    """lab4.2: whether the guard skipped a step of the quiet failure."""
    return yes_no(asked, bool(_events(open_run(asked.made("hot")))),
                  "lines with 'skipped' in what cram printed; the guard looks for leaps and for what is no number")


def saved(asked: Asked) -> Verdict:
    """lab4.3: a rate found from the hot one downwards, as good as the recipe's."""
    mine, good, hot = asked.run(), open_run(asked.made("good")), open_run(asked.made("hot"))
    if (key := only_differs(mine, good, ("optimizer.lr", "optimizer.muon_lr", "optimizer.embedding_lr"))) is not None:
        return Verdict(False, f"{key} differs from runs/lessons/good; only rates may")
    if mine.config.optimizer.muon_lr in (good.config.optimizer.muon_lr, hot.config.optimizer.muon_lr):
        return Verdict(False, "optimizer.muon_lr is that of a run of the lab; choose another")
    share = (hot.score[1] - mine.score[1]) / (hot.score[1] - good.score[1])
    return compared(share >= 0.9, f"{share:.0%} of the way back from the hot run to the good one",
                    f"{share:.0%} of the way back from the hot run to the good one; 90% is asked for")


def _at(run: Run, progress: float) -> float:
    """The first validation loss at this progress or later."""
    found = next((point for point in run.curve() if point.spent >= progress * run.ledger.amount * (1 - 1e-9)), None)
    if found is None:
        raise CramError(f"{run.folder}: was not validated at progress {progress} or later; the command that made it resumes it")
    return found.loss


def _events(run: Run) -> list[str]:
    return [row["event"] for row in run.metrics if row["kind"] == "event"]


CHECKS = {("lab1", "1"): same_weights, ("lab1", "2"): lost_seconds, ("lab1", "3"): asked_to_stop,
          ("lab2", "1"): rollbacks, ("lab2", "2"): skips_before_rollback, ("lab2", "3"): calmed,
          ("lab3", "1"): proven_room, ("lab3", "2"): state_numbers, ("lab3", "3"): survived,
          ("lab4", "1"): gap_early, ("lab4", "2"): guard_saw, ("lab4", "3"): saved}
