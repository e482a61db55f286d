"""What goes wrong with text and disks: each document is kept or counted, or the run ends with a clear line."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.errors import DataError
from data_prep.measure import measure_corpus
from data_prep.text import prepare_text, read_split
from tests.data_prep.corpus import ODD_TEXTS, files_data, prepare, prose, silent, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
OFF = {"min_chars": None, "max_chars": None, "min_alpha_fraction": None, "max_word_length": None,
       "max_repeated_line_fraction": None, "placeholder_text": False}


def rows(out):
    return {row["rule"]: row for row in json.loads((out / "manifest.json").read_text())["funnel"]}


def texts_of(out):
    return [text for split in ("train", "validation") for batch in read_split(out, split) for text in batch["text"].to_pylist()]


def adds_up(account):
    """documents and bytes in = kept + dropped by reason."""
    between = [row for name, row in account.items() if name not in ("read", "kept")]
    for unit in ("documents", "bytes"):
        assert account["read"][unit] == account["kept"][unit] + sum(row[f"dropped_{unit}"] for row in between)


def test_a_million_empty_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n' * 1_000_000 + "".join(json.dumps({"text": text}) + "\n" for text in prose(30)))
    start = time.monotonic()
    account = rows(prepare(files_data(path, part_bytes=10_000_000), tmp_path / "out"))
    assert account["empty"]["dropped_documents"] == 1_000_000 and account["kept"]["documents"] == 30
    adds_up(account)
    assert time.monotonic() - start < 60


@pytest.mark.slow
def test_a_line_of_fifty_megabytes(tmp_path):
    line = " ".join(f"word{number}" for number in range(4_600_000))
    assert len(line) > 50_000_000
    path = write_jsonl(tmp_path / "a.jsonl", [*prose(20), line])
    account = rows(prepare(files_data(path), tmp_path / "a"))                # dropped by max_chars, and counted
    assert account["max_chars"]["dropped_documents"] > 20                    # sources cut it; each piece is over a million
    assert account["max_chars"]["dropped_bytes"] > len(line) - 100
    adds_up(account)
    text = tmp_path / "line.txt"
    text.write_text(line)                                                    # a txt file is cut into smaller documents
    account = rows(prepare(files_data(text, filters=OFF, max_bytes=9_000_000, validation_fraction=0.5), tmp_path / "b"))
    assert account["read"]["documents"] > 30
    adds_up(account)


def test_every_kind_of_character(tmp_path):
    odd = [*ODD_TEXTS, "\U0001f600" * 300, "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 " * 60, "nul \x00 inside " * 30,
           "\ud83d half a pair " * 30, "\u200f\u202e override " * 30, "e\u0301" * 200]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*odd, *prose(30)]))
    out = prepare(files_data(path, filters=OFF, part_bytes=900), tmp_path / "out")
    account = rows(out)
    assert account["kept"]["documents"] == len(odd) + 30
    adds_up(account)
    kept = texts_of(out)
    assert "\U0001f600" * 300 in kept and ("nul  inside " * 30).strip() in kept and ("\ufffd half a pair " * 30).strip() in kept


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst"])
def test_truncated_archive(tmp_path, name):
    import gzip
    import lzma

    import zstandard

    content = "".join(json.dumps({"text": text}) + "\n" for text in prose(300)).encode()
    pack = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstandard.ZstdCompressor().compress}[name.rsplit(".", 1)[1]]
    (tmp_path / name).write_bytes(pack(content)[:-40])
    with pytest.raises(DataError, match=rf"{name}: truncated after line \d+: the compressed file ends too early; copy it"):
        measure_corpus(files_data(tmp_path / name, part_bytes=20_000, workers=2), tmp_path / "out", "key", silent)
    assert not (tmp_path / "out/manifest.json").exists()
    (tmp_path / name).write_bytes(pack(content))                             # mended: it goes on, and nothing is missing
    measure_corpus(files_data(tmp_path / name, part_bytes=20_000, workers=2), tmp_path / "out", "key", silent)
    straight = tmp_path / "straight"
    measure_corpus(files_data(tmp_path / name, part_bytes=20_000, workers=1), straight, "key", silent)
    for path in straight.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_invalid_utf8_is_refused_with_its_place_or_replaced(tmp_path):
    lines = [json.dumps({"text": text}).encode() for text in prose(40)]
    lines[7] = lines[7].replace(b"Story", b"St\xf6ry")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(DataError, match=r"a\.jsonl: line 8, byte \d+: invalid UTF-8 \(0xf6\)"):
        prepare(files_data(tmp_path / "a.jsonl"), tmp_path / "a")
    for choice, expected in (("replace", "St\ufffdry 7"), ("cp1252", "St\u00f6ry 7")):
        out = prepare(files_data(tmp_path / "a.jsonl", invalid_utf8=choice), tmp_path / choice)
        kept = texts_of(out)
        assert len(kept) == 40 and any(text.startswith(expected) for text in kept)


def test_an_edited_or_foreign_part_is_made_again(tmp_path):
    data = files_data(write_jsonl(tmp_path / "a.jsonl", prose(200)), part_bytes=20_000)
    out = tmp_path / "out"
    measure_corpus(data, out, "key", silent)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "part-00001.parquet").write_bytes(b"short")                       # damaged
    (out / "part-00002.json").write_text("{")                                # torn
    (out / "part-00099.json").write_text("{}")                               # of an earlier, longer corpus
    marker = json.loads((out / "part-00003.json").read_text())
    (out / "part-00003.json").write_text(json.dumps({**marker, "made_from": {**marker["made_from"], "key": "other"}}))
    (out / ".part-00000.parquet.tmp").write_bytes(b"left over")
    before = (out / "part-00000.parquet").stat().st_mtime_ns
    measure_corpus(data, out, "key", silent)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    assert (out / "part-00000.parquet").stat().st_mtime_ns == before         # what was whole is not made again


# ---- disks


def cram(corpus, out, *settings, limit=None):
    """`cram data` in a process of its own; limit: bytes that a file may grow to, as on a disk that is full."""
    command = [sys.executable, "-m", "cram", "data", "name=it", f"out={out}", "data.source=files", f"data.files={corpus}",
               "data.part_bytes=400000", "data.validation_fraction=0.05", "tokenizer.vocab_size=800", "data.workers=2",
               *settings]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "a.jsonl", prose(2500))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system needs the right to mount: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def one_line_error(done):
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
def test_full_disk(corpus, small_disk):
    assert "No space left on device" in one_line_error(cram(corpus, small_disk / "runs"))
    assert not list(small_disk.rglob("manifest.json"))
    assert not [path for path in small_disk.rglob("part-*.json") if not path.with_suffix(".parquet").exists()]


@pytest.mark.slow
def test_a_disk_that_is_full_until_room_is_made(corpus, tmp_path):
    assert "File too large" in one_line_error(cram(corpus, tmp_path / "runs", limit=60_000))
    done = cram(corpus, tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    again = cram(corpus, tmp_path / "straight")
    assert again.returncode == 0
    for path in (tmp_path / "straight/artifacts").rglob("*"):
        if path.is_file() and path.name != "stage.json" and ".locks" not in path.parts:
            assert path.read_bytes() == (tmp_path / "runs" / path.relative_to(tmp_path / "straight")).read_bytes(), path


def test_deciding_needs_all_parts(tmp_path):
    data = files_data(write_jsonl(tmp_path / "a.jsonl", prose(100)), part_bytes=20_000)
    measure_corpus(data, tmp_path / "m", "key", silent)
    (tmp_path / "m/part-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"part-00001\.parquet: cannot be read .*; run: cram measure --force"):
        prepare_text(data, tmp_path / "m", tmp_path / "out", silent)
