"""``cram ledger RUN``: verify a run's ledger and show its account."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from cram.audit import read_ledger
from cram.budget import Budget
from cram.errors import CramError


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram ledger`` with these arguments; returns the exit code. CramError when there is no ledger, or a damaged one."""
    parser.add_argument("run", help="a run's folder (runs/demo), its pretrain folder, or a ledger.jsonl")
    run = Path(parser.parse_args(arguments).run)
    path = next((path for path in (run / "pretrain" / "ledger.jsonl", run / "ledger.jsonl", run) if path.is_file()), None)
    if path is None:
        raise CramError(f"{run}: no ledger there; give a run's folder such as runs/demo, or a ledger.jsonl")
    ledger = read_ledger(path)
    budget = Budget.parse(ledger.budget)
    say(f"{path}: {len(ledger.rows)} rows, verified (head {ledger.head[:12]})")
    say(f"budget     {ledger.budget}")
    say(f"spent      {budget.show(ledger.spent)} ({ledger.fraction:.2%}), "
          f"{'closed: ' + ledger.reason if ledger.closed else 'not closed: running, or stopped by a crash'}")
    say(f"sessions   {ledger.sessions}")
    teacher = ledger.teacher
    taught = f", and the teacher's {teacher.steps} steps, {teacher.tokens} tokens, {teacher.flops:.4g} FLOPs" if teacher else ""
    say(f"work       {ledger.own('steps')} steps, {ledger.own('tokens')} tokens, {ledger.own('flops'):.4g} FLOPs{taught}")
    if ledger.energy_joules is not None:
        say(f"energy     {ledger.energy_joules / 3.6e6:.4f} kWh")
    say(f"account    {ledger.seconds:.1f} s charged")
    for category, seconds in ledger.account.items():
        say(f"  {category:<11} {seconds:10.1f} s {seconds / max(ledger.seconds, 1e-9):7.1%}")
    return 0
