"""cram bench data: corpora that grow as told, competitors that take part or say why not, memory of a tree of processes."""

import json
import os
import random
import re
import subprocess
import sys

import pytest

from cram.bench import corpora, data, data_alone, data_contests, memory, whole
from cram.bench.data import Contest, Entry
from cram.bench.measure import Unavailable
from cram.bench.memory import TreeMemory
from cram.cli import main
from cram.schema import NearDedup
from data_prep import minhash

WORDS = ("the of and to in is it that for on with as by at be have river stone market engine winter letter valley garden paper "
         "number bridge window summer doctor village island metal sugar cotton history music kitchen forest signal").split()


def documents(count, seed=0):
    """English-looking prose that passes FineWeb's rules."""
    rng = random.Random(seed)

    def sentence():
        words = [rng.choice(WORDS) if rng.random() < 0.8 else "".join(rng.choices("abcdeghilmnoprstu", k=6)) for _ in range(12)]
        return " ".join(words).capitalize() + "."
    return ["\n".join(" ".join(sentence() for _ in range(4)) for _ in range(rng.randint(2, 6))) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "clean.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(900)))
    return path


# ---- corpora


def test_a_corpus_grows_to_the_size_with_the_duplicates_it_states():
    texts = documents(100)
    grown = list(corpora.grow(texts, 5 * corpora.megabytes(texts), seed=1))
    assert grown == list(corpora.grow(texts, 5 * corpora.megabytes(texts), seed=1)) and grown[:100] == texts
    assert abs(corpora.megabytes(grown) / corpora.megabytes(texts) - 5) < 0.1
    copies, originals = grown[100:], [texts[place % 100] for place in range(100, len(grown))]
    similar = minhash.jaccard(copies, originals, NearDedup())
    exact, near = (similar == 1).mean(), ((similar < 1) & (similar > 0.6)).mean()
    assert 0.02 < exact < 0.1 and 0.02 < near < 0.1 and (similar < 0.25).mean() > 0.85, "most copies are no duplicates"
    assert [text.count("\n") for text in copies] == [text.count("\n") for text in originals], "lines stay lines"


def test_documents_without_duplicates():
    texts = documents(40)
    near = [corpora.edited(text, 0.01, WORDS, random.Random(0)) for text in texts]
    assert list(corpora.distinct([*texts, *texts, *near])) == texts


def test_documents_are_read_and_shuffled(corpus):
    texts, told = corpora.read_documents([str(corpus)])
    assert sorted(texts) == sorted(documents(900)) != texts and "900 documents" in told and str(corpus) in told
    assert corpora.megabytes(corpora.read_documents([str(corpus)], 50_000)[0]) < 0.06


# ---- competitors


class Worker:
    """A clock that only its own work moves."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(data.time, "process_time", lambda: self.now)

    def entry(self, seconds, megabytes, **facts):
        def call():
            self.now += seconds
        return lambda: Entry(lambda: call, megabytes, facts)


def missing():
    raise Unavailable("datatrove is not installed")


def test_speed_counts_the_text_each_tool_got(monkeypatch):
    clock = Worker(monkeypatch)
    rows = data.hold(Contest("filters", "all", {"cram": clock.entry(2.0, 8.0, recall=0.5), "other": clock.entry(4.0, 0.5),
                                                "absent": missing}, "other"), repeats=3)
    ours, theirs, absent = rows
    assert (ours["mb_s"], theirs["mb_s"], ours["recall"]) == (4.0, 0.125, 0.5)
    assert ours["times"] == 32 and "times" not in theirs, "the ratio is told by the side that is compared"
    assert absent == {"step": "filters", "case": "all", "tool": "absent", "error": "datatrove is not installed"}


def test_without_a_competitor_there_is_no_ratio(monkeypatch):
    rows = data.hold(Contest("filters", "all", {"cram": Worker(monkeypatch).entry(1.0, 1.0), "other": missing}, "other"), 2)
    assert rows[0]["mb_s"] == 1.0 and "times" not in rows[0] and "error" in rows[1]


@pytest.mark.parametrize("module, tool, contest", [
    ("datatrove.pipeline.filters", "datatrove", 0), ("datasketch", "datasketch, tuned", 5),
    ("datasketch", "datasketch, as documented", 6)])
def test_a_library_that_is_not_installed_is_a_row(monkeypatch, module, tool, contest):
    monkeypatch.setitem(sys.modules, module, None)
    contests = data_contests.contests(documents(60), data.QUICK, 1)
    held = next(each for number, each in enumerate(contests) if number == contest)
    rows = {row["tool"]: row for row in data.hold(held, 1)}
    assert rows[tool]["error"] == f"{tool.partition(',')[0]} is not installed; pip install 'cram-lm[test]' brings it"
    assert rows["cram"]["mb_s"] > 0 and "times" not in rows["cram"]


def test_planted_pairs_are_similar_and_found():
    near = NearDedup()
    left, right, similar = data_contests.planted_pairs(documents(150), near)
    assert len(left) > 100 and similar.min() >= 0.8 and all(a != b for a, b in zip(left, right))
    entries = [data_contests._cram_signatures(left[:5], near, (left, right, similar)),
               data_contests._datasketch(left[:5], near, (left, right, similar))]
    for entry in entries:
        assert abs(entry.facts["recall"] - entry.facts["expected_recall"]) < 0.06 and entry.facts["pairs"] == len(left)
    strangers = data_contests._cram_signatures(left[:5], near, (left, right[1:] + right[:1], similar))
    assert strangers.facts["recall"] < 0.05, "documents that are not similar are not found"


def test_a_wrong_encoder_is_not_timed(monkeypatch):
    encode = data_contests.Encoder.encode

    def wrong(self, texts):
        ids, counts = encode(self, texts)
        return ids[::-1], counts
    monkeypatch.setattr(data_contests.Encoder, "encode", wrong)
    contest = data_contests._encoding("bpe", documents(200), data.QUICK, 1)
    rows = {row["tool"]: row for row in data.hold(contest, 1)}
    assert rows["cram, memo warm"]["error"].startswith("wrong, not timed") and rows["tokenizers"]["mb_s"] > 0


def test_each_round_encodes_other_text():
    contest = data_contests._encoding("wordpiece", documents(200), data.QUICK, 3)
    *_, training, rounds = contest.entries["cram, memo warm"].args
    parts = [set(training), *map(set, rounds)]
    assert len(rounds) == 4 and all(parts) and sum(map(len, parts)) == len(set().union(*parts)), "nor what was learnt from"


def test_our_verdicts_are_those_of_the_rule_sets():
    texts = [*documents(5), "lorem ipsum " * 60, "{ }"]
    verdicts = data_contests._all(texts)(texts)
    assert [each.tolist()[:5] for each in verdicts] == [[-1] * 5] * 3 and all((each[5:] >= 0).all() for each in verdicts)


def test_one_core_and_everything_as_before(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "7")
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    cores = os.sched_getaffinity(0)
    with pytest.raises(ValueError), data.one_core():
        assert len(os.sched_getaffinity(0)) == 1 and os.environ["TOKENIZERS_PARALLELISM"] == "false"
        raise ValueError
    assert os.sched_getaffinity(0) == cores and os.environ["RAYON_NUM_THREADS"] == "7"
    assert "TOKENIZERS_PARALLELISM" not in os.environ


# ---- memory

ALLOCATE = "import os, time; kept = b'x' * 200_000_000; [os.fork() for _ in range({forks})]; " \
           "print('there', flush=True); time.sleep(30)"


@pytest.mark.parametrize("command, processes", [
    ([sys.executable, "-c", ALLOCATE.format(forks=0)], 1),
    ([sys.executable, "-c", ALLOCATE.format(forks=2)], 4),
    (["/bin/sh", "-c", f'"{sys.executable}" -c "{ALLOCATE.format(forks=0)}"; true'], 2)])
def test_memory_of_a_tree_counts_shared_pages_once(command, processes):
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            process.stdout.readline()
            with TreeMemory(process.pid, every=0.01) as watched:
                watched.part = "a"
                while watched.looks < 5:
                    watched._end.wait(0.01)
            found = len(memory.tree(process.pid))
        finally:
            os.killpg(process.pid, 9)
    assert 200e6 < watched.peak < 280e6 and found == processes
    assert watched.largest <= watched.peak and watched.peaks["a"] > 0


def test_memory_of_a_process_that_ended_is_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert memory.proportional_bytes(process.pid) == 0 and memory.tree(process.pid) == [process.pid]


def test_memory_needs_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    with pytest.raises(Unavailable, match="only there on Linux"):
        TreeMemory(1)


# ---- end to end


def test_growth_is_told():
    rows = [{"workers": 1, "stage": whole.TOGETHER, "megabytes": size, "seconds": size ** 1.5, "peak_mib": 10.0}
            for size in (10, 1000)]
    assert whole.conclude(rows) == ["Workers 1: from 10 to 1,000 MB time grows as size^1.50; peak memory from 10 to 10 MiB."]
    assert whole.conclude(rows[:1]) == []


def test_a_preparation_that_fails_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "WORKERS", (1,))
    [[row]] = whole.measure(documents(3), [0.001], ["tokenizer.vocab_size=-1"], 1, lambda line: None)
    assert row["error"].startswith("cram data ended with 2: error:") and row["stage"] == whole.TOGETHER


@pytest.mark.slow
def test_the_whole_preparation(corpus, tmp_path):
    sizes = ["--megabytes", "0.3", "0.6"]
    assert main(["bench", "data", "--whole", "--quick", *sizes, "--files", str(corpus), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "data-whole_cpu.json").read_text())
    assert record["complete"] and len(record["rows"]) == 2 * 2 * 5 and not any("error" in row for row in record["rows"])
    for row in record["rows"]:
        assert row["seconds"] > 0 and row["mb_s"] == pytest.approx(row["megabytes"] / row["seconds"], rel=0.1)
    together = {(row["workers"], row["megabytes"]): row for row in record["rows"] if row["stage"] == whole.TOGETHER}
    alone, two = together[1, 0.3], together[2, 0.3]
    assert alone["peak_mib"] < two["peak_mib"] and two["largest_mib"] < two["peak_mib"], "children count"
    assert together[1, 0.6]["kept"] == together[2, 0.6]["kept"] > together[1, 0.3]["kept"]
    page = (tmp_path / "data-whole_cpu.md").read_text()
    assert "Workers 2: from 0.3 to 0.6 MB time grows as" in page and "## workers: 1" in page
    assert (tmp_path / "data-whole_cpu.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_steps(corpus, tmp_path):
    assert main(["bench", "data", "--quick", "--repeats", "2", "--files", str(corpus), "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "data_cpu.json").read_text())
    page = (tmp_path / "data_cpu.md").read_text()
    assert record["environment"]["threads"] == 1 and record["complete"]
    assert [row for row in record["rows"] if "error" in row] == []
    by_step = {}
    for row in record["rows"]:
        by_step.setdefault(row["step"], {})[row["case"], row["tool"]] = row
        assert 0 < row["mb_s_p25"] <= row["mb_s"] <= row["mb_s_p75"]
    filters = by_step[data_contests.FILTERS_STEP]
    assert len(filters) == 15 and all(filters[case, "cram"]["times"] > 3 for case in data_contests.FILTERS)
    assert {tool for _, tool in by_step["encoding"]} == {"cram, memo warm", "cram, memo cold", "tokenizers"}
    assert len(by_step["steps alone"]) == 4 and len(by_step[data_alone.FILES]) == 5
    assert re.search(r"datatrove \d", page) and "900 documents" in page
    assert sum(line.startswith("| all four") for line in page.splitlines()) == 3
