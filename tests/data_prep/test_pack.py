"""Packed shards: what was written is what is read, and damage is named."""

import json

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.schema import Tokenizer
from data_prep.errors import DataError
from data_prep.pack import ShardWriter, pack
from data_prep.shards import Shards
from data_prep.text import prepare_text, read_split
from data_prep.tokenizer import load_tokenizer, train_tokenizer
from tests.data_prep.corpus import files_data, prose, silent, write_jsonl

KINDS = ("bpe", "wordpiece")


def texts_of(stages, split):
    return [text for batch in read_split(stages.text, split) for text in batch.column("text").to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_stream_is_every_document_between_its_markers(stages, kind, split):
    """Oracle: encode each document alone."""
    tokenizer = load_tokenizer(stages.tokenizer[kind])
    texts = texts_of(stages, split)
    shards = Shards(stages.packed[kind], split, verify=True)
    expected = [[2, *tokenizer.encode(text, add_special_tokens=False).ids, 3] for text in texts]
    stream = shards.read(0, shards.n_tokens)
    assert stream.dtype == np.uint16
    assert stream.tolist() == [token for document in expected for token in document]
    assert shards.document_starts.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert shards.document_bytes.tolist() == [len(text.encode()) for text in texts]
    assert shards.document_starts.dtype == shards.document_bytes.dtype == np.int64
    assert np.flatnonzero(stream == 2).tolist() == shards.document_starts[:-1].tolist()
    assert np.flatnonzero(stream == 3).tolist() == (shards.document_starts[1:] - 1).tolist()
    assert not np.isin(stream, [0, 4]).any()
    assert (shards.n_documents, shards.vocab_size, shards.lossless) == (len(texts), 640, kind == "bpe")
    assert shards.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def test_decoded_documents_are_the_texts(stages):
    tokenizer = load_tokenizer(stages.tokenizer["bpe"])
    for split in ("train", "validation"):
        shards = Shards(stages.packed["bpe"], split)
        bounds = zip(shards.document_starts, shards.document_starts[1:])
        decoded = [tokenizer.decode(shards.read(start + 1, stop - 1).tolist(), skip_special_tokens=False)
                   for start, stop in bounds]
        assert decoded == texts_of(stages, split)


@pytest.mark.parametrize("kind", KINDS)
def test_manifest_adds_up(stages, kind):
    folder = stages.packed[kind]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    text = json.loads((stages.text / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["funnel"] == text["funnel"] and manifest["source"] == text["source"]
    assert manifest["tokenizer_sha256"] == json.loads((stages.tokenizer[kind] / "manifest.json").read_text())["sha256"]
    for split, entry in manifest["splits"].items():
        assert {key: entry[key] for key in ("documents", "bytes")} == text["splits"][split]
        assert entry["tokens"] == sum(shard["tokens"] for shard in entry["shards"])
        for shard in entry["shards"]:
            content = (folder / shard["file"]).read_bytes()
            assert len(content) == 2 * shard["tokens"] and xxhash.xxh3_128_hexdigest(content) == shard["xxh3_128"]
            assert shard["tokens"] <= stages.data.shard_tokens or shard["documents"] == 1
    assert len(manifest["splits"]["train"]["shards"]) > 3
    counts = np.load(folder / "token_counts.npy")
    train = Shards(folder, "train")
    assert counts.dtype == np.int64
    assert counts.tolist() == np.bincount(train.read(0, train.n_tokens), minlength=640).tolist()
    held = [json.loads(line)["text"] for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert held == texts_of(stages, "validation")


documents_strategy = st.lists(st.lists(st.integers(0, 65_535), min_size=1, max_size=12), min_size=1, max_size=20)


def write(folder, documents, shard_tokens):
    """A folder of shards without the stages before it."""
    folder.mkdir(exist_ok=True)
    writer = ShardWriter(folder, "train", shard_tokens)
    for document in documents:
        writer.add(np.array(document, np.uint16), 3 * len(document))
    writer.close()
    (folder / "manifest.json").write_text(json.dumps(
        {"version": 1, "dtype": "uint16", "vocab_size": 65_536, "special": {}, "lossless": True,
         "splits": {"train": writer.summary()}}))
    return Shards(folder, "train", verify=True)


@given(documents=documents_strategy, shard_tokens=st.integers(1, 40), data=st.data())
@settings(max_examples=60, deadline=None)
def test_read_equals_a_slice_of_the_concatenation(tmp_path_factory, documents, shard_tokens, data):
    shards = write(tmp_path_factory.mktemp("shards"), documents, shard_tokens)
    stream = [token for document in documents for token in document]
    assert shards.n_tokens == len(stream)
    assert shards.document_starts.tolist() == np.cumsum([0, *map(len, documents)]).tolist()
    assert shards.document_bytes.tolist() == [3 * len(document) for document in documents]
    for _ in range(5):
        start = data.draw(st.integers(0, len(stream)))
        stop = data.draw(st.integers(start, len(stream)))
        assert shards.read(start, stop).tolist() == stream[start:stop]
    for shard in shards.manifest["splits"]["train"]["shards"]:
        assert shard["tokens"] <= shard_tokens or shard["documents"] == 1


def test_read_out_of_bounds(stages):
    shards = Shards(stages.packed["bpe"], "train")
    for start, stop in [(-1, 5), (0, shards.n_tokens + 1), (5, 4)]:
        with pytest.raises(IndexError, match="of a stream of"):
            shards.read(start, stop)


def test_what_is_read_is_a_copy(stages):
    shards = Shards(stages.packed["bpe"], "train")
    shards.read(0, 10)[:] = 7
    assert shards.read(0, 1).tolist() == [2]


def test_same_files_every_time(stages, tmp_path):
    pack(stages.data, stages.text, stages.tokenizer["bpe"], tmp_path, silent)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in stages.packed["bpe"].iterdir())
    assert all((tmp_path / name).read_bytes() == (stages.packed["bpe"] / name).read_bytes() for name in names)


def test_rule_on_tokens_per_character(stages, tmp_path):
    plain, dense = prose(60), [f"{index} " + "\u1234\u4321\u2345\u5432" * 60 for index in range(20)]
    data = files_data(write_jsonl(tmp_path / "a.jsonl", plain + dense), validation_fraction=0.3,
                      filters={"max_tokens_per_char": 1.0})
    prepare_text(data, tmp_path / "text", silent)
    pack(data, tmp_path / "text", stages.tokenizer["bpe"], tmp_path / "out", silent)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))
    *_, rule, kept = manifest["funnel"]
    assert rule == {"rule": "max_tokens_per_char", "dropped_documents": 20,
                    "dropped_bytes": sum(len(text.encode()) for text in dense)}
    assert kept == {"rule": "kept", "documents": 60, "bytes": sum(len(text.encode()) for text in plain)}
    assert len(manifest["samples"]["max_tokens_per_char"]) == 5
    held = [json.loads(line)["text"] for line in (tmp_path / "out/validation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(held) == Shards(tmp_path / "out", "validation", verify=True).n_documents and set(held) < set(plain)

    data.filters.max_tokens_per_char = 0.001
    with pytest.raises(DataError, match=r"no document is left of 80 read \(dropped: max_tokens_per_char 80\)"):
        pack(data, tmp_path / "text", stages.tokenizer["bpe"], tmp_path / "none", silent)
    assert not (tmp_path / "none/manifest.json").exists()


# ---- damage ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def damaged(tmp_path):
    """A small folder of shards to be damaged."""
    write(tmp_path / "d", [[2, 10 + number, 3] for number in range(9)], shard_tokens=10)
    return tmp_path / "d"


def refused(folder, message, verify=False):
    with pytest.raises(DataError, match=message) as error:
        Shards(folder, "train", verify=verify)
    assert "\n" not in str(error.value)


def test_manifest_missing_or_foreign(damaged, stages):
    refused(damaged.parent, "holds no finished packed data")
    refused(stages.text, "not the manifest of a packed data")
    refused(stages.tokenizer["bpe"], "not the manifest of a packed data")
    with pytest.raises(DataError, match="no uint16 split 'test'; it has train"):
        Shards(damaged, "test")


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00000.starts.npy", "train-00002.bytes.npy"])
def test_file_missing_or_cut_short(damaged, name):
    content = (damaged / name).read_bytes()
    (damaged / name).write_bytes(content[:-1])
    refused(damaged, r"train-0000\d\.bin: .*(has 17 bytes, its manifest says 18|cannot be read).*; make it again: cram data --force")
    (damaged / name).write_bytes(b"")
    refused(damaged, r"cannot be read .*make it again: cram data --force")
    (damaged / name).unlink()
    refused(damaged, f"{name}: missing; make it again: cram data --force")


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00000.starts.npy", "train-00002.bytes.npy"])
def test_one_flipped_bit_is_found_by_verification(damaged, name):
    content = bytearray((damaged / name).read_bytes())
    content[-1] ^= 1
    (damaged / name).write_bytes(bytes(content))
    Shards(damaged, "train")
    refused(damaged, r"train-0000\d\.bin: its content differs from what was written \(xxh3-128\); make it again: cram data --force",
            verify=True)


def test_index_of_another_shard(damaged):
    np.save(damaged / "train-00000.starts.npy", np.zeros(2, np.uint64))
    refused(damaged, "its index has 2 documents, its manifest says 3")


def test_manifest_that_does_not_add_up(damaged):
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"].pop()
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    refused(damaged, "its shards do not add up to its train split")


def test_impossible_shard_size(stages, tmp_path):
    data = files_data(stages.folder / "corpus.jsonl", shard_tokens=0)
    with pytest.raises(DataError, match="data.shard_tokens is 0; it must be 1 or more"):
        pack(data, stages.text, stages.tokenizer["bpe"], tmp_path / "out", silent)


def test_stages_before_are_missing(stages, tmp_path):
    with pytest.raises(DataError, match="holds no finished prepared text"):
        pack(stages.data, tmp_path, stages.tokenizer["bpe"], tmp_path / "out", silent)
    with pytest.raises(DataError, match="holds no finished tokenizer"):
        pack(stages.data, stages.text, tmp_path, tmp_path / "out", silent)
    with pytest.raises(DataError, match="holds no finished prepared text"):
        train_tokenizer(Tokenizer(vocab_size=300), tmp_path, tmp_path / "out", silent)
