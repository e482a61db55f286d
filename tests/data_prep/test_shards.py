"""The format of shards: what was written is what is read, and damage is named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.shard_writer import lay_out, write_shard
from data_prep.shards import Shards, token_dtype

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
documents_strategy = st.lists(st.lists(st.integers(5, 65_535), max_size=12), min_size=1, max_size=20)


def write(folder, shards, row_tokens=None):
    """A folder of shards of these documents."""
    folder.mkdir(exist_ok=True)
    entries = []
    for number, documents in enumerate(shards):
        ids, counts = np.array(sum(documents, []), np.uint16), np.array(list(map(len, documents)), np.int64)
        layout = lay_out(ids, counts, SPECIAL, row_tokens)
        entries.append(write_shard(folder, f"train-{number:05d}", layout, (3 * counts).astype(np.uint32), row_tokens)[0])
    (folder / "manifest.json").write_text(json.dumps(
        {"version": 1, "dtype": "uint16", "vocab_size": 65_536, "special": SPECIAL, "lossless": True,
         "splits": {"train": {**{key: sum(entry[key] for entry in entries) for key in ("tokens", "documents", "bytes")},
                              "row_tokens": row_tokens, "shards": entries}}}))
    return Shards(folder, "train", verify=True)


@given(shards=st.lists(documents_strategy, min_size=1, max_size=4), data=st.data())
@settings(max_examples=40, deadline=None)
def test_read_equals_a_slice_of_the_concatenation(tmp_path_factory, shards, data):
    opened = write(tmp_path_factory.mktemp("shards"), shards)
    documents = [[2, *document, 3] for shard in shards for document in shard]
    stream = [token for document in documents for token in document]
    assert opened.n_tokens == len(stream)
    assert opened.document_starts.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
    assert opened.document_bytes.tolist() == [3 * len(document) - 6 for document in documents]
    for _ in range(5):
        start = data.draw(st.integers(0, len(stream)))
        stop = data.draw(st.integers(start, len(stream)))
        assert opened.read(start, stop).tolist() == stream[start:stop]


@given(shards=st.lists(documents_strategy, min_size=1, max_size=3), row=st.integers(2, 20))
@settings(max_examples=60, deadline=None)
def test_best_fit_documents_read_back(tmp_path_factory, shards, row):
    opened = write(tmp_path_factory.mktemp("shards"), shards, row)
    documents = [[2, *document, 3] for shard in shards for document in shard]
    assert [opened.read_document(number).tolist() for number in range(opened.n_documents)] == documents
    rows = opened.read(0, opened.n_tokens).reshape(-1, row)
    assert (rows[:, 0] == 2).all() and np.count_nonzero(rows >= 5) == sum(len(document) - 2 for document in documents)
    assert (np.diff(opened.piece_starts // row) <= 1).all() and opened.piece_starts[-1] == opened.n_tokens


def test_read_out_of_bounds(tmp_path):
    shards = write(tmp_path / "d", [[[10, 11], [12]]])
    for start, stop in [(-1, 5), (0, shards.n_tokens + 1), (5, 4)]:
        with pytest.raises(IndexError, match="of a stream of 7"):
            shards.read(start, stop)


def test_what_is_read_is_a_copy(tmp_path):
    shards = write(tmp_path / "d", [[[10, 11], [12]]])
    shards.read(0, 3)[:] = 7
    assert shards.read(0, 1).tolist() == [2]


def test_the_type_that_holds_every_token():
    assert [token_dtype(size).name for size in (640, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]


# ---- damage ----------------------------------------------------------------------------------------------------------

@pytest.fixture(params=[None, 6], ids=["stream", "best-fit"])
def damaged(tmp_path, request):
    """A small folder of shards to be damaged: two of 12 and one of 6 tokens."""
    documents = [[10 + number] for number in range(9)]
    write(tmp_path / "d", [documents[:4], documents[4:8], documents[8:] * 2], request.param)
    return tmp_path / "d"


def refused(folder, message, verify=False):
    with pytest.raises(DataError, match=message) as error:
        Shards(folder, "train", verify=verify)
    assert "\n" not in str(error.value)


def test_manifest_missing_or_foreign(damaged):
    refused(damaged.parent, "holds no finished packed data")
    (damaged.parent / "manifest.json").write_text('{"version": 1, "splits": {}, "funnel": []}')
    refused(damaged.parent, "not the manifest of a packed data")
    with pytest.raises(DataError, match="no uint16 or uint32 split 'test'; it has train"):
        Shards(damaged, "test")


FILES = ["train-00001.bin", "train-00000.starts.npy", "train-00002.bytes.npy"]


@pytest.mark.parametrize("name", FILES)
def test_file_missing_or_cut_short(damaged, name):
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[:-1])
    refused(damaged, r"train-0000\d\.bin: .*cannot be read.*; make it again: cram data --force")
    (damaged / name).write_bytes(b"")
    refused(damaged, r"cannot be read .*make it again: cram data --force")
    (damaged / name).unlink()
    refused(damaged, f"{name}: missing; make it again: cram data --force")


def test_tokens_missing(damaged):
    (damaged / FILES[0]).write_bytes((damaged / FILES[0]).read_bytes()[:-2])
    refused(damaged, r"train-00001\.bin: has 22 bytes, its manifest says 24; make it again: cram data --force")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_by_verification(damaged, name):
    content = bytearray((damaged / name).read_bytes())
    content[-1] ^= 1
    (damaged / name).write_bytes(bytes(content))
    Shards(damaged, "train")
    refused(damaged, r"train-0000\d\.bin: its content differs from what was written \(xxh3-128\); make it again", verify=True)


def test_index_of_another_shard(damaged):
    np.save(damaged / "train-00000.starts.npy", np.zeros(2, np.uint64))
    refused(damaged, "its index has 4 documents in 2 pieces, its manifest says 4 in 4")


def test_manifest_that_does_not_add_up(damaged):
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"].pop()
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    refused(damaged, "its shards do not add up to its train split")
