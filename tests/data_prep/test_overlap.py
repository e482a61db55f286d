"""How much of an evaluation set stands in the training text, against sets of tuples in plain Python."""

import json
import re

import pytest

from cram.schema import Config
from data_prep.decontaminate import NGRAM
from data_prep.errors import DataError
from data_prep.overlap import Overlap, overlap
from data_prep.sources.rows import read_rows
from tests.data_prep.corpus import prepare, prose


def grams(text):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[start:start + NGRAM]) for start in range(len(words) - NGRAM + 1)}


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    (folder / "text").mkdir()
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in prose(120, seed=2)))
    config = Config()
    config.data.source, config.data.files = "files", [str(folder / "corpus.jsonl")]
    config.data.validation_fraction, config.data.filters.min_chars = 0.1, None
    prepare(config.data, folder / "text", lambda line: None)
    return folder / "text"


def test_examples_that_share_thirteen_words_are_counted_once(text_dir):
    from data_prep.text import read_split
    texts = [text for batch in read_split(text_dir, "train") for text in batch.column("text").to_pylist()]
    seen = set().union(*map(grams, texts))
    words = texts[7].split()
    rows = [{"a": " ".join(words[3:30]).upper(), "b": " -- ".join(words[2:40])},  # both strings: one example
            {"question": "short"},                                                   # cannot be compared
            {"nested": {"choices": ["no", " ".join(words[20:33])]}, "label": 1},
            {"a": " ".join(words[20:32]) + " otherwise"},                           # twelve are not enough
            *({"text": text} for text in prose(20, seed=3))]
    wanted = [any(grams(text) & seen for text in json.dumps(row).replace('"', "|").split("|")) for row in rows]
    found = overlap(text_dir, {"mine": rows, "none": [{"text": "a b c"}], "empty": []})
    assert wanted[:4] == [True, False, True, False]
    assert found["mine"] == Overlap(len(rows), len(rows) - 1, sum(wanted))
    assert (found["none"], found["empty"]) == (Overlap(1, 0, 0), Overlap(0, 0, 0))


def test_text_that_is_not_all_there_is_said(tmp_path):
    with pytest.raises(DataError, match="manifest"):
        overlap(tmp_path, {"mine": [{"text": " ".join(map(str, range(20)))}]})


def test_rows_come_from_all_files_of_a_split(tmp_path):
    folder = tmp_path / "owner" / "set" / "part"
    folder.mkdir(parents=True)
    (folder / "test-0.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    (folder / "test-1.jsonl").write_text('{"a": 3}\n')
    place, rows = read_rows("owner/set", "part", "test", str(tmp_path))
    assert rows == [{"a": 1}, {"a": 2}, {"a": 3}] and place.endswith("test-0.jsonl and 1 more")


@pytest.mark.parametrize("content, said", [("[1]\n", "line 1: expected an object"), ('{"a": 1}\n{"a": \n', "line 2: not JSON")])
def test_lines_that_are_no_rows_are_named(tmp_path, content, said):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text(content)
    with pytest.raises(DataError, match=said):
        read_rows("set", None, "test", str(tmp_path))
    with pytest.raises(DataError, match="has no set/train"):
        read_rows("set", None, "train", str(tmp_path))
