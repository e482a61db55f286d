"""The day on a card: automatic micro-batch, bf16, compilation, budget kept. Run: scripts/test tests/gpu"""

import pytest
import torch

from cram.audit import read_ledger
from cram.telemetry import read_metrics

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["bert_day", "gpt_day"])
def test_a_minute_of_the_day(cram, tmp_path, name):
    result = cram("run", name, "budget=60s", f"out={tmp_path}", "data.source=installed-docs", "tokenizer.vocab_size=8192",
                  "telemetry.heartbeat=1")
    assert result.code == 0, result.err
    ledger = read_ledger(tmp_path / name / "pretrain" / "ledger.jsonl")
    assert 0.9 < ledger.fraction <= 1.0 and ledger.account["compile"] > 0
    rows = read_metrics(tmp_path / name / "pretrain" / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "train"]
    assert steps[-1]["progress"] == 1.0 and steps[-1]["loss"] < steps[0]["loss"]
    assert steps[-1]["memory_bytes"] < torch.cuda.get_device_properties(0).total_memory


def test_attention_on_the_card_equals_the_cpu():
    from cram.ops import Documents, attention
    start = torch.tensor([0] * 5 + [5] * 11, dtype=torch.int32)
    end = torch.tensor([5] * 5 + [16] * 11, dtype=torch.int32)
    q, k, v = (torch.randn(16, 2, 32) for _ in range(3))
    for causal in (False, True):
        here = attention(q, k, v, documents=Documents(start, end, 16), causal=causal)
        there = attention(q.cuda(), k.cuda(), v.cuda(), documents=Documents(start.cuda(), end.cuda(), 16), causal=causal)
        torch.testing.assert_close(here, there.cpu(), rtol=1e-4, atol=1e-4)
