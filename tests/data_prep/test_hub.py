"""Hugging Face datasets and their local mirror, without a network."""

import lzma
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cram.schema import Data
from data_prep.errors import DataError
from data_prep.sources import open_source
from tests.data_prep.corpus import write_jsonl


def hub(**changes):
    return Data(source="hub", **changes)


def documents(data):
    return [text for batch in open_source(data).batches for text in batch.column("text").to_pylist()]


@pytest.mark.parametrize("path, keys", [
    ("own/set/train.jsonl", {"dataset": "own/set"}),
    ("own/set/part/train.jsonl", {"dataset": "own/set", "subset": "part"}),
    ("own/set/part/test.jsonl", {"dataset": "own/set", "subset": "part", "split": "test"}),
    ("own/set/data/train-00000-of-00001.jsonl", {"dataset": "own/set"}),
    ("corpora/plain.jsonl", {"dataset": "corpora/plain"}),
])
@pytest.mark.parametrize("kind", ["jsonl", "xz", "parquet"])
def test_mirror_layouts(tmp_path, path, keys, kind):
    target = tmp_path / path
    target.parent.mkdir(parents=True)
    write_jsonl(target, ["one", "two"])
    if kind == "xz":
        target.with_name(target.name + ".xz").write_bytes(lzma.compress(target.read_bytes()))
        target.unlink()
    if kind == "parquet":
        pq.write_table(pa.table({"text": ["one", "two"]}), target.with_suffix(".parquet"))
        target.unlink()
    assert documents(hub(mirror=str(tmp_path), **keys)) == ["one", "two"]


def test_mirror_reads_shards_in_order(tmp_path):
    (tmp_path / "own/set").mkdir(parents=True)
    for number in (2, 0, 1):
        write_jsonl(tmp_path / f"own/set/train-0000{number}-of-00003.jsonl", [f"document {number}"])
    source = open_source(hub(dataset="own/set", mirror=str(tmp_path)))
    texts = [text for batch in source.batches for text in batch.column("text").to_pylist()]
    assert texts == ["document 0", "document 1", "document 2"]
    assert len(source.provenance["files"]) == 3 and source.provenance["dataset"] == "own/set"


def test_mirror_without_the_dataset_lists_near_names(tmp_path):
    (tmp_path / "corpora").mkdir()
    write_jsonl(tmp_path / "corpora/wikipedia.jsonl", ["x"])
    with pytest.raises(DataError, match=r"data\.mirror: .* no corpora/wikpedia/train .*; it has corpora/wikipedia: correct"):
        open_source(hub(dataset="corpora/wikpedia", mirror=str(tmp_path)))
    with pytest.raises(DataError, match=r"data\.mirror: .*nowhere is no folder; point it to a mirror"):
        open_source(hub(dataset="a/b", mirror=str(tmp_path / "nowhere")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it has no such files at all"):
        open_source(hub(dataset="a/b", mirror=str(tmp_path / "empty")))


@pytest.mark.parametrize("file, keys", [
    ("data/own/set/train.jsonl", {"dataset": "own/set"}),
    ("data/own/set/part/data/test-00000-of-00001.jsonl", {"dataset": "own/set", "subset": "part", "split": "test"}),
    ("data/corpora/plain.jsonl", {"dataset": "corpora/plain"})])
def test_a_mirror_one_folder_too_high(tmp_path, file, keys):
    (tmp_path / file).parent.mkdir(parents=True)
    write_jsonl(tmp_path / file, ["one"])
    with pytest.raises(DataError, match=rf"data\.mirror: .* has no .*: set data\.mirror={re.escape(str(tmp_path / 'data'))}$"):
        open_source(hub(mirror=str(tmp_path), **keys))
    assert documents(hub(mirror=str(tmp_path / "data"), **keys)) == ["one"]
    with pytest.raises(DataError, match="correct data.dataset, data.subset or data.split"):
        open_source(hub(mirror=str(tmp_path), dataset="own/se"))


def test_dataset_not_named():
    with pytest.raises(DataError, match="data.dataset is not set"):
        open_source(hub())


@pytest.fixture
def local(tmp_path):
    """A dataset in a folder: ``datasets`` streams it as it would one from the hub."""
    pq.write_table(pa.table({"text": ["one", None, "three"], "n": [1, 2, 3]}), tmp_path / "train-00000-of-00001.parquet")
    return str(tmp_path)


def test_streamed_with_datasets(local):
    source = open_source(hub(dataset=local))
    batch, = source.batches
    assert batch.column("text").to_pylist() == ["one", "", "three"]
    assert batch.column("origin").to_pylist()[2] == f"{local}/train:2"


@pytest.mark.parametrize("keys, message", [
    ({"split": "test"}, r"data\.dataset: cannot read .* \(Bad split: test.*check data\.subset, data\.split"),
    ({"subset": "x"}, r"BuilderConfig 'x' not found.*data\.mirror=FOLDER, or use data\.source=files"),
    ({"text_field": "body"}, r"row 0: no field 'body'; the fields are 'text', 'n': set data\.text_field"),
    ({"text_field": "n"}, r"row 0: the field 'n' holds int, not a string"),
])
def test_refusals_while_streaming(local, keys, message):
    with pytest.raises(DataError, match=message) as error:
        documents(hub(dataset=local, **keys))
    assert "\n" not in str(error.value)


def test_other_formats_and_scripts_are_refused(tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/train.csv").write_text("text\nhello\n")
    with pytest.raises(DataError, match="is stored as 'csv'; only parquet and JSON datasets are read"):
        documents(hub(dataset=str(tmp_path / "csv")))
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted/scripted.py").write_text("raise SystemExit('a loading script ran')")
    with pytest.raises(DataError, match=r"scripts are no longer supported.*set data\.mirror=FOLDER, or use data\.source=files"):
        documents(hub(dataset=str(tmp_path / "scripted")))


def test_missing_dataset(tmp_path):
    with pytest.raises(DataError, match=r"cannot reach or find .*nothing.*check the name and the network, or download"):
        documents(hub(dataset=str(tmp_path / "nothing")))


def test_hub_out_of_reach(root):
    """In a process of its own, since ``datasets`` reads these variables when it is imported."""
    program = ("from cram.schema import Data\nfrom data_prep.errors import DataError\n"
               "from data_prep.sources import open_source\n"
               "try:\n    list(open_source(Data(source='hub', dataset='some/thing')).batches)\n"
               "except DataError as error:\n    print(error)\n")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root,
                          env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.stdout.count("\n") == 1, done.stderr
    assert "cannot reach or find some/thing/train" in done.stdout and "set data.mirror=FOLDER" in done.stdout


def test_unknown_source():
    with pytest.raises(DataError, match=r"data\.source: 'web' is unknown; known are installed-docs, files, hub"):
        open_source(Data(source="web"))
