"""Shared 13-grams with evaluation sets, against sets of tuples in plain Python; and the files they are read from."""

import gzip
import json
import lzma
import pickle
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.blocks import Block
from data_prep.decontaminate import NGRAM, EvaluationSets, columns, contamination, evidence, load, open_sets
from data_prep.errors import DataError
from tests.data_prep.corpus import prose


def grams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return [tuple(words[start:start + NGRAM]) for start in range(len(words) - NGRAM + 1)]


def write(path, items, field="text"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({field: item}) + "\n" for item in items), encoding="utf-8")
    return path


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.sampled_from("ab"), max_size=20), min_size=1, max_size=4),
       st.lists(st.lists(st.sampled_from("ab"), max_size=40), max_size=6))
def test_hits_against_tuples(tmp_path_factory, items, documents):
    folder = tmp_path_factory.mktemp("sets")
    names = [str(write(folder / f"{number}.jsonl", [" ".join(item), "filler"])) for number, item in enumerate(items)]
    owned = [set(grams(" ".join(item))) for item in items]
    texts = [" ".join(words) for words in documents]
    sets = load(names, None)
    counts = contamination(Block(texts), sets)
    for text, count in zip(texts, counts):
        hits = [next(number for number, own in enumerate(owned) if gram in own)
                for gram in grams(text) if any(gram in own for own in owned)]
        assert count == len(hits)
        assert [name for name, _ in evidence(text, sets)] == [sets.sets[hit]["set"] for hit in hits]
    assert counts.dtype == np.int32
    assert [row["ngrams"] for row in sets.summary()] == [len(own) for own in owned]


def test_a_planted_item_is_found_whatever_its_layout(tmp_path):
    items, texts = prose(40, seed=1), prose(300, seed=2)
    sets = load([str(write(tmp_path / "task.jsonl", items))], None)
    words = items[17].split()
    texts[123] += "\n\n" + " -- ".join(words[20:33]).upper() + "!"
    texts[200] += " " + " ".join(words[20:32]) + " other"                        # twelve are not enough
    found = columns(Block(texts), sets)
    assert np.flatnonzero(found["contaminated_ngrams"]).tolist() == [123]
    assert found["contaminated_ngrams"][123] == 1
    assert found["contaminated_by"].tolist()[122:125] == ["", str(tmp_path / "task.jsonl"), ""]
    example = found["contaminated_example"][123]
    assert example in texts[123] and grams(example) == [tuple(grams(" ".join(words[20:33]))[0])]


def test_the_set_of_the_first_hit_is_named(tmp_path):
    one, two = prose(2, seed=9)
    sets = load([str(write(tmp_path / f"{name}.jsonl", [text])) for name, text in (("one", one), ("two", two))], None)
    found = columns(Block([one + " and " + two, two + " and " + one, "neither"]), sets)
    counts = found["contaminated_ngrams"]
    assert [Path(name).stem for name in found["contaminated_by"]] == ["one", "two", ""]
    assert counts[0] == counts[1] > 100 and counts[2] == 0
    assert evidence(two + " and " + one, sets, 1)[0][0].endswith("two.jsonl")


def test_no_hit_runs_over_the_end_of_a_document(tmp_path):
    sets = load([str(write(tmp_path / "task.jsonl", ["a b c d e f g h i j k l m"]))], None)
    assert contamination(Block(["a b c d e f g", "h i j k l m"]), sets).tolist() == [0, 0]
    assert contamination(Block(["", "a b c d e f g h i j k l m", ""]), sets).tolist() == [0, 1, 0]
    assert contamination(Block([]), sets).tolist() == []


def test_every_string_in_a_row_counts_and_short_items_are_counted(tmp_path):
    texts = prose(6, seed=3)
    row = {"id": 7, "question": texts[0], "choices": {"text": [texts[1], "yes", ""], "label": ["A"]},
           "more": [[{"deep": texts[2]}], None, 1.5, True]}
    (tmp_path / "task.jsonl").write_text(json.dumps(row) + "\n\n" + json.dumps([texts[3]]) + "\n")
    sets = load([str(tmp_path / "task.jsonl")], None)
    counts = contamination(Block(texts), sets)
    assert (counts > 0).tolist() == [True] * 4 + [False] * 2
    assert sets.summary() == [{"set": str(tmp_path / "task.jsonl"), "files": 1, "items": 6, "short_items": 2,
                               "ngrams": len({gram for text in texts[:4] for gram in grams(text)})}]


def test_kinds_of_files_and_folders(tmp_path):
    texts = prose(6, seed=4)
    lines = [(json.dumps({"any": text}) + "\n").encode() for text in texts]
    folder = tmp_path / "mirror/owner/task"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines[0])
    (folder / "deep/b.jsonl.gz").write_bytes(gzip.compress(lines[1]))
    (folder / "deep/er/c.jsonl.xz").write_bytes(lzma.compress(lines[2]))
    (folder / "deep/d.jsonl.zst").write_bytes(zstandard.compress(lines[3]))
    pq.write_table(pa.table({"q": [[{"a": texts[4]}]]}), folder / "e.parquet")
    (folder / "README.md").write_text(texts[5])
    for names, mirror in ((["owner/task"], str(tmp_path / "mirror")), ([str(folder)], None),
                          ([str(folder / "**/*.[jp]*")], None)):
        sets = load(names, mirror)
        assert (contamination(Block(texts), sets) > 0).tolist() == [True] * 5 + [False]
        assert sets.summary()[0]["files"] == 5
    write(tmp_path / "mirror/plain.jsonl", texts[5:])
    sets = load(["plain", "owner/task", "plain"], str(tmp_path / "mirror"))
    assert [row["set"] for row in sets.summary()] == ["plain", "owner/task"]
    assert columns(Block(texts), sets)["contaminated_by"].tolist() == ["owner/task"] * 5 + ["plain"]


def test_saved_sets_are_the_same_in_another_process(tmp_path):
    texts = prose(50, seed=5)
    name = str(write(tmp_path / "task.jsonl", texts[:20]))
    for path in ("one", "two"):
        load([name], None).save(tmp_path / path)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    opened = open_sets(tmp_path / "one")
    for sets in (opened, pickle.loads(pickle.dumps(opened))):
        assert contamination(Block(texts), sets).tolist() == contamination(Block(texts), load([name], None)).tolist()
        assert sets.summary() == load([name], None).summary()


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_find_against_a_set(count):
    """Hashes next to each other and at both ends: what the table of bits cannot tell apart."""
    rng = np.random.default_rng(count)
    every = np.unique(np.concatenate([rng.integers(0, 2**64, count, dtype=np.uint64),
                                      np.arange(count, dtype=np.uint64), ~np.arange(1, min(count, 4), dtype=np.uint64)]))
    sets = EvaluationSets(every, (np.arange(len(every)) % 7).astype(np.int16), [])
    asked = rng.permutation(np.concatenate([every, every ^ np.uint64(1), rng.integers(0, 2**64, 5000, dtype=np.uint64)]))
    places, owners = sets.find(asked)
    position = {value: index for index, value in enumerate(every.tolist())}
    assert places.tolist() == [index for index, value in enumerate(asked.tolist()) if value in position]
    assert owners.tolist() == [position[value] % 7 for value in asked[places].tolist()]


@pytest.mark.parametrize("prepare, message", [
    (lambda folder: None, "task is no file or folder nor in data.mirror"),
    (lambda folder: (folder / "task").mkdir(), "task is a folder without .jsonl"),
    (lambda folder: write(folder / "task/a.jsonl", []), "task holds no text"),
    (lambda folder: write(folder / "task/a.jsonl", [1, 2]), "task holds no text"),
    (lambda folder: ((folder / "task").mkdir(), (folder / "task/a.jsonl").write_text('{"a": "b"}\n{')), "line 2 is no JSON"),
    (lambda folder: ((folder / "task").mkdir(), (folder / "task/a.jsonl").write_bytes(b'{"a": "\xff"}')), "line 1, byte 7"),
    (lambda folder: ((folder / "task").mkdir(), (folder / "task/a.parquet").write_bytes(b"PAR1 no")), "cannot be read"),
])
def test_faults_are_named(tmp_path, prepare, message):
    prepare(tmp_path)
    with pytest.raises(DataError, match=re.escape(message)) as error:
        load(["task"], str(tmp_path))
    assert "\n" not in str(error.value)


def test_damaged_saved_sets(tmp_path):
    path = tmp_path / "sets"
    with pytest.raises(DataError, match="no such file"):
        open_sets(path)
    load([str(write(tmp_path / "task.jsonl", prose(5)))], None).save(path)
    content = path.read_bytes()
    for damaged in (b"", b"text", content[:100], content[:-30], content[:200] + b"\x00\x01" + content[202:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            open_sets(path)
