"""cram plan --check: what is foreseen beside what the ledger says."""

from cram.insight.plan import check as checking


def rows_of_a_check(foreseen, ledger=100):
    facts = {"size": "1x64", "kind": "time", "parameters": 1, "budget": "40s", "seconds": 1.0, "share": 1.0}
    off = foreseen / ledger - 1
    return [facts | {"what": "foreseen", "tokens": foreseen, "off": off, "off_at_share": off},
            facts | {"what": "ledger", "tokens": ledger}]


def test_a_check_compares_with_the_ledger(monkeypatch, tmp_path):
    """With runs and measurements that are made up, errors are exactly those put in, and the middle one of three rounds
    counts."""
    monkeypatch.setattr(checking, "bring", lambda settings, stage: tmp_path)
    monkeypatch.setattr(checking, "make_cases", lambda *arguments: [checking.Case("1x64", (), "time", "40s")])
    made = iter([105, 80, 130, 111, 112, 100])
    monkeypatch.setattr(checking, "run_case", lambda *arguments: rows_of_a_check(next(made)))
    said = []
    assert checking.check([], 1.0, tmp_path, "cram plan --check", said.append, ("1x64",)) == 0
    assert "1 were foreseen within 10%; on the average off by 5.0%" in said[-1]
    assert "+5.0% -20.0% +30.0%" in (tmp_path / "plan_cpu.md").read_text()
    assert checking.check([], 1.0, tmp_path, "cram plan --check", said.append, ("1x64",)) == 1    # 11 in a hundred


def test_a_round_that_failed_is_not_averaged_away(monkeypatch, tmp_path):
    failed = [{"size": "1x64", "kind": "time", "what": "foreseen", "error": "no memory"}]
    assert checking.medians([rows_of_a_check(100), failed, rows_of_a_check(100)]) == failed
