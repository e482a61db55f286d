"""Runs that must not take the device again: finished ones, and those whose lost work used up the time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

from cram import checkpoint
from cram.audit import Summary, crash_charge, read_ledger
from cram.budget import Budget
from cram.config import to_dict
from cram.errors import CramError
from cram.ledger import Ledger
from cram.telemetry import Telemetry


def ended(config, run_dir: Path, run_id: str, say: Callable[[str], None]) -> bool:
    """Whether the run in ``run_dir`` is over. One that cannot even start up in the time left is closed here,
    as its newest checkpoint stands, without charging anything more.

    Raises CramError when it is over and no trained checkpoint is left.
    """
    path, checkpoints = run_dir / "ledger.jsonl", run_dir / "checkpoints"
    if not path.exists():
        if checkpoint.list_checkpoints(checkpoints):
            raise CramError(f"{path}: missing, but there are checkpoints: what they cost cannot be proved. "
                            "Restore the ledger, or start a new run with --force")
        return False
    summary = read_ledger(path)
    if summary.reason not in ("finished", "stopped by Exploded") and seconds_left(summary) > 600:
        return False  # surely enough; the checkpoint need not be read twice
    if summary.reason == "stopped by Exploded":
        raise CramError(f"{run_dir}: the loss of this run kept exploding, and would again; lower optimizer.lr and "
                        "optimizer.muon_lr, which is a new run, or repeat this one with --force")
    state = checkpoint.load_newest(checkpoints, run_id, say)
    if summary.reason == "finished":
        if state is None or state["at"]["step"] != checkpoint.last_step(summary):
            raise CramError(f"{checkpoints}: the budget is spent and no good checkpoint of its last step is left; start anew "
                            "with --force")
        say("pretrain: this run has already spent its budget")
        return True
    costs = state["pace"] if state else {"setup": 0.0, "step": 0.0, "save": 0.0}
    if seconds_left(summary) > 2 * costs["setup"] + costs["step"] + 2 * costs["save"]:
        return False
    if state is None or state["at"]["step"] == 0:
        raise CramError(f"budget={summary.budget}: spent before the first step ({summary.seconds:.1f} s charged); give it more")
    close(config, run_dir, run_id, state["at"]["step"], state["at"]["progress"], say)
    return True


def seconds_left(summary: Summary) -> float:
    """Of a time budget, after the charge for a session that died; infinite for the other kinds."""
    if summary.kind != "time":
        return float("inf")
    return summary.amount - summary.seconds - crash_charge(summary.rows)


def close(config, run_dir: Path, run_id: str, step: int, progress: float, say: Callable[[str], None]) -> None:
    """End the run at the checkpoint of ``step``. The clock stands still: no device is taken."""
    ledger = Ledger(run_dir / "ledger.jsonl", Budget.parse(config.budget), run_id, clock=lambda: 0.0)
    lost = ledger.resume(step)
    os.truncate(run_dir / "progress.f64", 8 * step)
    ledger.close("finished")
    reason = f"lost work used up the budget at progress {progress:.3f}, before the learning rate reached 0"
    say(f"warning: {reason}")
    telemetry = Telemetry(run_dir, config=to_dict(config), resume_step=step, say=say,
                          print_every=config.telemetry.print_every)
    telemetry.resume({"step": step, "spent": ledger.seconds, "lost": lost})
    telemetry.end({"step": step, "progress": progress, "spent": ledger.seconds, "reason": reason})
    telemetry.close()
