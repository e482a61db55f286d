"""Parts, what is stored of them, and reading it back."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.schema import Edits
from data_prep import measure
from data_prep.errors import DataError
from data_prep.measure import measure_corpus
from data_prep.measured import Measured
from data_prep.parts import cut_parts, fingerprint
from data_prep.sources.batches import SCHEMA
from tests.data_prep.corpus import files_data, prepare, prose, silent, write_jsonl


def batch(texts):
    return pa.record_batch([pa.array(texts, pa.string()), pa.array(["x"] * len(texts), pa.string())], schema=SCHEMA)


@settings(deadline=None)
@given(st.lists(st.lists(st.text(max_size=12), max_size=5), max_size=8), st.integers(1, 30))
def test_parts_depend_on_documents_alone(batches, part_bytes):
    texts = [text for texts in batches for text in texts]
    parts = [part["text"].to_pylist() for part in cut_parts(map(batch, batches), part_bytes)]
    assert [text for part in parts for text in part] == texts
    for number, part in enumerate(parts):
        sizes = [len(text.encode()) for text in part]
        assert sum(sizes[:-1]) < part_bytes and (sum(sizes) >= part_bytes or number == len(parts) - 1)
    assert parts == [part["text"].to_pylist() for part in cut_parts([batch([text]) for text in texts], part_bytes)]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=5), min_size=1, max_size=5), st.integers(0, 4), st.text(max_size=5))
def test_fingerprint_tells_documents_apart(texts, index, other):
    texts = [text.replace("\x00", "") for text in texts]
    changed = [*texts]
    changed[index % len(texts)] = other.replace("\x00", "")
    assert (fingerprint(batch(texts)) == fingerprint(batch(changed))) == (texts == changed)
    assert fingerprint(batch([*texts, ""])) != fingerprint(batch(texts))
    sliced = pa.record_batch([batch(["a", *texts]).column(name) for name in SCHEMA.names], schema=SCHEMA).slice(1)
    assert fingerprint(next(cut_parts([sliced], 10**6))) == fingerprint(next(cut_parts([batch(texts)], 10**6)))


def test_rows_of_any_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROW_GROUP", 7)
    texts = prose(150)
    measure_corpus(files_data(write_jsonl(tmp_path / "a.jsonl", texts), part_bytes=20_000), tmp_path / "m", "key", silent)
    measured = Measured(tmp_path / "m")
    assert len(measured) == 150 and len(measured.parts) > 3
    rng = np.random.default_rng(0)
    for count in (0, 1, 20, 400):
        indices = rng.integers(0, 150, count)
        assert [row["text"] for row in measured.rows(indices, "text")] == [texts[index] for index in indices]
    assert measured.column("chars").tolist() == list(map(len, texts))


def test_a_giant_document_is_measured_to_its_end(tmp_path):
    """Sources cut it into pieces, and every piece is judged."""
    texts = prose(5)
    giant = "a fine sentence of words. " * 100_000 + "lorem ipsum"
    data = files_data(write_jsonl(tmp_path / "a.jsonl", [*texts, giant]), part_bytes=10**7)
    measure_corpus(data, tmp_path / "m", "key", silent)
    measured = Measured(tmp_path / "m")
    pieces = measured.rows(np.arange(5, len(measured)), "text", "chars", "placeholder", "origin")
    assert len(pieces) == 2 and " ".join(piece["text"] for piece in pieces) == giant
    assert all(piece["chars"] > 1_000_000 for piece in pieces) and [piece["placeholder"] for piece in pieces] == [False, True]


def test_gophers_rules_see_the_text_before_edits(tmp_path):
    text = "- a list\n- of three\n- short lines\nThis line is a sentence that is long enough to stay here."
    data = files_data(write_jsonl(tmp_path / "a.jsonl", [text, *prose(5)]), edits=Edits(min_line_words=5, emails=True))
    measure_corpus(data, tmp_path / "m", "key", silent)
    row = Measured(tmp_path / "m").rows(np.array([0]), "text", "bullet_lines", "short_lines", "removed_words")[0]
    assert row["text"] == text.split("\n")[-1]
    assert row["bullet_lines"] == 0.75 and row["short_lines"] == 0                # Gopher before, FineWeb after
    assert row["removed_words"] == pytest.approx(9 / 20, abs=0.03)
    manifest = json.loads((tmp_path / "m/manifest.json").read_text())
    assert [(edit["edit"], edit["items"]) for edit in manifest["edits"]] == [
        ("min_line_words", 3 + 5), ("blank", 5)]                                  # the titles of prose(), and a blank line each


def test_held_out_files_without_text(tmp_path):
    empty = write_jsonl(tmp_path / "held.jsonl", ["", "menu"])
    data = files_data(write_jsonl(tmp_path / "a.jsonl", prose(5)), validation_files=[str(empty)], edits=Edits(min_line_words=3))
    with pytest.raises(DataError, match=r"data\.validation_files hold no text \(after data\.edits"):
        measure_corpus(data, tmp_path / "m", "key", silent)
    assert not (tmp_path / "m/manifest.json").exists()


def test_decontamination(tmp_path):
    item = "the quick brown fox jumps over the lazy dog while seven wizards quietly brew a potion"
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/test.jsonl").write_text(json.dumps({"question": item, "label": 1}) + "\n")
    texts = prose(60)
    texts[7] += f" And {item.upper()}, he said."
    data = files_data(write_jsonl(tmp_path / "a.jsonl", texts), decontaminate=[str(tmp_path / "bench")])
    out = prepare(data, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    dropped = {row["rule"]: row.get("dropped_documents") for row in manifest["funnel"]}
    assert dropped["max_contaminated_ngrams"] == 1
    record = [json.loads(line) for line in (out / "contamination.jsonl").read_text().splitlines()]
    assert len(record) == 1 and record[0]["set"] == str(tmp_path / "bench") and record[0]["origin"].endswith(":8")
    assert record[0]["ngram"].lower() in item
    assert manifest["evaluation_sets"][0]["items"] == 1


def test_empty_parts_have_the_columns_of_full_ones(tmp_path):
    texts = ["", "", "", *prose(3)]
    data = files_data(write_jsonl(tmp_path / "a.jsonl", texts), part_bytes=1)
    measure_corpus(data, tmp_path / "m", "key", silent)
    schemas = {pq.read_schema(path).remove_metadata() for path in (tmp_path / "m").glob("part-*.parquet")}
    assert len(schemas) == 1 and len(Measured(tmp_path / "m")) == 3
