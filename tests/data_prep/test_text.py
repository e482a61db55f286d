"""The text stage: the account adds up, the split never moves, bad corpora end in one line."""

import json
import random

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cram.schema import Data
from data_prep.dedup import document_keys
from data_prep.errors import DataError
from data_prep.normalise import normalise
from data_prep.text import read_part, read_split
from tests.data_prep.corpus import ODD_TEXTS, files_data, prepare, prose, silent, write_jsonl

NO_FILTERS = {"min_chars": None, "max_chars": None, "min_alpha_fraction": None, "max_word_length": None,
              "max_repeated_line_fraction": None, "placeholder_text": False}


def run(folder, texts, **changes):
    """(train texts, validation texts, manifest) of a corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "out"
    prepare(files_data(write_jsonl(folder / "a.jsonl", texts), **changes), out)
    splits = [[text for batch in read_split(out, split) for text in batch.column("text").to_pylist()]
              for split in ("train", "validation")]
    return *splits, json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def size(texts):
    return sum(len(text.encode()) for text in texts)


def test_everything_is_accounted_for(tmp_path):
    good = prose(200) + [normalise(text) for text in ODD_TEXTS]
    bad = ["", "\x00 \n", "short", "7 " * 400, "w" * 2000, "the same line\n" * 30, "lorem ipsum " + good[0]]
    copies = [good[3].upper(), good[4].replace(" ", "\n  ")]
    train, validation, manifest = run(tmp_path, [*good, *bad, *copies, good[5] + "\r\n\x07"])
    assert sorted(train + validation) == sorted(good)
    assert {row["rule"]: row.get("dropped_documents") for row in manifest["funnel"]} == {
        "read": None, "normalise": 0, "edits": 0, "empty": 2, "min_chars": 1, "max_chars": 0, "min_alpha_fraction": 1,
        "max_word_length": 1, "max_repeated_line_fraction": 1, "placeholder_text": 1, "exact_dedup": 3,
        "near_dedup": 0, "validation_surplus": 0, "kept": None}
    first, *between, last = manifest["funnel"]
    assert first["documents"] == len(good) + len(bad) + len(copies) + 1
    assert first["bytes"] == size([*good, *bad, *copies, good[5] + "\r\n\x07"])
    assert last == {"rule": "kept", "documents": len(good), "bytes": size(good)}
    assert first["documents"] - sum(row["dropped_documents"] for row in between) == last["documents"]
    assert first["bytes"] - sum(row["dropped_bytes"] for row in between) == last["bytes"]
    assert manifest["splits"] == {"train": {"documents": len(train), "bytes": size(train)},
                                  "validation": {"documents": len(validation), "bytes": size(validation)}}
    assert manifest["samples"]["placeholder_text"] == [bad[-1][:300]] and manifest["samples"]["min_chars"] == ["short"]
    assert manifest["source"]["files"] == [{"file": str(tmp_path / "a.jsonl"), "bytes": (tmp_path / "a.jsonl").stat().st_size}]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=30),
       dedup=st.booleans(), min_chars=st.integers(0, 8), max_bytes=st.integers(1, 400), seed=st.integers(0, 99))
def test_documents_in_are_kept_or_dropped(tmp_path_factory, texts, dedup, min_chars, max_bytes, seed):
    texts = [*texts, *random.Random(seed).choices(texts, k=5)] if texts else texts
    folder = tmp_path_factory.mktemp("run")
    keys = {"exact_dedup": dedup, "near_dedup": {"mode": "off"}, "part_bytes": 100, "validation_fraction": 0.5,
            "validation_max_bytes": max_bytes,
            "filters": {**NO_FILTERS, "min_chars": min_chars}}
    try:
        train, validation, manifest = run(folder, texts, **keys)
    except DataError:           # a split came out empty: nothing may be there that looks finished
        assert not (folder / "out" / "manifest.json").exists()
        return
    rows = {row["rule"]: row for row in manifest["funnel"]}
    assert rows["read"]["documents"] == len(texts) and rows["read"]["bytes"] == size(texts)
    assert rows["kept"]["documents"] == len(train) + len(validation) and rows["kept"]["bytes"] == size(train + validation)
    assert size(validation) <= max_bytes
    wanted = [text for text in map(normalise, texts) if text and len(text) >= min_chars]
    keys_of = [key.tobytes() for key in document_keys(wanted)]
    unique = dict(reversed(list(zip(keys_of, wanted)))).values() if dedup else wanted
    assert rows["validation_surplus"]["dropped_documents"] == len(unique) - len(train) - len(validation)
    assert not set(train) & set(validation)


def test_split_stays_when_order_filters_and_sources_change(tmp_path):
    texts = prose(300)
    train, validation, _ = run(tmp_path / "a", texts)
    shuffled = random.Random(1).sample(texts, len(texts))
    again = run(tmp_path / "b", shuffled)
    assert again[1] == validation and sorted(again[0]) == sorted(train)      # validation is in order of its hashes
    stricter = run(tmp_path / "c", texts, filters={"min_chars": 900})
    assert set(stricter[0]) < set(train) and set(stricter[1]) < set(validation)
    more = run(tmp_path / "d", prose(500, seed=7) + texts)
    assert set(train) < set(more[0]) and set(validation) < set(more[1])
    larger = run(tmp_path / "e", texts, validation_fraction=0.3)
    assert set(validation) < set(larger[1])


def test_surplus_of_validation_is_not_trained_on(tmp_path):
    texts = prose(300)
    train, validation, _ = run(tmp_path / "a", texts, validation_fraction=0.5)
    fewer = run(tmp_path / "b", texts, validation_fraction=0.5, validation_max_bytes=20_000)
    assert fewer[0] == train
    assert fewer[1] == validation[:len(fewer[1])] and 15_000 < size(fewer[1]) <= 20_000
    surplus = next(row for row in fewer[2]["funnel"] if row["rule"] == "validation_surplus")
    assert surplus["dropped_documents"] == len(validation) - len(fewer[1])


def test_same_files_every_time(tmp_path):
    path = write_jsonl(tmp_path / "same.jsonl", prose(50))
    for name in ("a", "b"):
        prepare(files_data(path), tmp_path / name)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert {"part-00000.parquet", "fate-00000.npy", "validation.parquet", "clusters.parquet", "manifest.json"} <= set(names)
    for file in names:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_training_text_lies_in_parts(tmp_path, monkeypatch):
    texts = prose(100)
    whole, _, manifest = run(tmp_path / "a", texts, part_bytes=10**6)
    assert len(manifest["parts"]) == 1
    monkeypatch.setattr("data_prep.sources.batches.BATCH_DOCUMENTS", 7)
    parts, _, manifest = run(tmp_path / "b", texts, part_bytes=5000)
    assert parts == whole and len(manifest["parts"]) > 5
    for number, entry in enumerate(manifest["parts"]):
        batches = list(read_part(tmp_path / "b/out", number, ("text", "origin")))
        assert sum(map(len, batches)) == entry["train_documents"]
        origins = [origin for batch in batches for origin in batch["origin"].to_pylist()]
        assert all(origin.startswith(str(tmp_path / "b/a.jsonl:")) for origin in origins)
        inside = pq.read_table(tmp_path / "b/out" / entry["file"], columns=["text"]).column("text").to_pylist()
        assert size(inside) == entry["bytes"] and size(inside[:-1]) < 5000
        assert size(inside) >= 5000 or number == len(manifest["parts"]) - 1


def test_parts_are_links_not_copies(tmp_path):
    run(tmp_path, prose(20))
    assert (tmp_path / "out/part-00000.parquet").samefile(tmp_path / "out-measured/part-00000.parquet")


def edited(text, number):
    """A near-duplicate: a few words changed."""
    words = text.split(" ")
    words[number % 20 + 5] = f"changed{number}"
    return " ".join(words)


@pytest.mark.parametrize("mode", ["drop", "keep", "off"])
def test_near_duplicates(tmp_path, mode):
    texts = [text for text in prose(400) if len(text) > 900][:120]
    copies = [edited(text, number) for number, text in enumerate(texts[:60])]
    train, validation, manifest = run(tmp_path, texts + copies, validation_fraction=0.4, near_dedup={"mode": mode})
    dropped = next(row for row in manifest["funnel"] if row["rule"] == "near_dedup")["dropped_documents"]
    sides = [(text in validation, copy in validation) for text, copy in zip(texts, copies)]
    if mode == "drop":
        assert dropped >= 57 and set(texts) <= {*train, *validation}       # the first of each cluster stays
    else:
        assert dropped == 0 and len(train) + len(validation) == 180
        assert (sum(left != right for left, right in sides) <= 3) == (mode == "keep")      # off: they fall on both sides
    clusters = pq.read_table(tmp_path / "out/clusters.parquet")
    assert (len(clusters) >= 114) == (mode != "off") and set(clusters["kind"].to_pylist()) <= {"near"}


def test_copies_share_the_fate_of_their_original(tmp_path):
    first = max(prose(50), key=len)
    second = edited(first, 1)
    train, validation, manifest = run(tmp_path, [first, second, second, first, *prose(40, seed=3)], exact_dedup=False)
    kept = [*train, *validation]
    assert kept.count(first) == 2 and kept.count(second) == 0               # near copies of what is kept go, exact ones stay
    assert next(row for row in manifest["funnel"] if row["rule"] == "near_dedup")["dropped_documents"] == 2


def test_verified_pairs_only(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.duplicates.PAIRS_BYTES", 5000)
    texts = [text for text in prose(400) if len(text) > 900][:60]
    copies = [edited(text, number) for number, text in enumerate(texts)]

    def dropped(verify):
        near = {"bands": 100, "rows": 1, "verify": verify}                  # candidates: nearly everything
        *_, manifest = run(tmp_path / str(verify), texts + copies, near_dedup=near)
        return next(row for row in manifest["funnel"] if row["rule"] == "near_dedup")["dropped_documents"]

    assert dropped(0.7) == 60 and dropped(0.999) == 0


def test_held_out_files(tmp_path):
    texts, clean = prose(100), prose(30, seed=5)
    held = write_jsonl(tmp_path / "held.jsonl", [*clean, "short text"])
    near = edited(max(clean, key=len), 3)
    train, validation, manifest = run(tmp_path / "a", [*texts, clean[0], near], validation_files=[str(held)])
    assert sorted(validation) == sorted([*clean, "short text"])             # all of them, not judged
    assert sorted(train) == sorted(texts)                                   # nothing else is held out; copies are dropped
    rows = {row["rule"]: row.get("dropped_documents") for row in manifest["funnel"]}
    assert rows["exact_dedup"] == 1 and rows["near_dedup"] == 1


def test_max_bytes_stops_reading(tmp_path):
    texts = prose(100)
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "b/a.jsonl", texts)
    with open(tmp_path / "b/a.jsonl", "a") as file:
        file.write("\n" * 10)
    *_, manifest = run(tmp_path / "a", texts, max_bytes=30_000)
    read = manifest["funnel"][0]
    assert 30_000 <= read["bytes"] < 30_000 + max(size([text]) for text in texts)
    assert read["bytes"] == size(texts[:read["documents"]])


def test_installed_docs_end_to_end(tmp_path):
    said = []
    data = Data(packages=["json", "logging", "email", "unittest"], validation_fraction=0.1)
    prepare(data, tmp_path / "text", said.append)
    manifest = json.loads((tmp_path / "text/manifest.json").read_text())
    unknown = dict.fromkeys(data.packages)                                  # the standard library has no metadata of its own
    assert manifest["source"] == {"source": "installed-docs", "packages": unknown, "licence": unknown}
    assert manifest["splits"]["train"]["documents"] > 100
    assert len(said) == 2 and all("documents read" in line for line in said)


# ---- bad corpora -----------------------------------------------------------------------------------------------------

def refused(folder, texts, message, **changes):
    with pytest.raises(DataError, match=message) as error:
        run(folder, texts, **changes)
    assert "\n" not in str(error.value)
    assert not (folder / "out/manifest.json").exists()


def test_empty_corpus(tmp_path):
    refused(tmp_path, [], r"the corpus is empty: data\.source=files gave no document; check data\.files")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="the corpus is empty"):
        prepare(files_data(tmp_path / "empty.txt"), tmp_path / "out", silent)


def test_nothing_passes_the_filters(tmp_path):
    refused(tmp_path, ["too short", "tiny", ""],
            r"no document is left of 3 read \(dropped: min_chars 2, empty 1\); relax data\.filters")


def test_one_document_corpus(tmp_path):
    refused(tmp_path, prose(1), r"the (train|validation) split is empty: 1 of 1 documents are kept, and .*"
                                r"add documents \(at least two that differ are needed\), or (lower|raise) data\.validation")


def test_every_document_is_held_out(tmp_path):
    refused(tmp_path, prose(3), "the train split is empty: 3 of 3 .* or lower data.validation_fraction",
            validation_fraction=0.999999)


def test_held_out_text_does_not_fit(tmp_path):
    refused(tmp_path, prose(20), "the validation split is empty: .*validation_surplus .*data.validation_max_bytes=10: raise it",
            validation_max_bytes=10)


def test_everything_resembles_what_is_held_out(tmp_path):
    held = write_jsonl(tmp_path / "held.jsonl", prose(5))
    refused(tmp_path / "a", prose(5), "the train split is empty: .*exact_dedup 5.*what resembles data.validation_files is not",
            validation_files=[str(held)])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 7])
def test_impossible_fraction(tmp_path, fraction):
    refused(tmp_path, prose(5), r"data\.validation_fraction is .*; it must lie between 0 and 1", validation_fraction=fraction)


def test_reading_an_unfinished_or_damaged_artifact(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json: missing, so .* holds no finished prepared text; run that stage"):
        list(read_split(tmp_path, "train"))
    run(tmp_path, prose(50))
    out = tmp_path / "out"
    content = (out / "part-00000.parquet").read_bytes()
    (out / "part-00000.parquet").unlink()
    (out / "part-00000.parquet").write_bytes(content[:-50])
    with pytest.raises(DataError, match=r"part-00000\.parquet: it or its fate file cannot be read .*; run: cram text --force"):
        list(read_split(out, "train"))
    (out / "part-00000.parquet").write_bytes(content)
    np.save(out / "fate-00000.npy", np.load(out / "fate-00000.npy")[:-1])
    with pytest.raises(DataError, match=r"part-00000\.parquet: has \d+ documents, not the \d+ that were judged"):
        list(read_split(out, "train"))
    np.save(out / "fate-00000.npy", np.full(50, 2, np.uint8))
    with pytest.raises(DataError, match=r"the train split has 0 documents, its manifest says \d+; run the text stage again"):
        list(read_split(out, "train"))
    (out / "manifest.json").write_text('{"version": 1, "spl')
    with pytest.raises(DataError, match="no readable JSON"):
        list(read_split(out, "train"))
    (out / "manifest.json").write_text('{"version": 1, "step": 3}')
    with pytest.raises(DataError, match="not the manifest of a prepared text"):
        list(read_split(out, "train"))
