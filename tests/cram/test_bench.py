"""cram bench: the arithmetic of timing on a fake clock, failures that become rows, and the pages made from the JSON alone."""

import json
import statistics
import sys
import types
from functools import partial

import pytest
import torch

from cram import bench
from cram.bench import attention, measure, write
from cram.bench.measure import CudaTimer, HostTimer, Timing, Unavailable, race
from cram.cli import main
from cram.errors import CramError


class Clock:
    """Seconds that pass only when somebody works; ``worked`` tells who did, in order."""

    def __init__(self):
        self.now, self.worked = 0.0, []

    def __call__(self):
        return self.now

    def worker(self, name, durations, ready=0.0):
        """A competitor that takes ``ready`` seconds to get ready and the next of ``durations`` to work."""
        queue = list(durations)

        def work():
            self.worked.append(name)
            self.now += queue.pop(0)

        def get_ready():
            self.now += ready
            return work
        return get_ready


def fail(error, *_):
    raise error


# ---- timing


def test_timing_is_the_median_of_what_is_timed_alone():
    clock = Clock()
    results = race({"a": clock.worker("a", [9, 9, 3, 1, 2, 4, 5], ready=100), "b": clock.worker("b", [1] * 7)},
                   HostTimer("cpu", clock), rounds=5, warm_up=2)
    assert results["a"] == Timing(median=3, least=1, p25=2, p75=4, rounds=5, warm_up=218)  # getting ready counts there only
    assert results["b"] == Timing(1, 1, 1, 1, 5, 2)
    assert clock.worked == ["a", "a", "b", "b", *"ab" * 5], "competitors take turns"
    assert results["a"].milliseconds() == {"ms": 3000, "min": 1000, "p25": 2000, "p75": 4000}


def test_one_round_has_no_spread():
    assert Timing.of([2.0], 1.0) == Timing(2, 2, 2, 2, 1, 1)


@pytest.mark.parametrize("error, told", [
    (Unavailable("needs a card"), "needs a card"), (CramError("a: b; do c"), "a: b; do c"),
    (ImportError("no module"), "ImportError: no module"), (ValueError(), "ValueError: "),
    (torch.OutOfMemoryError("CUDA out of memory.\nTried to"), "OutOfMemoryError: CUDA out of memory.")])
def test_a_failure_is_a_result(error, told):
    clock = Clock()
    late = clock.worker("late", [1, 1, 1])  # works three times, then has no more to give
    results = race({"never": partial(fail, error), "late": late, "good": clock.worker("good", [1] * 6)},
                   HostTimer("cpu", clock), rounds=4, warm_up=2)
    assert results["never"] == told and results["late"].startswith("IndexError") and results["good"].rounds == 4
    assert list(results) == ["never", "late", "good"]


def test_an_interruption_is_no_result():
    with pytest.raises(KeyboardInterrupt):
        race({"a": partial(fail, KeyboardInterrupt())}, HostTimer(), rounds=1)


def test_on_a_card_the_queue_is_filled_while_it_sleeps(monkeypatch):
    """A fake card: a call takes 1 ms on it and half a millisecond to launch; the clock shows when it would be idle."""
    clock, slept, flushed = Clock(), [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = len(clock.worked)

        def elapsed_time(self, end):
            return float(end.at - self.at)  # milliseconds: 1 for each call between the two

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: types.SimpleNamespace(zero_=lambda: flushed.append(size)))
    timer = CudaTimer()
    timer.clock = clock
    pace = timer.warm_up(clock.worker("a", [5.0, 0.0, 0.0, 0.0005]), 3)
    assert pace == measure.Pace(pytest.approx(5.0005), calls=2, sleep=pytest.approx(1.5 * 2 * 0.0005)) and len(flushed) == 1
    assert timer.turn(clock.worker("a", [0.0] * 2), pace) == 0.001
    assert slept == [pytest.approx(0.0015 * 2e9, abs=2)] and flushed == [256 * 2**20] * 3


# ---- what is counted


def test_flops_and_documents():
    case = attention.Case(head_dim=64, heads=2, causal=False, length=128, tokens=512, row=256)
    assert case.flops() == 4 * 4 * 128**2 * 2 * 64
    mixture = attention.Case(64, 2, True, None, 512, 256)
    documents = mixture.documents()
    lengths = (documents.end_N - documents.start_N)[documents.start_N == torch.arange(512)]
    assert mixture.flops() == 2 * int(lengths.square().sum()) * 2 * 64 and int(lengths.sum()) == 512 and documents.row == 256
    assert bool((documents.start_N // 256 == (documents.end_N - 1) // 256).all()), "no document crosses a row"


def test_lengths_are_realistic():
    starts = attention.document_starts(2_000_000).nonzero()[0]
    lengths = (starts[1:] - starts[:-1]).tolist()
    assert starts[0] == 0 and 500 < statistics.median(lengths) < 700 and 900 < statistics.mean(lengths) < 1100


@pytest.mark.parametrize("setting", [attention.RAW, attention.ROTARY])
@pytest.mark.parametrize("causal, length", [(True, 64), (False, None)])
def test_the_truth_tells_right_paths_from_wrong_ones(monkeypatch, setting, causal, length):
    """Also the forced fused and unfused paths, by the twin of the kernels."""
    monkeypatch.setattr(attention, "why_not", lambda backend, device, head_dim: None)
    p = attention.Problem(attention.Case(16, 2, causal, length, 256, 128), "cpu")
    true, paths = attention.truth(p, setting), attention.forwards(p, setting)
    names = ["triton"] if setting == attention.RAW else ["triton fused", "triton unfused"]
    for name in [*names, "sdpa mask", *["sdpa flash"] * (length is not None)]:
        forward, error = paths[name]
        assert error is None and max(attention.deviation(p, setting, forward, true).values()) < 1e-5
        with pytest.raises(Unavailable, match="wrong, not timed: error of o"):
            attention.deviation(p, setting, lambda: forward() * 1.05, true)
        with pytest.raises(Unavailable, match="nan"):
            attention.deviation(p, setting, lambda: forward() * float("nan"), true)


def test_a_wrong_path_is_a_row_without_times(monkeypatch):
    right = attention.PATHS["sdpa mask"]
    monkeypatch.setattr(attention, "PATHS", {"triton": partial(fail, Unavailable("absent")), "right": right,
                                             "wrong": lambda p: lambda q, k, v: right(p)(q, v, k)})
    p = attention.Problem(attention.Case(16, 2, True, 64, 128, 64), "cpu")
    rows = {row["path"]: row for row in attention.measure_case(p, attention.RAW, HostTimer(), 2, {})}
    assert rows["triton"]["error"] == "absent" and rows["wrong"]["error"].startswith("wrong, not timed")
    assert "forward" not in rows["wrong"] and "error" not in rows["right"] and rows["right"]["difference_ms"] is not None


# ---- the command


@pytest.fixture(scope="module", params=["attention", "step"])
def made(request, tmp_path_factory):
    """(what, folder) of a quick measurement, by the command."""
    out = tmp_path_factory.mktemp(request.param)
    assert main(["bench", request.param, "--quick", "--device", "cpu", "--repeats", "2", "--out", str(out)]) == 0
    return request.param, out


def test_the_record(made):
    what, out = made
    assert sorted(path.name for path in out.iterdir()) == [f"{what}_cpu.{end}" for end in ("json", "md", "png")]
    record = json.loads((out / f"{what}_cpu.json").read_text())
    assert record["command"] == f"cram bench {what} --quick --device cpu --repeats 2 --out {out}"
    assert record["complete"] is True and record["repeats"] == 2 and record["what"] == what and record["schema"] == write.SCHEMA
    facts = record["environment"]
    assert facts["device"] == "cpu" and facts["torch"] == torch.__version__ and facts["date"].endswith("+00:00")
    assert {"name", "threads", "python", "triton", "commit", "changed"} <= set(facts)
    line, timed = record["view"]["line"], "forward" if what == "attention" else "step"
    for row in record["rows"]:
        assert isinstance(row.get("error"), str) != (timed in row), "a result or a reason"
        if timed in row:
            assert 0 < row[timed]["min"] <= row[timed]["p25"] <= row[timed]["ms"] <= row[timed]["p75"]
            assert row["warm_up_s"] > 0
    failed = {row[line]: row["error"] for row in record["rows"] if "error" in row}
    assert "needs a CUDA card" in failed["flex"] and "needs a CUDA card" in failed["varlen"]
    if what == "attention":
        assert "twin" in failed["triton"]
        assert all(max(row["deviation"].values()) < 1e-5 for row in record["rows"] if timed in row)
        row = next(row for row in record["rows"] if timed in row)
        flops = 4 * row["tokens"] * row["length"] * row["heads"] * row["head_dim"]
        assert row["direction"] == "bidirectional" and row["dtype"] == "float32"
        assert row["forward"]["tflops"] == pytest.approx(flops / row["forward"]["ms"] / 1e9)
        assert row["backward"]["tflops"] == pytest.approx(2.5 * flops / row["backward"]["ms"] / 1e9)
    else:
        row = next(row for row in record["rows"] if timed in row)
        assert row["tokens_per_second"] == pytest.approx(row["batch_tokens"] / row["step"]["ms"] * 1e3) and 5 < row["loss"] < 10


def test_pages_come_from_the_json_alone(made, cram):
    what, out = made
    page, drawing, record = (out / f"{what}_cpu.{end}" for end in ("md", "png", "json"))
    before = page.read_bytes(), drawing.read_bytes()
    page.unlink(), drawing.unlink()
    assert cram("bench", "render", record).code == 0
    assert (page.read_bytes(), drawing.read_bytes()) == before and before[1].startswith(b"\x89PNG")
    changed = json.loads(record.read_text())
    row = next(row for row in changed["rows"] if "error" not in row)
    row["warm_up_s"] = 987654.0
    (out / "other").mkdir(exist_ok=True)
    (out / "other" / record.name).write_text(json.dumps(changed))
    assert cram("bench", "render", out / "other" / record.name).code == 0
    assert "987654.0" in (out / "other" / page.name).read_text() and "987654.0" not in page.read_text()
    (out / "other" / record.name).unlink()


def test_every_row_and_every_failure_is_in_the_table(made):
    what, out = made
    record, page = json.loads((out / f"{what}_cpu.json").read_text()), (out / f"{what}_cpu.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(lines) == len(record["rows"]) + page.count("\n## ")
    assert record["command"] in page and "(baseline)" not in page
    for row in record["rows"]:
        assert row.get("error", "").split(";")[0] in page


@pytest.mark.parametrize("arguments, told", [
    (["atention"], "invalid choice: 'atention' (choose from"), ([], "required: what"), (["render"], "needs one file"),
    (["step", "x.json"], "cram bench step takes no file, got 'x.json'"), (["loss", "--check"], "--check is for cram bench kernels"),
    (["loss", "--repeats", "0"], "expected a whole number from 1, got '0'"),
    (["render", "/nowhere/x.json"], "/nowhere/x.json: No such file")])
def test_mistakes_end_in_one_line_with_a_remedy(cram, arguments, told):
    code, out, err = cram("bench", *arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert any(remedy in err for remedy in ("cram bench --help", "such as", "check the path"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_no_card_is_said(cram):
    assert "torch sees no CUDA card here; use --device cpu" in cram("bench", "attention", "--device", "cuda").err


@pytest.mark.parametrize("content, told", [("{", "not JSON"), ("[]", "not a measurement"), ('{"schema": 0}', "schema 1"),
                                           ('{"schema": 1, "rows": [], "command": "cram bench x"}', "holds no row yet")])
def test_a_foreign_file_is_not_rendered(cram, tmp_path, content, told):
    (tmp_path / "x.json").write_text(content)
    result = cram("bench", "render", tmp_path / "x.json")
    assert result.code == 2 and told in result.err and [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_an_interruption_keeps_the_finished_cases(cram, tmp_path, monkeypatch):
    def cases(device, quick, repeats, say):
        yield [{"path": "a", "n": 1, "value": 2.0}, {"path": "b", "n": 1, "error": "no room"}]
        raise KeyboardInterrupt

    view = {"title": "T", "panel": "n {n}", "x": "n", "line": "path", "kind": "bars", "baseline": "a",
            "y": [["value", "v"]],
            "columns": [["path", "path", ""], ["value", "value", ".1f"]]}
    monkeypatch.setattr(bench, "_bench", lambda what: (view, ["a note"], {"cpu": 7, "cuda": 7}, cases))
    assert cram("bench", "step", "--device", "cpu", "--out", tmp_path).code == 130
    assert cram("bench", "render", tmp_path / "step_cpu.json").code == 0
    page = (tmp_path / "step_cpu.md").read_text()
    assert "Not complete" in page and "Medians of 7 rounds" in page
    assert "| b | – | no room |" in page and "| a | 2.0 |  |" in page


def test_other_benches_are_reached(cram, tmp_path, monkeypatch):
    called = []
    kernels = types.SimpleNamespace(main=lambda *given: called.append(given))
    monkeypatch.setitem(sys.modules, "cram.bench.kernels", kernels)
    monkeypatch.setattr(bench, "kernels", kernels, raising=False)
    assert cram("bench", "kernels", "--out", tmp_path, "--check").code == 0 and called == [(tmp_path, True)]
    from cram.bench import loss

    row = {"way": "plain", "p": 8, "d": 4, "v": 16, "seconds": 0.5, "fastest": 0.25, "slowest": 1.0, "peak_bytes": 2**20,
           "error_loss": 0.0, "error_dx": 1e-7, "error_dweight": 1e-7}
    monkeypatch.setattr(loss, "measure", lambda *given: called.append(given) or [row])
    assert cram("bench", "loss", "--quick", "--device", "cpu", "--out", tmp_path).code == 0
    assert called[1:] == [("cpu", loss.SIZES["cpu"][:1], 3)]
    assert "| plain | 500.000 | 250.000 | 1000.000 | 1.0 |" in (tmp_path / "loss_cpu.md").read_text()


def test_a_way_that_runs_out_of_memory_becomes_a_row(monkeypatch):
    from cram.bench import _loss_cases, loss

    def too_large(x_PD, weight_VD, labels_P):
        raise torch.OutOfMemoryError("tried to allocate 8 GiB")

    monkeypatch.setattr(loss, "SIZES", {"cpu": [(64, 8, 32)]})
    monkeypatch.setattr(loss, "ways", lambda: {"plain": loss.plain, "huge": too_large})
    rows = {row["way"]: row for rows in _loss_cases("cpu", True, 1, lambda line: None) for row in rows}
    assert "tried to allocate 8 GiB" in rows["huge"]["error"] and rows["plain"]["ms"] > 0 and rows["plain"]["error_loss"] < 1e-5
