"""Whoever reads a ledger is told what is wrong with it and what to do, and whose work is whose."""

import re

import pytest

from cram.audit import read_ledger
from cram.budget import Budget
from cram.errors import CramError
from cram.ledger import Ledger

REMEDY = "; restore it from a backup, or start a new run with --force"


def finished(path, budget="9 steps", teacher=None, **work):
    """The summary of a closed ledger."""
    ledger = Ledger(path, Budget.parse(budget), path.parent.name, heartbeat=3600.0)
    if teacher is not None:
        ledger.pay_for_teacher(teacher)
    ledger.count(**work)
    ledger.close("finished")
    return read_ledger(path)


def rows(path, change):
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


@pytest.mark.parametrize("spoil, told", [
    (lambda path: rows(path, lambda lines: lines[1:]), "ledger.jsonl:1: does not follow"),
    (lambda path: rows(path, lambda lines: lines[:-1]), "deleted at the end"),
    (lambda path: rows(path, lambda lines: [b"{}\n", *lines[1:]]), "ledger.jsonl:1: not a ledger row"),
    (lambda path: rows(path, lambda lines: [lines[0].replace(b"9 steps", b"8 steps"), *lines[1:]]), ":1: was edited"),
    (lambda path: rows(path, lambda lines: []), "ledger.jsonl: empty ledger: it was emptied, since its ledger.head"),
    (lambda path: path.unlink(), "ledger.jsonl: no ledger there, but its ledger.head is"),
    (lambda path: path.with_suffix(".head").unlink(), "ledger.head: missing or damaged"),
    (lambda path: path.with_suffix(".head").write_text('{"row": 1, "hash": "x"}'), ":2: is not the line"),
])
def test_every_refusal_names_the_remedy(tmp_path, spoil, told):
    path = tmp_path / "ledger.jsonl"
    finished(path, steps=9)
    spoil(path)
    with pytest.raises(CramError, match=re.escape(told)) as raised:
        read_ledger(path)
    assert str(raised.value).endswith(REMEDY)


def test_a_ledger_that_died_at_birth_may_be_removed(tmp_path):
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(CramError, match="nothing was charged yet, remove it and start again"):
        read_ledger(tmp_path / "ledger.jsonl")


def test_a_teachers_work_is_told_apart(tmp_path):
    teacher = finished(tmp_path / "big" / "ledger.jsonl", "100 steps", steps=100, tokens=5000, flops=3e9)
    summary = finished(tmp_path / "small" / "ledger.jsonl", "140 steps", teacher, steps=40, tokens=800, flops=1e9)
    assert (summary.steps, summary.tokens, summary.flops, summary.spent) == (140, 5800, 4e9, 140)
    assert [summary.own(name) for name in ("steps", "tokens", "flops")] == [40, 800, 1e9]
    paid = summary.teacher
    assert (paid.run_id, paid.head, paid.steps, paid.tokens, paid.flops) == ("big", teacher.head, 100, 5000, 3e9)
    assert paid.seconds == pytest.approx(teacher.seconds)
    assert teacher.teacher is None and teacher.own("steps") == 100


def test_the_command_tells_them_apart(cram, tmp_path):
    teacher = finished(tmp_path / "big" / "ledger.jsonl", "100 steps", steps=100, tokens=5000, flops=3e9)
    finished(tmp_path / "small" / "ledger.jsonl", "140 steps", teacher, steps=40, tokens=800, flops=1e9)
    told = "work       40 steps, 800 tokens, 1e+09 FLOPs, and the teacher's 100 steps, 5000 tokens, 3e+09 FLOPs\n"
    assert told in cram("ledger", tmp_path / "small").out
    assert "work       100 steps, 5000 tokens, 3e+09 FLOPs\n" in cram("ledger", tmp_path / "big").out
