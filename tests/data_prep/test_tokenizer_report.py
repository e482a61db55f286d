"""The report on a tokenizer, against counts made by hand and by the library."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from data_prep.domains import samples
from data_prep.errors import DataError
from data_prep.text import read_split
from data_prep.tokenizer import load_tokenizer
from data_prep.tokenizer_report import HELD_OUT, evaluate, names_of, read_domain, to_markdown


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A tokenizer.json that knows three words."""
    path = tmp_path_factory.mktemp("reference") / "tiny" / "tokenizer.json"
    path.parent.mkdir()
    tiny = Library(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    tiny.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny.enable_truncation(2)
    tiny.enable_padding(length=64)
    tiny.save(str(path))
    return path


@pytest.fixture(scope="module")
def report(stages, reference):
    return evaluate(stages.tokenizer["bpe"], stages.text, {"count": ["one two", "three, two"], "digits": ["1 2"]}, [reference])


def domain(report, name):
    return next(row for row in report["domains"] if row["name"] == name)


def test_domains_and_tokenizers(report):
    assert [row["name"] for row in report["domains"]] == [HELD_OUT, *samples(), "count", "digits"]
    assert report["tokenizers"] == ["this", "tiny", "bytes", "words"]
    assert report == json.loads(json.dumps(report))


def test_a_reference_is_counted_as_the_library_does(report):
    row = domain(report, "count")
    assert (row["documents"], row["bytes"], row["words"]) == (2, 17, 4)
    tiny = row["by_tokenizer"]["tiny"]
    assert tiny == {"tokens": 5, "bytes_per_token": 3.4, "round_trip": 0.5, "unknown": 2 / 5, "whole_words": 1.0}
    assert row["by_tokenizer"]["bytes"] == {"tokens": 17, "bytes_per_token": 1.0}
    assert row["by_tokenizer"]["words"] == {"tokens": 5, "bytes_per_token": 3.4}
    assert domain(report, "digits")["by_tokenizer"]["tiny"]["whole_words"] is None


def test_compression_of_the_held_out_split(stages, report):
    texts = [text for batch in read_split(stages.text, "validation") for text in batch.column("text").to_pylist()]
    tokens = sum(len(one.ids) for one in load_tokenizer(stages.tokenizer["bpe"]).encode_batch(texts, add_special_tokens=False))
    row = domain(report, HELD_OUT)
    assert row["by_tokenizer"]["this"]["tokens"] == tokens
    assert row["by_tokenizer"]["this"]["bytes_per_token"] == sum(len(text.encode()) for text in texts) / tokens
    assert 1 < row["by_tokenizer"]["this"]["bytes_per_token"] < row["by_tokenizer"]["words"]["bytes_per_token"]


def test_bytes_come_back(report):
    for row in report["domains"]:
        assert row["by_tokenizer"]["this"]["round_trip"] == 1 and row["by_tokenizer"]["this"]["unknown"] == 0


def test_use_of_the_vocabulary(stages, report):
    tokenizer = load_tokenizer(stages.tokenizer["bpe"])
    seen = np.zeros(640, np.int64)
    for batch in read_split(stages.text, "train"):
        for one in tokenizer.encode_batch(batch.column("text").to_pylist(), add_special_tokens=False):
            np.add.at(seen, one.ids, 1)
    use = report["vocabulary"]
    assert use["tokens_counted"] == seen.sum() and use["used"] == np.sum(seen > 0)
    assert use["rare"] == np.sum(seen[5:] < 10) and use["used_share"] == use["used"] / 635
    for entry in use["longest"]:
        assert entry["seen"] == seen[entry["id"]] and tokenizer.decode([entry["id"]]) == entry["token"]
    lengths = [len(entry["token"]) for entry in use["longest"]]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == max(len(tokenizer.decode([number])) for number in range(5, 640))
    assert (use["padded_size"], use["padding_rows"]) == (640, 0)


def test_a_lossy_kind(stages):
    report = evaluate(stages.tokenizer["wordpiece"], stages.text, max_bytes=50_000)
    english, chinese = domain(report, "English")["by_tokenizer"]["this"], domain(report, "Chinese")["by_tokenizer"]["this"]
    assert english["round_trip"] == 0 and chinese["unknown"] > 0.5
    assert 10_000 < report["vocabulary"]["tokens_counted"] < 50_000


def test_markdown(report):
    text = to_markdown(report)
    assert text.startswith("# Tokenizer: bpe, 640 tokens\n") and "| domain | kB | this | tiny | bytes | words |" in text
    assert "| count | 0.0 |" in text and "| 3.40* | 1.00 | 3.40 |" in text
    assert "| digits | - | 0.00% | 100.00% |" in text and "a multiple of 128" in text
    short = to_markdown({**report, "vocab_size": 600, "vocabulary": {**report["vocabulary"], "padding_rows": 40}})
    assert "no multiple of 128: 40 rows short of 640" in short


def test_domain_files(tmp_path):
    (tmp_path / "a.txt").write_text("One document.\n\nStill one.", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "one\\u2028"}\n\n{"text": "two", "id": 3}\n', encoding="utf-8")
    assert read_domain(tmp_path / "a.txt") == ["One document.\n\nStill one."]
    assert read_domain(str(tmp_path / "b.jsonl")) == ["one\u2028", "two"]


@pytest.mark.parametrize("paths, names", [
    (["a/llama.json", "gpt/tokenizer.json", "my.tokenizer.json"], ["llama", "gpt", "my.tokenizer"]),
    (["runs/a/tokenizer/tokenizer.json", "runs/b/tokenizer/tokenizer.json"], ["a/tokenizer", "b/tokenizer"]),
    (["x/one/tokenizer.json", "y/one/tokenizer.json", "two.json"], ["x/one", "y/one", "two"]),
    (["/this/tokenizer.json", "/t/bytes.json", "/words.json"], ["this", "t/bytes", "words"]),
    (["/v/a/m.json", "/w/a/m.json", "/a/m.json", "/w/a/../../v/m.json"], ["v/a/m", "w/a/m", "a/m", "v/m"])])
def test_references_are_named_by_as_many_folders_as_it_takes(paths, names):
    assert names_of([Path(path) for path in paths]) == names


def test_two_tokenizers_of_this_project_as_references(stages, tmp_path, reference):
    paths = [tmp_path / run / "tokenizer" / "tokenizer.json" for run in ("one", "two")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_bytes(reference.read_bytes())
    report = evaluate(stages.tokenizer["bpe"], stages.text, references=paths, max_bytes=20_000)
    assert report["tokenizers"] == ["this", "one/tokenizer", "two/tokenizer", "bytes", "words"]


@pytest.mark.parametrize("name, content, message", [
    ("a.csv", b"x", r"a\.csv: a domain is a \.txt or a \.jsonl file"),
    ("a.txt", b"\xff", r"a\.txt: cannot be read as UTF-8 text"),
    ("a.jsonl", b'{"text": "x"}\n{', r"a\.jsonl: line 2 is no JSON"),
    ("a.jsonl", b'{"body": "x"}', r'a\.jsonl: line 1 has no string in column "text"'),
    ("a.jsonl", b'[1]', r'a\.jsonl: line 1 has no string in column "text"'),
])
def test_domain_files_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_domain(tmp_path / name)


def test_refusals(stages, tmp_path, reference):
    folder, damaged = stages.tokenizer["bpe"], tmp_path / "damaged.json"
    damaged.write_text("{}")
    for message, keys in [
        (r"none\.txt: cannot be read", {"domains": {"x": tmp_path / "none.txt"}}),
        ("empty: this domain has no text", {"domains": {"empty": [""]}}),
        ("English: two domains or two tokenizers have this name", {"domains": {"English": ["x"]}}),
        ("tiny: two domains or two tokenizers have this name", {"references": [reference, reference]}),
        (r"none\.json: cannot be read .*; references are paths of tokenizer\.json", {"references": [tmp_path / "none.json"]}),
        (r"damaged\.json: no tokenizer of Hugging Face", {"references": [damaged]}),
    ]:
        with pytest.raises(DataError, match=message) as error:
            evaluate(folder, stages.text, **keys)
        assert "\n" not in str(error.value)
