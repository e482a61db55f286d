"""Telemetry: what was written is what a reader sees, through crashes and resumes."""

import json
import subprocess
import sys
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from cram.errors import CramError
from cram.telemetry import TAGS, Telemetry, read_metrics

CONFIG = {"name": "t", "train": {"lr": 1e-3, "flag": True, "none": None, "list": ["a|b"]},
          "distill": {"weight": 0.5}}


def open_telemetry(folder, **more):
    said = []
    return Telemetry(folder, config=CONFIG, print_every=0.0, say=said.append, **more), said


def train_row(step, spent, loss=3.0):
    return {"step": step, "progress": spent / 100, "spent": spent, "loss": loss, "lr": 1e-3, "muon_lr": None,
            "grad_norm": 1.0, "tokens": 10 * step, "tokens_per_second": 5.0, "batch_tokens": 10, "mask_rate": 0.3,
            "mfu": None, "memory_bytes": None}


def read_board(folder):
    board = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    board.Reload()
    return board


def points(folder, tag):
    return [(event.step, round(event.value, 4)) for event in read_board(folder).Scalars(tag)]


@pytest.fixture
def crashed(tmp_path):
    """Ten logged steps at 1.1 s each, a validation after step 4 and one (to be lost) after step 9; then a crash."""
    telemetry, _ = open_telemetry(tmp_path)
    telemetry.plan({"device": "cpu", "parameters": 7})
    for step in range(1, 11):
        telemetry.train(train_row(step, 1.1 * step, loss=10.0 - step))
        if step in (4, 9):
            telemetry.validation({"step": step, "progress": 0.1, "spent": 1.1 * step, "loss": 5.0, "accuracy": 0.1,
                                  "bits_per_byte": 2.0 if step == 9 else None})
            telemetry.sample(f"words of step {step}", step)
    return tmp_path  # not closed: what a kill leaves


def resume(folder):
    telemetry, _ = open_telemetry(folder, resume_step=6)
    telemetry.resume({"step": 6, "spent": 14.5, "lost": 4.4})
    for step in range(7, 10):
        telemetry.train(train_row(step, 8.0 + 1.1 * step, loss=20.0 - step))
    telemetry.end({"step": 9, "progress": 1.0, "spent": 18.0, "reason": "budget"})
    telemetry.close()


def test_rows_of_lost_work_are_superseded(crashed):
    resume(crashed)
    rows = read_metrics(crashed / "metrics.jsonl")
    assert [row["loss"] for row in rows if row["kind"] == "train"] == [9, 8, 7, 6, 5, 4, 13, 12, 11]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4]
    assert rows[-1]["kind"] == "end" and rows[0]["parameters"] == 7
    assert len((crashed / "metrics.jsonl").read_text().splitlines()) > len(rows)  # the file itself is never rewritten


def test_no_stale_point_on_either_axis(crashed):
    resume(crashed)
    board = crashed / "tensorboard"
    losses = [9, 8, 7, 6, 5, 4, 13, 12, 11]
    assert points(board, "loss/train") == list(zip(range(1, 10), losses))
    spent = [int(1.1 * step) for step in range(1, 7)] + [int(8.0 + 1.1 * step) for step in range(7, 10)]
    assert points(board / "by_budget", "loss/train") == list(zip(spent, losses))
    assert points(board, "loss/validation") == [(4, 5.0)]
    assert points(board / "by_budget", "loss/validation") == [(4, 5.0)]
    assert "validation/bits_per_byte" not in read_board(board).Tags()["scalars"]  # seen in lost work only
    assert "speed/mfu" not in read_board(board).Tags()["scalars"]  # null: never drawn


def test_points_keep_their_wall_time_through_a_resume(crashed):
    before = [event.wall_time for event in read_board(crashed / "tensorboard").Scalars("loss/train")][:6]
    time.sleep(0.05)
    resume(crashed)
    after = [event.wall_time for event in read_board(crashed / "tensorboard").Scalars("loss/train")][:6]
    assert after == pytest.approx(before, abs=2e-3)


def test_layout_text_and_hparams_are_in_the_events(crashed):
    resume(crashed)
    board = read_board(crashed / "tensorboard")
    layout = layout_pb2.Layout.FromString(board.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    charts = {category.title: [list(chart.multiline.tag) for chart in category.chart] for category in layout.category}
    assert list(charts) == ["loss", "schedule", "speed", "budget"] and ["loss/train", "loss/validation"] in charts["loss"]
    drawn = {tag for tags in TAGS.values() for tag in tags.values()}
    assert all(tag in drawn for category in charts.values() for chart in category for tag in chart)
    config = board.Tensors("config/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| train.lr | 0.001 |" in config and r'["a\|b"]' in config
    samples = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("sample/text_summary")]
    assert len(samples) == 1 and "words of step 4" in samples[0]
    content = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    hparams = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["train.lr"].number_value == 1e-3 and hparams["train.none"].string_value == "null"
    assert hparams["distill.weight"].number_value == 0.5
    assert "name" not in hparams
    assert points(crashed / "tensorboard", "final/loss_train") == [(9, 11.0)]
    runs = {path.parent.name for path in crashed.rglob("events.out.tfevents.*")}
    assert runs == {"tensorboard", "by_budget"}  # hparams opened no run of their own


def test_resume_from_nothing_forgets_everything(crashed):
    telemetry, _ = open_telemetry(crashed, resume_step=0)
    telemetry.resume({"step": 0, "spent": 12.0, "lost": 12.0})
    telemetry.train(train_row(1, 13.5))
    telemetry.close()
    assert points(crashed / "tensorboard" / "by_budget", "loss/train") == [(13, 3.0)]
    assert [row["step"] for row in read_metrics(crashed / "metrics.jsonl") if row["kind"] == "train"] == [1]


def test_torn_last_line_is_ignored_then_cut(crashed):
    path = crashed / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in (1, 5, 40):
        path.write_bytes(whole[:-cut])
        assert [row["kind"] for row in read_metrics(path)] == [json.loads(x)["kind"] for x in whole.splitlines()[:-1]]
    resume(crashed)
    assert read_metrics(path)[-1]["kind"] == "end"


def test_a_broken_line_inside_is_named(crashed):
    path = crashed / "metrics.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-5]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CramError, match=r"metrics.jsonl, line 3: not JSON"):
        read_metrics(path)
    path.write_text("[1]\n")
    with pytest.raises(CramError, match="line 1: not an object"):
        read_metrics(path)
    with pytest.raises(CramError, match="no such file"):
        read_metrics(crashed / "nothing.jsonl")


def test_plain_progress_lines_come_at_their_interval(tmp_path, monkeypatch):
    said, now = [], [1000.0]
    telemetry = Telemetry(tmp_path, config=CONFIG, print_every=10.0, say=said.append)
    monkeypatch.setattr("cram.telemetry.time.monotonic", lambda: now[0])
    monkeypatch.setattr("cram.telemetry.sys.stderr.isatty", lambda: False)
    for now[0] in (1000.0, 1004.0, 1011.0, 1020.0, 1021.5):
        telemetry.progress(fraction=0.25, left="2m 15s", loss=3.14159, tokens_per_second=12345.6, eta=135.0)
    telemetry.close()
    assert said == [" 25%  2m 15s left, loss 3.142, 12,346 tokens/s, ETA 2m 15s"] * 3


def test_a_terminal_gets_one_bar(tmp_path, monkeypatch, capsys):
    telemetry, said = open_telemetry(tmp_path)
    monkeypatch.setattr("cram.telemetry.sys.stderr.isatty", lambda: True)
    telemetry.progress(fraction=0.5, left="1e9 tokens", loss=2.0, tokens_per_second=10.0, eta=7300.0)
    telemetry.progress(fraction=1.0000001, left="0 tokens", loss=2.0, tokens_per_second=10.0, eta=-1.0)
    telemetry.close()
    shown = capsys.readouterr().err
    assert said == [] and "50%|" in shown and "1e9 tokens left, loss 2.000, 10 tokens/s, ETA 2h 01m" in shown
    assert "100%|" in shown


def test_reading_metrics_needs_neither_torch_nor_tensorboard():
    code = "import sys, cram.telemetry; sys.exit(any(m in sys.modules for m in ('torch', 'tensorboard', 'tqdm')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
