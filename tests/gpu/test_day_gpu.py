"""The day on a card: automatic micro-batch, bf16, compilation, budget kept. Run: scripts/test tests/gpu"""

import pytest
import torch

from cram.audit import read_ledger
from cram.telemetry import read_metrics

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", ["bert_day", "gpt_day"])
def test_some_minutes_of_the_day(cram, tmp_path, name):
    result = cram("run", name, "budget=150s", f"out={tmp_path}", "data.source=installed-docs", "tokenizer.vocab_size=8192",
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


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Where runs of this file go: text, tokenizer and shards are made once."""
    return tmp_path_factory.mktemp("techniques")


def brief(cram, out, name, *switches, steps=40):
    """A short run on the card; rows of its metrics."""
    result = cram("pretrain", "demo", f"name={name}", f"out={out}", f"budget={steps} steps", "model.width=256", "model.heads=4",
                  "train.batch_tokens=16384", "train.device=cuda", "train.compile=off", "telemetry.log_every=1", *switches)
    assert result.code == 0, result.err
    return [row for row in read_metrics(out / name / "pretrain" / "metrics.jsonl") if row["kind"] == "train"]


TECHNIQUES = {
    "selective": ("train.recompute=selective",), "full": ("train.recompute=full",),
    "adalomo": ("optimizer.type=adalomo", "optimizer.lr=0.05"),
    "fused": ("optimizer.type=adalomo", "optimizer.lr=0.05", "optimizer.clip=null", "optimizer.fused_backward=true"),
    "8-bit": ("optimizer.type=adamw", "optimizer.state_bits=8"), "offload": ("optimizer.type=adamw", "optimizer.offload=true"),
    "cautious": ("optimizer.cautious=true",), "fp16": ("train.precision=fp16",), "chunked": ("train.loss=chunked",),
    "hybrid": ("objective.type=hybrid", "train.micro_batch_tokens=4096"), "ema": ("train.ema=0.9",),
    "lengths": ("train.sequence_schedule=[[0, 32], [0.5, 128]]", "model.rope_base_end=40000"),
    "windows": ("train.window_schedule=[[0, 16], [0.5, 128]]",), "layers": ("train.layer_schedule=[[0, 1], [0.5, 2]]",),
    "parts": ("model.value_embeddings=true", "model.residual_scalars=true", "model.logit_softcap=15", "model.mlp=relu2",
              "model.bigram_rows=4096")}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_trains_on_the_card(cram, out, name):
    if name == "8-bit":
        pytest.importorskip("bitsandbytes")
    rows = brief(cram, out, name, *TECHNIQUES[name])
    assert rows[-1]["progress"] == 1.0 and rows[-1]["loss"] < rows[0]["loss"] - 0.3


def test_fp8_learns_as_bf16_does(cram, out):
    from cram.fp8 import why_not
    if reason := why_not("cuda"):
        pytest.skip(reason)
    plain, eight = brief(cram, out, "bf16"), brief(cram, out, "fp8", "train.fp8=true")
    assert eight[-1]["loss"] == pytest.approx(plain[-1]["loss"], abs=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_interrupted_equals_uninterrupted_on_the_card(cram, out, tmp_path, monkeypatch, optimizer):
    """Bit for bit; compilation is off here, as above."""
    import cram.train as loop
    from cram.checkpoint import load_newest
    switches = f"optimizer.type={optimizer}", "train.checkpoint_every_steps=10", "train.micro_batch_tokens=8192", "seed=1"
    brief(cram, out, optimizer, *switches)
    real = loop.Day.optimizer_step

    def stop(day, progress):
        if day.at.step == 25:
            raise KeyboardInterrupt
        real(day, progress)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Day, "optimizer_step", stop)
        with pytest.raises(AssertionError, match="interrupted"):
            brief(cram, tmp_path, optimizer, *switches)
    brief(cram, tmp_path, optimizer, *switches)
    weights = [load_newest(folder / optimizer / "pretrain" / "checkpoints", None, print)["model"] for folder in (out, tmp_path)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_three_minutes_are_compilation_and_steps(cram, tmp_path):
    """At least 97% of what is charged; the rest is setup, validation, saving and waiting for data."""
    result = cram("run", "bert_day", "budget=3m", f"out={tmp_path}", "data.source=installed-docs", "tokenizer.vocab_size=32768")
    assert result.code == 0, result.err
    ledger = read_ledger(tmp_path / "bert_day" / "pretrain" / "ledger.jsonl")
    assert (ledger.account["compile"] + ledger.account["steps"]) / ledger.seconds >= 0.97, ledger.account
