"""data.filters.max_tokens_per_char, applied in packing: what it drops, what it never looks at, and the numbers it leaves."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.pack import pack
from data_prep.shards import Shards
from data_prep.tokenizer import load_tokenizer
from tests.data_prep.corpus import prose, silent
from tests.data_prep.packing import contents, data_section, size, write_text

PLAIN, DENSE = prose(60), [f"{index} " + "\u1234\u4321\u2345\u5432" * 60 for index in range(20)]
PARTS, HELD_OUT = [PLAIN[:20] + DENSE[:4], DENSE[4:14], PLAIN[20:40]], PLAIN[40:] + DENSE[14:]


@pytest.fixture
def text(tmp_path) -> Path:
    return write_text(tmp_path / "text", PARTS, HELD_OUT)


@pytest.fixture
def tokenizer(stages) -> Path:
    return stages.tokenizer["bpe"]


def ratios(out: Path, shard: str) -> np.ndarray:
    return np.load(out / f"{shard}.tokens_per_char.npy")


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def test_documents_beyond_the_threshold_are_dropped_from_both_splits(text, tokenizer, tmp_path):
    pack(data_section(max_tokens_per_char=1.0), None, text, tokenizer, tmp_path / "out", silent)
    packed = manifest(tmp_path / "out")
    *_, rule, kept = packed["funnel"]
    assert rule == {"rule": "max_tokens_per_char", "dropped_documents": 20, "dropped_bytes": sum(map(size, DENSE))}
    assert kept == {"rule": "kept", "documents": 60, "bytes": sum(map(size, PLAIN))}
    assert packed["samples"]["max_tokens_per_char"] == [text[:300] for text in DENSE[14:19]]     # the first: held-out ones
    assert [shard["file"] for shard in packed["splits"]["train"]["shards"]] == ["train-00000.bin", "train-00002.bin"]
    held = [json.loads(line)["text"] for line in (tmp_path / "out/validation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert held == PLAIN[40:] and Shards(tmp_path / "out", "validation", verify=True).n_documents == 20


def test_a_threshold_that_drops_everything(text, tokenizer, tmp_path):
    pack(data_section(), None, text, tokenizer, tmp_path / "out", silent)
    with pytest.raises(DataError, match=r"no document is left of 80 read \(dropped: max_tokens_per_char 80\)"):
        pack(data_section(max_tokens_per_char=0.001), None, text, tokenizer, tmp_path / "out", silent)
    assert not (tmp_path / "out/manifest.json").exists()


def test_the_numbers_that_decided_are_kept(text, tokenizer, tmp_path):
    pack(data_section(max_tokens_per_char=1.0), None, text, tokenizer, tmp_path / "out", silent)
    library, shards = load_tokenizer(tokenizer), ("train-00000", "train-00001", "train-00002", "validation-00000")
    for shard, texts in zip(shards, [*PARTS, HELD_OUT]):
        assert ratios(tmp_path / "out", shard).dtype == np.float32
        assert ratios(tmp_path / "out", shard).tolist() == [
            np.float32(len(library.encode(text, add_special_tokens=False).ids) / len(text)) for text in texts]


def test_a_document_on_the_threshold_stays(text, tokenizer, tmp_path):
    pack(data_section(max_tokens_per_char=1.0), None, text, tokenizer, tmp_path / "out", silent)
    highest = max(ratio for ratio in ratios(tmp_path / "out", "train-00000") if ratio <= 1)
    for threshold, documents in ((float(highest), 20), (float(np.nextafter(highest, np.float32(0))), 19)):
        pack(data_section(max_tokens_per_char=threshold), None, text, tokenizer, tmp_path / "out", silent)
        assert manifest(tmp_path / "out")["splits"]["train"]["shards"][0]["documents"] == documents


def test_documents_of_held_out_files_are_never_dropped(text, tokenizer, tmp_path):
    data, out = data_section(max_tokens_per_char=1.0), tmp_path / "out"
    pack(data, None, text, tokenizer, out, silent)
    (text / "manifest.json").write_text(json.dumps(manifest(text) | {"validation_from_files": True}))
    pack(data, None, text, tokenizer, out, silent)
    assert Shards(out, "validation", verify=True).n_documents == len(HELD_OUT) and Shards(out, "train").n_documents == 40
    assert not (out / "validation-00000.tokens_per_char.npy").exists()               # nor is what the first run wrote
    assert manifest(out)["funnel"][-2]["dropped_documents"] == 14


def test_the_numbers_are_part_of_a_finished_part(text, tokenizer, tmp_path):
    data, out = data_section("best-fit", max_tokens_per_char=1.0), tmp_path / "out"
    pack(data, 64, text, tokenizer, out, silent)
    before, made = contents(out), [path.stat().st_mtime_ns for path in sorted(out.glob("train-*.json"))]
    (out / "train-00001.tokens_per_char.npy").unlink()
    (out / "train-00002.tokens_per_char.npy").write_bytes(b"")
    pack(data, 64, text, tokenizer, out, silent)
    again = [path.stat().st_mtime_ns for path in sorted(out.glob("train-*.json"))]
    assert contents(out) == before
    assert [old == new for old, new in zip(made, again)] == [True, False, False]


def test_without_the_rule_nothing_is_left_of_it(text, tokenizer, tmp_path):
    for threshold in (1.0, None):
        pack(data_section(max_tokens_per_char=threshold), None, text, tokenizer, tmp_path / "out", silent)
    pack(data_section(), None, text, tokenizer, tmp_path / "plain", silent)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*tokens_per_char*"))
