"""The report says what the files of the run say, and asks nothing of the network."""

import json
import re
from html.parser import HTMLParser

import pytest

from cram.audit import read_ledger
from cram.budget import Budget
from cram.ledger import Ledger
from cram.config import load
from cram.errors import CramError
from cram.report import write_report
from cram.report_figures import draw_account, draw_curves, draw_pace, draw_tokens, smooth, tokens_read
from cram.report_page import to_html, to_markdown
from cram.schema import Config
from cram.telemetry import Telemetry


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


QUANTIZED = {"version": 1, "objective": "masked", "device": "cpu", "group": 64, "scored_tokens": 900, "calibration_tokens": 0,
             "speed": "scoring", "skipped": {},
             "rows": [{"scheme": "none", "bits_per_weight": 32.0, "matrix_bytes": 4e6, "file_bytes": 5e6, "loss": 3.6,
                       "tokens_per_second": 100.0}]}


@pytest.fixture
def run(tmp_path):
    """A finished run of 100 s: 10 s setup, 80 s steps, 10 s saving."""
    now = [0.0]
    ledger = Ledger(tmp_path / "pretrain" / "ledger.jsonl", Budget.parse("100s"), "feedc0ffee12", heartbeat=3600.0,
                    clock=lambda: now[0])
    ledger.measure_energy(lambda: 3.6e4 * now[0])
    telemetry = Telemetry(tmp_path / "pretrain", config={"name": "t"}, print_every=1.0, say=print)
    telemetry.plan({"device": "test card", "parameters": 1_234_567})
    now[0] = 10.0
    with ledger.account("steps"):
        for step in range(1, 41):
            now[0] += 2.0
            ledger.count(steps=1, tokens=1000)
            telemetry.train({"step": step, "progress": now[0] / 100, "spent": now[0], "loss": 8 - step / 10,
                             "lr": 1e-3 * (1 - step / 40), "muon_lr": None})
        telemetry.validation({"step": 40, "progress": 0.9, "spent": 90.0, "loss": 4.5, "accuracy": 0.3, "bits_per_byte": None})
    with ledger.account("saving"):
        now[0] += 10.0
    ledger.close("finished")
    telemetry.close()
    write(tmp_path / "text/manifest.json", {"version": 1, "source": {"source": "files", "files": ["a <b>.txt"]}})
    write(tmp_path / "tokenizer/manifest.json", {"version": 1})
    write(tmp_path / "data/manifest.json", {
        "version": 1, "vocab_size": 512, "tokenizer_sha256": "ab12",
        "funnel": [{"rule": "read", "documents": 1000, "bytes": 54321},
                   {"rule": "min_chars", "dropped_documents": 377, "dropped_bytes": 1234},
                   {"rule": "kept", "documents": 623, "bytes": 53087}],
        "splits": {"train": {"tokens": 15000, "documents": 600, "bytes": 50000, "shards": []},
                   "validation": {"tokens": 900, "documents": 23, "bytes": 3087, "shards": []}}})
    write(tmp_path / "evaluate/scores.json", {
        "version": 1, "objective": "masked", "gain_over_unigram": 0.4,
        "held_out": {"loss": 3.6, "accuracy": 0.351, "predicted": 135, "documents": 23, "tokens": 900},
        "baselines": {"uniform": {"loss": 6.238}, "unigram": {"loss": 6.0}},
        "minimal_pairs": {"accuracy": 0.625, "low": 0.3, "high": 0.87, "pairs": 8,
                          "phenomena": {"binding": {"accuracy": 0.625, "low": 0.3, "high": 0.87, "pairs": 8}}}})
    write(tmp_path / "evaluate/samples.json", [
        {"sentence": "the [MASK] | <script>", "blanks": [[{"token": " end", "probability": 0.61}]]}])
    write(tmp_path / "quantize/quantize.json", QUANTIZED)
    config = Config(name="page", budget="100s")
    config.model.layers, config.telemetry.usd_per_hour = 3, 36.0
    (tmp_path / "report").mkdir()
    return tmp_path, config


def report(run):
    folder, config = run
    said = []
    stages = {name: folder / name for name in ("text", "tokenizer", "data", "pretrain", "evaluate", "quantize")}
    write_report(config, stages, folder / "report", said.append)
    return folder / "report", said


def test_numbers_come_from_the_files(run):
    folder, said = report(run)
    head = json.loads((run[0] / "pretrain/ledger.head").read_text())["hash"]
    page = (folder / "report.md").read_text().replace("\\", "")
    for fact in ["1.2 million parameters on test card", "1m40.0s of 100s spent (100.0%), 40 steps, 40,000 tokens",
                 "| model | 3.6000 | 0.3510 |", "| unigram | 6.0000 |  |", "40.0% below unigram", "62.5% of 8 right",
                 "| binding | 62% |", "| setup | 10.0 | 10.0% |", "| steps | 80.0 | 80.0% |", "| lost | 0.0 | 0.0% |",
                 "1 session; ended by: finished", "energy 1.000 kWh", "cost 1.00 USD", "| min_chars | −377 | −1,234 |",
                 "| train | 600 | 50,000 | 15,000 | 3.33 |", "| model.layers | 3 |", "sha256 ab12", "feedc0ffee12", head,
                 "scripts/run runs/page/report/config.yaml", "![training and validation loss",
                 "- **3.600** masked loss, nats (unigram: 6.000)", "- **100.0%** of the budget spent (1m40.0s of 100s)",
                 "- **40 k** tokens read (40 steps)", "- **1.23 M** parameters (test card)", "- **80.0%** of the time in steps"]:
        assert fact in page, fact
    assert "model.width" not in page and "teacher:" not in page and "The teacher" not in page  # a default; none
    assert said == ["report: runs/page/report/report.html"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "account.svg", "config.yaml", "curves.svg", "report.html", "report.md"]


def test_benchmarks_and_quantization_have_their_sections_where_there_is_something_to_tell(run):
    folder, _ = run
    assert not any(title in (report(run)[0] / "report.md").read_text() for title in ("## Benchmarks", "## Fewer bits"))
    scores = json.loads((folder / "evaluate/scores.json").read_text())
    scores["benchmarks"] = {"blimp": {"metric": "accuracy", "score": 0.551, "low": 0.54, "high": 0.56, "examples": 67000,
                                      "chance": 0.5, "overlap": {"examples": 67000, "comparable": 6874, "found": 3}},
                            "glue.qnli": {"skipped": "no training examples"}}
    write(folder / "evaluate/scores.json", scores)
    row = {"scheme": "int4", "bits_per_weight": 4.5, "matrix_bytes": 5e5, "file_bytes": 2e6, "loss": 3.7, "tokens_per_second": 90.0}
    write(folder / "quantize/quantize.json", QUANTIZED | {"rows": [QUANTIZED["rows"][0], row], "skipped": {"kv4": "no cache"}})
    page = (report(run)[0] / "report.md").read_text().replace("\\", "")
    for fact in ["| blimp | accuracy | 55.1 | 54.0 to 56.0 |", "3 of 6,874", "skipped: glue.qnli: no training examples",
                 "![scores with their interval", "| int4 | 4.50 |", "3.7000", "kv4: skipped, no cache"]:
        assert fact in page, fact
    assert (folder / "report/benchmarks.svg").exists()


def test_a_teacher_is_told_apart(run):
    folder, _ = run
    seconds = [0.0]

    def closed(name, teacher=None, **work):
        path = folder / name / "ledger.jsonl"
        ledger = Ledger(path, Budget.parse("140 steps"), name, heartbeat=3600.0, clock=lambda: seconds[0])
        if teacher:
            ledger.pay_for_teacher(teacher)
        ledger.count(**work)
        seconds[0] += 30.0
        ledger.close("finished")
        return read_ledger(path)

    for name in ("ledger.jsonl", "ledger.head"):
        (folder / "pretrain" / name).unlink()
    teacher = closed("big", steps=100, tokens=100_000, flops=2e9)
    closed("pretrain", teacher, steps=40, tokens=40_000, flops=1e9)
    page = (report(run)[0] / "report.md").read_text().replace("\\", "")
    for fact in ["40 steps, 40,000 tokens, the teacher paid for. On held-out text",
                 "The teacher, run big, is part of this budget with its whole ledger: 30.0 s, 100 steps, 100,000 tokens, 2e+09 "
                 "FLOPs. The run's own are 30.0 s, 40 steps, 40,000 tokens, 1e+09 FLOPs.",
                 "| teacher: run | big |", f"| teacher: ledger head | {teacher.head} |"]:
        assert fact in page, fact
    assert "140 steps, 140,000" not in page


def test_the_saved_configuration_is_the_same_again(run):
    folder, _ = report(run)
    assert load(folder / "config.yaml") == run[1]


def test_html_is_whole_escaped_and_self_contained(run):
    folder, _ = report(run)
    page = (folder / "report.html").read_text()
    tags, opened = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append(tag)
            for name, value in attributes:
                assert name not in ("src", "srcset", "action"), (tag, name)
                assert not (name.endswith("href") and not value.startswith("#")), (tag, value)
            if tag not in ("meta", "br"):
                opened.append(tag)

        def handle_startendtag(self, tag, attributes):
            tags.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Reader().feed(page)
    assert opened == [] and "svg" in tags and not {"script", "link", "img", "iframe"} & set(tags)
    assert not re.search(r"url\((?!#)|@import", page)
    assert "currentColor" in page and "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert "the [MASK] | &lt;script&gt;" in page and "end 61%" in page
    assert len(page) < 60_000


def test_causal_scores_and_samples(run):
    folder, config = run
    scores = json.loads((folder / "evaluate/scores.json").read_text())
    scores |= {"minimal_pairs": {"skipped": "no mirror"}, "gain_over_unigram": -0.2,
               "held_out": {**scores["held_out"], "bits_per_byte": 1.66, "bytes": 3087},
               "baselines": {**scores["baselines"], "xz -9e": {"bits_per_byte": 2.19}}}
    write(folder / "evaluate/scores.json", scores)
    write(folder / "evaluate/samples.json", [{"prompt": "The", "temperature": 0.8, "text": "The ```\nfence"}])
    page = (report(run)[0] / "report.md").read_text()
    assert "| xz -9e |  |  | 2.1900 |" in page and "1.660 bits per byte (xz -9e: 2.190)" in page and "skipped, no mirror" in page
    assert "loss 20.0% above unigram" in page
    assert "````\nThe ```\nfence\n````" in page


def test_long_runs_make_small_pictures():
    rows = [{"kind": "train", "progress": i / 20_000, "loss": 5.0, "lr": 1e-3, "muon_lr": 0.02} for i in range(1, 20_001)]
    assert len(draw_curves(rows, unigram=6.0)) < 120_000


def test_curves_are_the_means_of_what_was_logged():
    """The path drawn for the training loss has one point a bin, at the mean."""
    rows = [{"progress": p, "loss": v} for p, v in [(0.001, 9.0), (0.003, 7.0), (0.5, 4.0), (1.0, 3.0)]]
    assert smooth(rows, "loss") == (pytest.approx([0.2, 50.0, 100.0]), [8.0, 4.0, 3.0])


def test_events_are_told_and_a_stretch_without_a_loss_is_left_out_of_the_curve(run):
    folder = run[0] / "pretrain"
    assert "Events" not in (report(run)[0] / "report.md").read_text()
    rows = [{"kind": "event", "step": 30, "event": "rolled back", "told": "on from here", "spent": 70.0},
            {"kind": "train", "step": 41, "progress": 0.95, "spent": 95.0, "loss": None, "lr": 1e-5, "muon_lr": None}]
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    page = (report(run)[0] / "report.md").read_text()
    assert "## Events" in page and "rolled back" in page and "on from here" in page


@pytest.mark.parametrize("missing", ["data/manifest.json", "evaluate/scores.json", "pretrain/metrics.jsonl"])
def test_a_missing_file_is_named_and_nothing_is_written(run, missing):
    (run[0] / missing).unlink()
    with pytest.raises(CramError, match=re.escape(missing)):
        report(run)
    assert list((run[0] / "report").iterdir()) == []


def test_a_forged_ledger_is_refused(run):
    path = run[0] / "pretrain/ledger.jsonl"
    forged = path.read_text().replace("100s", "900s")
    assert forged != path.read_text()
    path.write_text(forged)
    with pytest.raises(CramError, match="ledger.jsonl"):
        report(run)


def test_no_training_step_is_an_error():
    with pytest.raises(CramError, match="no training step"):
        draw_curves([{"kind": "plan"}], unigram=6.0)


def test_tables_align_numbers_and_keep_bars_apart():
    page = to_html([("table", ["a", "b"], [["x|y", "1,234"], ["z", "−5.0%"]])], "t")
    assert '<th>a</th><th class="n">b</th>' in page and '<td class="n">−5.0%</td>' in page
    assert "| x\\|y | 1,234 |" in to_markdown([("table", ["a", "b"], [["x|y", "1,234"]])])


def full_rows(n=60):
    """Metrics as training writes them, of a run that was resumed and rolled back once."""
    rows = [{"kind": "train", "step": i, "progress": i / n, "spent": 2.0 * i, "loss": 8 - 4 * i / n, "lr": 1e-3, "muon_lr": None,
             "tokens": 1000 * i, "tokens_per_second": 500.0 + i, "batch_tokens": 1000 if i < 30 else 2000, "row": 128,
             "layers": 2, "mask_rate": 0.4 if i < 20 else 0.2} for i in range(1, n + 1)]
    rows.insert(30, {"kind": "resume", "step": 30, "spent": 61.0, "lost": 1.0})
    rows.insert(40, {"kind": "event", "step": 39, "event": "rolled back", "told": "on", "spent": 79.0})
    rows += [{"kind": "validation", "step": 10 * i, "progress": i / 6, "spent": 20.0 * i, "loss": 7 - i / 2} for i in range(1, 6)]
    return rows + [{"kind": "sample", "step": 5 * i, "text": f"sample <{i}>"} for i in range(1, 11)]


def test_figures_draw_what_changed_and_what_happened_and_nothing_that_was_not_logged():
    rows = full_rows()
    curves, pace = draw_curves(rows, unigram=6.0), draw_pace(rows)
    assert "mask rate" in curves and ">tokens<" in curves and "layers" not in curves and "sequence" not in curves
    assert "rolled back" in pace and "resumed" in pace and "tokens read" in draw_tokens(rows)
    bare = [{"kind": "train", "step": i, "progress": i / 9, "spent": i, "loss": 5.0} for i in range(1, 10)]
    assert draw_tokens(bare) is None and draw_pace(bare) is None and "mask rate" not in draw_curves(bare, unigram=6.0)
    bar = draw_account({"steps": 90.0, "saving": 9.9, "lost": 0.1, "teacher": 0.0})
    assert "steps 90.0%" in bar and "saving 9.9%" in bar and "lost" not in bar and "teacher" not in bar


def test_a_validation_stands_at_the_tokens_read_by_then():
    train = [{"step": 1, "tokens": 100}, {"step": 10, "tokens": 1000}, {"step": 20, "tokens": 3000}]
    assert tokens_read(train, [1, 3, 10, 15, 20, 21]) == [100, 300, 1000, 2000, 3000, 3000]


def test_samples_on_the_way_are_spread_over_the_run(run):
    with open(run[0] / "pretrain" / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in full_rows() if row["kind"] == "sample")
    page = (report(run)[0] / "report.html").read_text()
    assert "as it learned: 6 of 10 samples" in page and "sample &lt;1&gt;" in page and "sample &lt;10&gt;" in page


def test_new_blocks_are_escaped_and_read_without_colour():
    blocks = [("facts", [("<b>", "what & why", "")]), ("verdict", "bad", "a < b"), ("links", [("to <it>", "a.html?x=\"1\"")])]
    page, text = to_html(blocks, "t"), to_markdown(blocks)
    assert "<b>&lt;b&gt;</b>" in page and "what &amp; why" in page and "✗</b> a &lt; b" in page
    assert 'href="a.html?x=&quot;1&quot;"' in page and "✗ a \\< b" in text and "- **\\<b\\>** what & why" in text
