"""``cram profile``: what it prints and leaves, and what it refuses."""

import contextlib
import gzip
import io
import json
import re

import pytest

from cram.cli import main
from cram.insight.profile.draw import draw_roofline, draw_time
from cram.insight.profile.measure import doubts
from cram.insight.profile.page import lines, page, write
from tests.cram.running import restore_torch  # noqa: F401

TINY = ("model.width=32", "model.heads=2", "train.sequence_length=32", "train.batch_tokens=512", "tokenizer.vocab_size=300",
        "train.threads=1")


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """The command run once: its folder, what it said, its trace."""
    folder = tmp_path_factory.mktemp("profile")
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr("cram.insight.profile.machine.LEAST_SECONDS", 0.01)
        code = main(["profile", "demo", *TINY, f"out={folder}/runs", "train.recompute=full", "--steps", "3", "--layers",
                     "--trace", str(folder / "trace.json.gz"), "--progress", "0.5"])
    assert code == 0
    return folder, said.getvalue()


def test_the_command_leaves_a_page_and_a_table(profiled):
    folder, said = profiled
    out = folder / "runs" / "demo" / "profile"
    assert {path.name for path in out.iterdir()} == {"profile.json", "profile.md", "profile.html", "time.svg", "roofline.svg"}
    record = json.loads((out / "profile.json").read_text())
    assert record["command"].startswith("cram profile demo") and record["progress"] == 0.5
    assert "block 1: mlp down" in said and "page: " in said and "random tokens" in said
    for each in record["improvements"]:
        assert each["told"] in said
    assert sum(row["total_ms"] for row in record["modules"]) == pytest.approx(record["step"]["sum_ms"])
    assert sum(row["total_ms"] for row in record["layers"]) == pytest.approx(record["step"]["sum_ms"])
    assert sum(sum(row["flops"].values()) for row in record["modules"]) == record["flops"][-1]["counted"]
    assert record["step"]["ms"]["recompute"] > 0 and 0 < record["step"]["mfu"] < 1
    assert record["memory"]["peak"]["backward"] > record["memory"]["at_rest"] > record["memory"]["weights"]
    html = (out / "profile.html").read_text()
    assert "<script" not in html and not re.search(r'(src|href)="http|url\(http', html) and "Roofline" in html
    assert [block for block in page(record, {"time": "<svg/>", "roofline": "<svg/>"}) if block[0] == "title"]
    assert any(line.startswith("sum") for line in lines(record, layers=False))


def test_the_page_is_made_of_the_record_alone(profiled, tmp_path):
    record = json.loads((profiled[0] / "runs" / "demo" / "profile" / "profile.json").read_text())
    write(record, tmp_path)
    assert (tmp_path / "profile.html").read_bytes() == (profiled[0] / "runs" / "demo" / "profile" / "profile.html").read_bytes()
    assert draw_time(record["modules"]) == draw_time(record["modules"])
    roofline = draw_roofline(record["operations"], record["machine"])
    assert all(f">{number}</text>" in roofline for number in range(1, 13)) and "GFLOP/s" in roofline


def test_the_trace_is_json_with_our_names(profiled):
    events = json.loads(gzip.decompress((profiled[0] / "trace.json.gz").read_bytes()))["traceEvents"]
    ranges = [event for event in events if event.get("cat") == "user_annotation"]
    names = {event["name"] for event in ranges}
    assert {"forward", "backward", "recompute", "optimizer", "forward/block 1/qkv projection", "backward/block 0/mlp down",
            "recompute/block 0/norm", "optimizer/Muon", "data/batch"} <= names
    assert all(event["dur"] >= 0 for event in ranges)
    inner = next(event for event in ranges if event["name"] == "optimizer/Muon")
    assert any(event["name"] == "optimizer" and event["ts"] <= inner["ts"] <= event["ts"] + event["dur"] for event in ranges)


@pytest.mark.parametrize("arguments, told", [
    (("--steps", "1"), "--steps 1"), (("--progress", "1"), "--progress 1"), (("--progress", "nan"), "--progress nan"),
    (("--steps", "many"), "--steps"), (("model.widht=3",), "model.widht"), (("nowhere",), "nowhere"),
    (("--trace", "/nowhere/at/all.json"), "--trace"), (("train.micro_batch_tokens=3000",), "micro_batch_tokens"),
    (("train.parallel=ddp",), "train.parallel=ddp"), (("--out", __file__), "is a file"),
    (("--thread-time", "train.threads=2"), "train.threads=1")])
def test_wrong_arguments_end_in_one_line(cram, tmp_path, arguments, told):
    found = cram("profile", "demo", *TINY, f"out={tmp_path}", *arguments)
    assert found.code == 2 and told in found.err and len(found.err.splitlines()) == 1 and "Traceback" not in found.err


def test_doubts_are_said_aloud(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    for load, looking, told in ((1.0, 0.01, []), (2.2, -0.04, []), (9.0, 0.01, ["busy"]), (9.0, -0.2, ["busy", "add up"])):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        said = doubts({"step": {"looking": looking, "clock": "cpu"}})
        assert len(said) == len(told) and all(word in line for word, line in zip(told, said))
        assert not any(doubts({"step": {"looking": 0.0, "clock": clock}}) for clock in ("cuda", "thread"))


def test_json_is_all_that_is_printed_when_asked(cram, tmp_path, monkeypatch):
    monkeypatch.setattr("cram.insight.profile.machine.LEAST_SECONDS", 0.01)
    found = cram("profile", "demo", *TINY, f"out={tmp_path}", "--steps", "2", "--json")
    assert found.code == 0 and json.loads(found.out)["step"]["steps"] == 2
