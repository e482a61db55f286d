"""A ledger that was edited, cut, swapped, torn or taken away does not go unnoticed."""

import json

import pytest

from cram.audit import read_ledger
from cram.budget import Budget
from cram.errors import CramError
from cram.ledger import Ledger
from tests.cram.ledgers import FakeClock, die, finished_ledger


def test_editing_any_line_is_detected_and_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = finished_ledger(path)
    for number in range(len(lines)):
        edited = lines.copy()
        edited[number] = edited[number].replace(b'"steps": ', b'"steps": 1', 1)
        path.write_bytes(b"".join(edited))
        with pytest.raises(CramError, match=rf"ledger.jsonl:{number + 1}: was edited"):
            read_ledger(path)


def test_deleting_or_swapping_any_line_is_detected(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = finished_ledger(path)
    for number in range(len(lines)):
        path.write_bytes(b"".join(lines[:number] + lines[number + 1:]))
        with pytest.raises(CramError, match="ledger.jsonl"):
            read_ledger(path)
        if number:
            swapped = lines.copy()
            swapped[number - 1], swapped[number] = swapped[number], swapped[number - 1]
            path.write_bytes(b"".join(swapped))
            with pytest.raises(CramError, match=rf"ledger.jsonl:{number}: does not follow"):
                read_ledger(path)
    for keep in range(len(lines)):  # rows cut off at the end
        path.write_bytes(b"".join(lines[:keep]))
        with pytest.raises(CramError, match="deleted at the end|empty ledger"):
            read_ledger(path)


def test_recomputed_hashes_contradict_the_head(tmp_path):
    from cram.audit import row_hash
    path = tmp_path / "ledger.jsonl"
    rows = [json.loads(line) for line in finished_ledger(path)]
    previous = ""
    for row in rows:
        row.update(seconds=row["seconds"] / 2, prev=previous)
        row["hash"] = previous = row_hash(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(CramError, match="rewritten"):
        read_ledger(path)


def test_flipping_any_byte_is_detected(tmp_path):
    path = tmp_path / "ledger.jsonl"
    content = b"".join(finished_ledger(path))
    for position in range(0, len(content), 7):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1:])
        with pytest.raises(CramError):
            read_ledger(path)


def test_a_torn_last_line_is_no_row_and_is_cut(tmp_path):
    path, clock = tmp_path / "ledger.jsonl", FakeClock()
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=2.0, clock=clock)
    clock.now += 1
    ledger._append("heartbeat")
    die(ledger)
    with open(path, "ab") as file:
        file.write(b'{"account": {"comp')
    ledger = Ledger(path, Budget.parse("100s"), "run", heartbeat=2.0, clock=clock)
    assert ledger.seconds == pytest.approx(3.0)
    ledger.close("interrupted")
    read_ledger(path)


def test_missing_head_and_foreign_runs_are_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    finished_ledger(path)
    with pytest.raises(CramError, match="has ended"):
        Ledger(path, Budget.parse("100s"), "run")
    with pytest.raises(CramError, match="use another output folder"):
        Ledger(path, Budget.parse("200s"), "run")
    path.with_suffix(".head").unlink()
    with pytest.raises(CramError, match="missing or damaged"):
        read_ledger(path)


def test_a_stale_head_is_detected(tmp_path):
    """One row behind is a crash between two writes; two rows behind is somebody's copy."""
    path = tmp_path / "ledger.jsonl"
    rows = [json.loads(line) for line in finished_ledger(path)]
    for behind in (1, 2):
        path.with_suffix(".head").write_text(json.dumps({"row": len(rows) - 1 - behind, "hash": rows[-1 - behind]["hash"]}))
        if behind == 1:
            assert read_ledger(path).rows == rows
    with pytest.raises(CramError, match="2 rows behind"):
        read_ledger(path)


def test_a_ledger_taken_away_is_missed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    finished_ledger(path)
    path.unlink()
    with pytest.raises(CramError, match="no ledger there"):
        Ledger(path, Budget.parse("100s"), "run")


def test_another_runs_or_another_budgets_ledger_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, Budget.parse("100s"), "run").close("interrupted")
    for budget, run_id in (("100s", "another"), ("200s", "run")):
        with pytest.raises(CramError, match=f"not to {run_id} with {budget}; use another output folder"):
            Ledger(path, Budget.parse(budget), run_id)
