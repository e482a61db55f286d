"""Bad inputs through the real command line: one line that names the place and the remedy, nothing half-written."""

import gzip
import json
import lzma
import os
import random
import re
import shutil

import pytest

TINY = ("data.source=files", "data.validation_fraction=0.2", "data.filters.min_chars=10", "tokenizer.vocab_size=300",
        "model.layers=1", "model.width=16", "model.heads=2", "train.batch_tokens=128", "train.validation_tokens=128",
        "train.sequence_length=32", "train.threads=1", "evaluate.tokens=512", "evaluate.sample_tokens=4", "budget=3 steps")
WORDS = "the a model of text reads one small word after another and learns what comes next from all words before".split()


def documents(count=60):
    rng = random.Random(0)
    return [" ".join(rng.choice(WORDS) for _ in range(40)) + f" number {index}" for index in range(count)]


def jsonl(texts, field="text"):
    return "".join(json.dumps({field: text}) + "\n" for text in texts).encode()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_bytes(jsonl(documents()))
    return tmp_path


def refused(cram, *arguments):
    """The single line of a refusal; afterwards every result folder is complete or absent (or to be continued)."""
    code, _, err = cram(*arguments)
    assert code == 2, (code, err)
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    if os.path.isdir("runs/artifacts"):
        for name in os.listdir("runs/artifacts"):
            if name not in (".locks",):
                assert not name.startswith("."), f"half-written: {name}"
                assert os.path.exists(f"runs/artifacts/{name}/stage.json") or name.startswith(("measure-", "data-", "pretrain-"))
    return err


def test_the_tiny_run_itself_is_good(cram, folder):
    """Without this, every refusal below could have another cause."""
    result = cram("run", *TINY, "data.files=good.jsonl")
    assert result.code == 0, result.err


# ---- the text

@pytest.mark.parametrize("name, content, expected", [
    ("gone.txt", None, r"data\.files: no such file: gone\.txt .*correct the path"),
    ("none*.jsonl", None, r"data\.files: no file matches none\*\.jsonl .*correct the path"),
    ("empty.txt", b"", r"the corpus is empty: .*check data\.files"),
    ("empty.jsonl", b"", r"the corpus is empty: .*check data\.files"),
    ("one.jsonl", jsonl(documents(1)), r"split is empty: .*add documents"),
    ("latin.txt", "Ein schöner Satz über Größe, wie er früher war.\n".encode("latin-1") * 20,
     r"latin\.txt: line 1, byte 7: invalid UTF-8 .*; convert the file"),
    ("field.jsonl", jsonl(documents(), field="body"),
     r"field\.jsonl: line 1: no field 'text'; the fields are 'body': set data\.text_field"),
    ("broken.jsonl", jsonl(documents(3)) + b'{"text": "cut', r"broken\.jsonl: line 4 is no JSON.*;"),
    ("cut.jsonl.xz", lzma.compress(jsonl(documents()))[:-40], r"cut\.jsonl\.xz: truncated after line \d+.*; copy it again"),
    ("cut.jsonl.gz", gzip.compress(jsonl(documents()))[:-40], r"cut\.jsonl\.gz: truncated after line \d+.*; copy it again"),
    ("not.jsonl.gz", jsonl(documents()), r"not\.jsonl\.gz.*;"),
    ("not.parquet", b"PAR1 but not really", r"not\.parquet.*;"),
    ("strange.pdf", b"%PDF-1.7", r"strange\.pdf.*\.txt"),
    ("short.jsonl", jsonl(["short"] * 50), r"no document is left of 50 read \(dropped: .*min_chars.*relax data\.filters"),
])
def test_unusable_files(cram, folder, name, content, expected):
    if content is not None:
        (folder / name).write_bytes(content)
    err = refused(cram, "run", *TINY, f"data.files={name}")
    assert re.search(expected, err), err
    assert not [name for name in os.listdir("runs/artifacts") if name.startswith("text-")]


@pytest.mark.parametrize("settings, expected", [
    (["data.source=installed-docs", "data.packages=[no_such_package]"], r"'no_such_package' is not installed; install it with"),
    (["data.source=hub", "data.dataset=who/what", "data.mirror=nowhere"], r"nowhere.*;"),
    (["data.source=hub"], r"data\.source=hub needs data\.dataset"),
    (["data.source=web"], r"data\.source: expected one of installed-docs, files, hub, got 'web'"),
])
def test_sources_that_are_not_there(cram, folder, settings, expected):
    err = refused(cram, "run", *TINY, *settings)
    assert re.search(expected, err), err


# ---- the vocabulary

def test_vocabulary_larger_than_the_corpus_allows(cram, folder):
    err = refused(cram, "tokenizer", *TINY, "data.files=good.jsonl", "tokenizer.vocab_size=5000")
    assert re.search(r"tokenizer\.vocab_size.*5,?000.*\d+", err), err
    assert not [name for name in os.listdir("runs/artifacts") if name.startswith("tokenizer-")]


def test_a_sample_whose_pairs_could_overflow(cram, folder):
    assert "over 10,000,000,000" in refused(cram, "tokenizer", *TINY, "data.files=good.jsonl", "tokenizer.sample_bytes=20_000_000_000")
    assert not (folder / "runs").exists()


# ---- the configuration

@pytest.mark.parametrize("budget, expected", [
    ("0s", "more than zero"), ("-1h", "more than zero"), ("24", "has no unit; did you mean '24h'?"),
    ("3 parsecs", "not understood; write for example"), ("", "expected text, got nothing"),
    ("1.5 steps", "whole"), ("1e999h", "finite"),
])
def test_budgets(cram, folder, budget, expected):
    err = refused(cram, "run", f"budget={budget}")
    assert expected in err and "command line" in err and not (folder / "runs").exists()


@pytest.mark.parametrize("text, expected", [
    ("budgett: 3m\n", "mine.yaml:1: unknown key 'budgett'; did you mean 'budget'?"),
    ("model:\n  width: wide\n", "mine.yaml:2: model.width: expected a whole number, got 'wide'"),
    ("model:\n  heads: 5\n", "mine.yaml:2: model.width 768 is not a multiple of model.heads 5"),
    ("model: [\n", "not valid YAML"),
])
def test_configuration_files(cram, folder, text, expected):
    (folder / "mine.yaml").write_text(text)
    assert expected in refused(cram, "run", "mine.yaml") and not (folder / "runs").exists()
    assert "no such configuration" in refused(cram, "run", "gone.yaml")


def test_a_card_that_is_not_there(cram, folder, monkeypatch):
    import torch
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    err = refused(cram, "pretrain", *TINY, "data.files=good.jsonl", "train.device=cuda")
    assert "train.device=cuda: torch sees no CUDA card here; use train.device=cpu" in err


# ---- the output

@pytest.mark.parametrize("out", ["a_file/runs", "/proc/runs"])
def test_output_that_cannot_be_written(cram, folder, out):
    (folder / "a_file").write_text("")
    err = refused(cram, "run", *TINY, "data.files=good.jsonl", f"out={out}")
    assert f"{out}/artifacts: cannot write there" in err and "out=..." in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output(cram, folder):
    (folder / "locked").mkdir(mode=0o555)
    assert "cannot write there (Permission denied)" in refused(cram, "run", *TINY, "data.files=good.jsonl", "out=locked")


def test_a_full_disk(cram, folder, monkeypatch):
    """The system says that no space is left while the shards are written."""
    from data_prep import pack

    def full(*_):
        raise OSError(28, "No space left on device", "runs/artifacts/shard")

    monkeypatch.setattr(pack, "write_manifest", full)
    err = refused(cram, "data", *TINY, "data.files=good.jsonl")
    assert "the disk that holds runs/artifacts/shard is full (No space left on device): make room" in err
    assert not list((folder / "runs/artifacts").glob("data-*/stage.json"))


def test_something_else_where_the_link_belongs(cram, folder):
    (folder / "runs" / "run" / "text").mkdir(parents=True)
    err = refused(cram, "text", *TINY, "data.files=good.jsonl", "name=run")
    assert "is in the way of a link" in err and "name=..." in err


# ---- the run

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished tiny pretraining, made once."""
    from cram.cli import main

    folder = tmp_path_factory.mktemp("finished")
    (folder / "good.jsonl").write_bytes(jsonl(documents()))
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["pretrain", *TINY, "data.files=good.jsonl"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def run(finished, folder):
    """A copy of it to spoil."""
    shutil.copytree(finished, folder, symlinks=True, dirs_exist_ok=True, copy_function=shutil.copy2)
    return folder / "runs" / "demo" / "pretrain"


def test_foreign_run_in_the_place_of_ours(cram, run, folder):
    """Somebody copied another run's folder to where ours begins."""
    other = [*TINY, "data.files=good.jsonl", "seed=7"]
    name = next(line.split()[-1] for line in dry_run_folders(other) if line.startswith("pretrain"))
    shutil.copytree(run, name)
    os.remove(f"{name}/stage.json")
    err = refused(cram, "pretrain", *other)
    assert name in err and re.search(r"belongs to (another )?run", err), err


def test_foreign_checkpoints_without_a_ledger(cram, run, folder):
    other = [*TINY, "data.files=good.jsonl", "seed=7"]
    name = next(line.split()[-1] for line in dry_run_folders(other) if line.startswith("pretrain"))
    shutil.copytree(run / "checkpoints", f"{name}/checkpoints")
    err = refused(cram, "pretrain", *other)
    assert f"{name}/ledger.jsonl: missing, but there are checkpoints" in err and "--force" in err


def dry_run_folders(settings):
    """'<stage> <folder>' for each stage of a configuration whose inputs are there."""
    from cram.config import load
    from cram.pipeline import STAGES
    from cram.stages import Runner

    plans = Runner(STAGES, load("demo", settings)).plan("pretrain")
    return [f"{plan.stage.name} {plan.folder}" for plan in plans]


@pytest.mark.parametrize("spoil, expected", [
    (lambda lines: lines[:1] + lines[2:], r"ledger\.jsonl:2"),
    (lambda lines: [lines[1], lines[0], *lines[2:]], r"ledger\.jsonl:1"),
    (lambda lines: lines[:-1], r"deleted at the end"),
    (lambda lines: [*lines[:1], lines[1].replace('"row": 1', '"row": 1, "gift": 9'), *lines[2:]],
     r"ledger\.jsonl:2: was edited"),
])
def test_tampered_ledger_is_refused_by_ledger_and_by_resuming(cram, run, spoil, expected):
    path = run / "ledger.jsonl"
    path.write_text("".join(spoil(path.read_text().splitlines(keepends=True))))
    assert re.search(expected, refused(cram, "ledger", "runs/demo"))
    os.remove(run / "stage.json")
    assert re.search(expected, refused(cram, "pretrain", *TINY, "data.files=good.jsonl"))


def test_no_good_checkpoint_left(cram, run):
    for state in run.glob("checkpoints/*/state.pt"):
        with open(state, "r+b") as file:
            file.seek(100)
            file.write(b"\xff\x00\xff")
    err = refused(cram, "evaluate", *TINY, "data.files=good.jsonl")
    assert "checkpoints" in err and "no good checkpoint" in err


def test_flipped_byte_in_the_shards_is_made_good(cram, run):
    """A shard of another size is found by the runner and packed again, with the reason."""
    shard = next((run.parent / "data").glob("train-*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])
    result = cram("data", *TINY, "data.files=good.jsonl")
    assert result.code == 0 and re.search(r"data: damaged: train-00000\.bin is \d+ bytes, expected \d+", result.out)
    assert cram("pretrain", *TINY, "data.files=good.jsonl").out.splitlines()[-1] == "pretrain: fresh"
