"""Techniques that exclude each other are refused with a reason, and the README says so."""

import re

import pytest

from cram.combinations import COMBINATIONS, table
from cram.config import KEYS, load
from cram.errors import CramError


@pytest.fixture
def teacher(tmp_path, monkeypatch):
    """A folder that looks like a finished run from the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "big" / "pretrain").mkdir(parents=True)
    (tmp_path / "runs" / "big" / "pretrain" / "ledger.jsonl").touch()
    (tmp_path / "README.md").touch()


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda combination: combination.what)
def test_every_combination_is_refused_with_reason_and_remedy(combination, teacher):
    with pytest.raises(CramError, match=re.escape(combination.told())) as raised:
        load("demo", ["train.batch_tokens=2048", *combination.example])
    assert str(raised.value).startswith("command line: ")
    assert set(combination.keys) <= set(KEYS)


@pytest.mark.parametrize("overrides", [
    ("optimizer.type=adalomo", "optimizer.clip=null", "optimizer.fused_backward=true"),
    ("optimizer.type=adamw", "optimizer.state_bits=8"), ("optimizer.type=adamw", "optimizer.offload=true"),
    ("optimizer.type=muon", "optimizer.offload=true"), ("optimizer.type=adalomo", "optimizer.cautious=true"),
    ("optimizer.cautious=true",), ("train.parallel=ddp", "train.ema=0.9"), ("train.fp8=true",),
    ("train.sequence_schedule=[[0, 64], [0.5, 128]]", "model.rope_base_end=40000"),
    ("distill.teacher=runs/big/pretrain", "train.parallel=ddp")])
def test_what_goes_together_is_let_through(overrides, teacher):
    load("demo", [*overrides])


def test_a_teacher_that_is_not_there_is_refused():
    with pytest.raises(CramError, match="distill.teacher: no ledger.jsonl in nowhere"):
        load("demo", ["distill.teacher=nowhere"])


def test_the_readme_shows_the_table(root):
    assert table() in (root / "README.md").read_text()
