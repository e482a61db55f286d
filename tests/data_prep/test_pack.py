"""The data stage: what is read back is what the tokenizer made of each text, however it was packed, cut off or spread out."""

import hashlib
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xxhash

from cram.schema import Tokenizer
from data_prep.errors import DataError
from data_prep.pack import pack
from data_prep.shard_writer import write_shard
from data_prep.shards import Shards
from data_prep.tokenizer import load_tokenizer, train_tokenizer
from tests.data_prep.corpus import ODD_TEXTS, prose, silent
from tests.data_prep.packing import contents, data_section, size, write_text

ROOT = Path(__file__).resolve().parents[2]
KINDS, ROW = ("bpe", "wordpiece"), 64
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """Text in eight parts (the third has nothing to train on), tokenizers, and the data packed in each way."""
    folder, texts = tmp_path_factory.mktemp("pack"), prose(260) + ODD_TEXTS
    train, validation = texts[20:], texts[:20]
    parts = [train[:60], train[60:61], [], *(train[low:low + 37] for low in range(61, len(train), 37))]
    text = write_text(folder / "text", parts, validation)
    tokenizers = {kind: folder / f"tokenizer-{kind}" for kind in KINDS}
    packed = {}
    for kind in KINDS:
        train_tokenizer(Tokenizer(type=kind, vocab_size=640), text, tokenizers[kind], silent)
        for packing in ("stream", "best-fit"):
            packed[kind, packing] = folder / f"{kind}-{packing}"
            pack(data_section(packing), ROW, text, tokenizers[kind], packed[kind, packing], silent)
    return SimpleNamespace(text=text, parts=parts, split={"train": train, "validation": validation}, tokenizer=tokenizers,
                           packed=packed)


def encoded(made, kind, split):
    """Oracle: each document alone."""
    tokenizer = load_tokenizer(made.tokenizer[kind])
    return [[2, *tokenizer.encode(text, add_special_tokens=False).ids, 3] for text in made.split[split]]


# ---- what is written -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split,packing", [("train", "stream"), ("validation", "stream"), ("validation", "best-fit")])
def test_stream_is_every_document_between_its_markers(made, kind, split, packing):
    shards, expected = Shards(made.packed[kind, packing], split, verify=True), encoded(made, kind, split)
    stream = shards.read(0, shards.n_tokens)
    assert stream.dtype == shards.dtype == np.uint16 and shards.row_tokens is None
    assert stream.tolist() == [token for document in expected for token in document]
    assert shards.document_starts.tolist() == shards.piece_starts.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert shards.document_bytes.tolist() == list(map(size, made.split[split]))
    assert shards.document_starts.dtype == shards.document_bytes.dtype == shards.piece_starts.dtype == np.int64
    assert not np.isin(stream, [0, 4]).any()
    assert (shards.n_documents, shards.vocab_size, shards.lossless) == (len(expected), 640, kind == "bpe")
    assert shards.special == SPECIAL
    assert shards.read_document(3).tolist() == expected[3]


@pytest.mark.parametrize("kind", KINDS)
def test_best_fit_rows_hold_every_document_once(made, kind):
    shards, expected = Shards(made.packed[kind, "best-fit"], "train", verify=True), encoded(made, kind, "train")
    assert shards.row_tokens == ROW and shards.n_tokens % ROW == 0
    stream_RT = shards.read(0, shards.n_tokens).reshape(-1, ROW)
    assert (stream_RT[:, 0] == 2).all()
    assert (np.diff((stream_RT == 0).astype(int), axis=1) >= 0).all()                      # [PAD] ends rows
    assert np.flatnonzero(stream_RT.reshape(-1) == 2).tolist() == shards.piece_starts[:-1].tolist()
    assert [shards.read_document(number).tolist() for number in range(len(expected))] == expected
    for number, document in enumerate(expected):
        pieces = np.flatnonzero(shards.piece_documents == number)
        assert len(pieces) >= -(-(len(document) - 1) // (ROW - 1)) and (len(document) > ROW or len(pieces) == 1)
        assert shards.document_starts[number] == shards.piece_starts[pieces[0]]
    assert shards.document_bytes.tolist() == list(map(size, made.split["train"]))
    padding = np.count_nonzero(stream_RT == 0)
    assert shards.manifest["padding_share"] == padding / stream_RT.size
    assert padding == shards.manifest["splits"]["train"]["padding_tokens"]


def test_decoded_documents_are_the_texts(made):
    tokenizer = load_tokenizer(made.tokenizer["bpe"])
    for packing in ("stream", "best-fit"):
        shards = Shards(made.packed["bpe", packing], "train")
        assert made.split["train"] == [tokenizer.decode(shards.read_document(number)[1:-1].tolist(), skip_special_tokens=False)
                                       for number in range(shards.n_documents)]


@pytest.mark.parametrize("packing", ["stream", "best-fit"])
def test_manifest_adds_up(made, packing):
    folder = made.packed["wordpiece", packing]
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    text = json.loads((made.text / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["funnel"] == text["funnel"] and manifest["source"] == text["source"]
    assert manifest["tokenizer_sha256"] == json.loads((made.tokenizer["wordpiece"] / "manifest.json").read_text())["sha256"]
    assert (manifest["packing"], manifest["dtype"], manifest["parts"]) == (packing, "uint16", len(made.parts))
    assert manifest["row_tokens"] == (ROW if packing == "best-fit" else None)
    for split, entry in manifest["splits"].items():
        assert {key: entry[key] for key in ("documents", "bytes")} == text["splits"][split]
        assert entry["tokens"] == sum(shard["tokens"] for shard in entry["shards"])
        for shard in entry["shards"]:
            content = (folder / shard["file"]).read_bytes()
            assert len(content) == 2 * shard["tokens"] and xxhash.xxh3_128_hexdigest(content) == shard["xxh3_128"]
    named = {f"train-{number:05d}.bin": len(texts) for number, texts in enumerate(made.parts) if texts}
    assert {shard["file"]: shard["documents"] for shard in manifest["splits"]["train"]["shards"]} == named
    assert {path.name for path in folder.glob("*.bin")} == {*named, "validation-00000.bin"}
    train = Shards(folder, "train")
    counts = np.bincount(train.read(0, train.n_tokens), minlength=640)
    counts[0] = 0
    assert np.load(folder / "token_counts.npy").tolist() == train.token_counts().tolist() == counts.tolist()
    held = [json.loads(line)["text"] for line in (folder / "validation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert held == made.split["validation"]


def test_four_bytes_a_token_where_two_do_not_suffice(made, tmp_path):
    """The same vocabulary, with tokens that no text has up to 70,000: the same ids, in uint32."""
    large = shutil.copytree(made.tokenizer["bpe"], tmp_path / "tokenizer")
    model = json.loads((large / "tokenizer.json").read_text(encoding="utf-8"))
    model["model"]["vocab"] |= {f"\ufffe{number}": number for number in range(640, 70_000)}
    (large / "tokenizer.json").write_text(json.dumps(model))
    manifest = json.loads((large / "manifest.json").read_text())
    manifest |= {"vocab_size": 70_000, "sha256": hashlib.sha256((large / "tokenizer.json").read_bytes()).hexdigest()}
    (large / "manifest.json").write_text(json.dumps(manifest))
    pack(data_section(), None, made.text, large, tmp_path / "out", silent)
    wide, narrow = Shards(tmp_path / "out", "train", verify=True), Shards(made.packed["bpe", "stream"], "train")
    assert wide.dtype == wide.read(0, 5).dtype == np.uint32 and wide.manifest["dtype"] == "uint32"
    assert np.array_equal(wide.read(0, wide.n_tokens), narrow.read(0, narrow.n_tokens))


# ---- cut off and gone on ---------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from data_prep.pack import pack
from tests.data_prep.packing import data_section
print("ready", flush=True)
pack(data_section("best-fit"), 64, Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), lambda line: None)
"""


def child(made, out, **options) -> subprocess.Popen:
    """Another process that packs; returned when it begins to."""
    process = subprocess.Popen([sys.executable, "-B", "-c", CHILD, made.text, made.tokenizer["bpe"], out], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def test_same_files_from_any_number_of_workers(made, tmp_path):
    pack(data_section("best-fit", workers=2), ROW, made.text, made.tokenizer["bpe"], tmp_path, silent)
    assert contents(tmp_path) == contents(made.packed["bpe", "best-fit"])


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(made, tmp_path):
    process, start = child(made, tmp_path / "whole"), time.monotonic()
    process.communicate()
    seconds, begun = time.monotonic() - start, 0
    for attempt in range(5):
        process = child(made, tmp_path / "out")
        time.sleep(random.Random(attempt).uniform(0.2, 0.8) * seconds)
        process.kill()
        process.communicate()
        for marker in (tmp_path / "out").glob("train-*.json"):            # whatever has a marker is whole
            begun += 1
            for name, bytes_ in json.loads(marker.read_text())["files"].items():
                assert (tmp_path / "out" / name).stat().st_size == bytes_
    assert begun
    _, errors = child(made, tmp_path / "out").communicate()
    assert not errors and contents(tmp_path / "out") == contents(made.packed["bpe", "best-fit"])


def pack_again(made, out, monkeypatch, data=None, text=None) -> list[str]:
    """The shards that are written when the stage runs once more on ``out``."""
    written = []

    def spy(folder, name, *rest):
        written.append(name)
        return write_shard(folder, name, *rest)

    monkeypatch.setattr("data_prep.pack_part.write_shard", spy)
    pack(data or data_section("best-fit"), ROW, text or made.text, made.tokenizer["bpe"], out, silent)
    return [name for name in written if name != "validation-00000"]


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made.packed["bpe", "best-fit"], tmp_path / "copy")


def test_finished_parts_are_not_packed_again(made, copy, monkeypatch):
    assert pack_again(made, copy, monkeypatch) == []


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00001.documents.npy", "train-00001.json"])
@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_damaged_part_is_packed_again(made, copy, monkeypatch, name, damage):
    (copy / name).write_bytes((copy / name).read_bytes()[:-9])
    if damage == "missing":
        (copy / name).unlink()
    assert pack_again(made, copy, monkeypatch) == ["train-00001"]
    assert contents(copy) == contents(made.packed["bpe", "best-fit"])


def test_a_marker_of_something_else_is_not_trusted(made, copy, tmp_path, monkeypatch):
    everything = [f"train-{number:05d}" for number, texts in enumerate(made.parts) if texts]
    assert pack_again(made, copy, monkeypatch, data=data_section("best-fit", max_tokens_per_char=99.0)) == everything
    assert pack_again(made, copy, monkeypatch) == everything
    shutil.copy(copy / "train-00000.json", copy / "train-00001.json")
    assert pack_again(made, copy, monkeypatch) == ["train-00001"]
    text = shutil.copytree(made.text, tmp_path / "text")                 # the same sizes, another document
    fate = np.load(text / "fate-00003.npy")
    fate[[0, 1]] = fate[[1, 0]]
    np.save(text / "fate-00003.npy", fate)
    with pytest.raises(AssertionError, match="bytes in = kept"):          # the account notices, too
        pack_again(made, copy, monkeypatch, text=text)
    assert (copy / "train-00003.json").read_bytes() != (made.packed["bpe", "best-fit"] / "train-00003.json").read_bytes()


def test_shards_of_an_earlier_text_are_removed(made, copy, tmp_path, monkeypatch):
    text = write_text(tmp_path / "text", made.parts[:2], made.split["validation"])
    pack_again(made, copy, monkeypatch, text=text)
    assert {path.name for path in copy.glob("*.bin")} == {"train-00000.bin", "train-00001.bin", "validation-00000.bin"}


def test_a_full_disk_leaves_no_marker_and_the_next_run_goes_on(made, tmp_path):
    """The largest file that the process may write is smaller than the first shard, larger than the second."""
    small, large = ((made.packed["bpe", "best-fit"] / f"train-0000{number}.bin").stat().st_size for number in (1, 0))
    limit = max(small, 6000)
    assert limit < large
    process = child(made, tmp_path / "out",
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)))
    _, errors = process.communicate()
    assert process.returncode and "cannot be written (File too large); make room" in errors.splitlines()[-1]
    assert not (tmp_path / "out/manifest.json").exists() and not list((tmp_path / "out").glob("train-00000*"))
    assert not list((tmp_path / "out").glob(".*.tmp"))
    _, errors = child(made, tmp_path / "out").communicate()
    assert not errors and contents(tmp_path / "out") == contents(made.packed["bpe", "best-fit"])


# ---- what cannot be packed --------------------------------------------------------------------------------------------

def test_counts_of_another_vocabulary(made, copy):
    np.save(copy / "token_counts.npy", np.zeros(3, np.int64))
    with pytest.raises(DataError, match="counts 3 tokens of a vocabulary of 640"):
        Shards(copy, "train").token_counts()


def test_stages_before_are_missing_or_damaged(made, tmp_path):
    with pytest.raises(DataError, match="holds no finished prepared text"):
        pack(data_section(), None, tmp_path, made.tokenizer["bpe"], tmp_path / "out", silent)
    with pytest.raises(DataError, match="holds no finished tokenizer"):
        pack(data_section(), None, made.text, tmp_path, tmp_path / "out", silent)
    with pytest.raises(DataError, match="holds no finished prepared text"):
        train_tokenizer(Tokenizer(vocab_size=300), tmp_path, tmp_path / "out", silent)
    text = shutil.copytree(made.text, tmp_path / "text")
    (text / "part-00001.parquet").unlink()
    with pytest.raises(DataError, match="part-00001.parquet: cannot be read .*; run: cram text --force"):
        pack(data_section(), None, text, made.tokenizer["bpe"], tmp_path / "out", silent)
    with pytest.raises(DataError, match="best-fit needs rows of 2 tokens or more"):
        pack(data_section("best-fit"), None, made.text, made.tokenizer["bpe"], tmp_path / "out", silent)
