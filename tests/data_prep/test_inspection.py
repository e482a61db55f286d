"""What the inspection says about a text folder is what lies in it."""

import copy
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, strategies as st

from data_prep import inspection_groups
from data_prep.cluster_examples import compare
from data_prep.errors import DataError
from data_prep.histograms import GROUPS, spread
from data_prep.inspection import SAMPLE_CHARS, inspect_text
from data_prep.inspection_groups import package_of, place_of
from data_prep.pack import pack
from data_prep.shards import Shards
from data_prep.tokenizer import load_tokenizer
from tests.data_prep.corpus import silent
from tests.data_prep.decided import DENSE, FATES, LATE, THRESHOLD, documents, packed_fate, write_data_dir, write_text_dir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("decided")
    write_text_dir(root / "text")
    write_data_dir(root / "data", root / "text")
    return root


@pytest.fixture(scope="module")
def found(folder):
    return inspect_text(folder / "text", data_dir=folder / "data")


def count(fate):
    return sum(packed_fate(text, first) == fate for text, _, first in documents())


def test_the_funnel_goes_down_to_what_is_kept_and_counts_tokens_where_they_were_packed(found):
    steps = {step["step"]: step for step in found["funnel"]}
    assert list(steps)[:5] == ["read", "normalise", "edit: emails", "edits, other", "empty"]
    assert steps["edit: emails"]["dropped_bytes"] == 60 and steps["edits, other"]["dropped_bytes"] == 10
    assert steps["min_chars"]["dropped_documents"] == count("min_chars") == 12
    assert steps["max_tokens_per_char"]["documents"] == steps["kept"]["documents"] == count("train") + count("validation")
    assert steps["max_tokens_per_char"]["dropped_documents"] == count(LATE) == 2
    before = None
    for step in found["funnel"]:
        if before:
            assert step["bytes"] == before["bytes"] - step["dropped_bytes"]
            assert step["documents"] == before["documents"] - step["dropped_documents"]
        before = step
    assert [step["exact"] for step in found["funnel"]] == [False] * (len(steps) - 1) + [True]
    assert abs(found["tokens"]["bytes_per_token"] - 4) < 0.01
    assert abs(steps["read"]["tokens"] - steps["read"]["bytes"] / 4) < 5


def test_a_funnel_that_does_not_add_up_is_noticed(folder, tmp_path):
    text = write_text_dir(tmp_path / "text")
    manifest = json.loads((text / "manifest.json").read_text())
    manifest["funnel"][4]["dropped_documents"] += 1
    (text / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AssertionError, match="adds up"):
        inspect_text(text)


def test_without_packed_data_tokens_are_unknown_and_with_a_tokenizer_estimated(stages):
    plain = inspect_text(stages.text)
    assert plain["tokens"] == {"bytes_per_token": None, "how": "unknown"}
    assert all(step["tokens"] is None for step in plain["funnel"])
    guessed = inspect_text(stages.text, stages.tokenizer["bpe"])["tokens"]
    packed = inspect_text(stages.text, stages.tokenizer["bpe"], stages.packed["bpe"])["tokens"]
    assert (guessed["how"], packed["how"]) == ("held-out text", "packed")
    assert abs(guessed["bytes_per_token"] / packed["bytes_per_token"] - 1) < 0.1


def test_histograms_hold_every_document_once_on_its_side(found):
    for row in found["statistics"]:
        assert sum(row["kept"]) == count("train") + count("validation")
        judged = count("train") + count("validation") + count(LATE)
        assert sum(sum(row[name]) for name in GROUPS) == (judged if row["name"] == "tokens_per_char" else len(documents()))
        assert {len(row[name]) for name in GROUPS} == {len(row["edges"]) - 1}
    chars = next(row for row in found["statistics"] if row["name"] == "chars")
    lengths = np.array([len(text) for text, *_ in documents()])
    assert chars["quantiles"]["median"] == np.median(lengths) and chars["quantiles"]["max"] == lengths.max()
    assert sum(chars["dropped_here"]) == count("min_chars")
    assert not {row["name"] for row in found["statistics"]} & {"key_high", "key_low", "band_00", "text", "origin", "language"}


def test_rules_say_what_lies_beyond_their_threshold_and_what_they_dropped_first(found):
    rules = {rule["rule"]: rule for rule in found["rules"]}
    assert rules["min_chars"]["beyond"] == sum(len(text) < 200 for text, *_ in documents()) > count("min_chars")
    assert rules["min_chars"]["dropped"] == count("min_chars")
    assert rules["max_repeated_line_fraction"]["beyond"] == rules["max_repeated_line_fraction"]["dropped"] == 3


def test_the_rule_that_packing_applies_is_shown_like_the_others(found):
    assert found["rules"][-1] == {"rule": LATE, "statistic": "tokens_per_char", "threshold": THRESHOLD, "beyond": 2,
                                  "dropped": 2}
    row = next(row for row in found["statistics"] if row["name"] == "tokens_per_char")
    assert sum(row["dropped_here"]) == 2 and sum(row["dropped_elsewhere"]) == 0 and row["rules"] == [found["rules"][-1]]
    assert row["quantiles"]["min"] == 0.25 and row["edges"][0] <= THRESHOLD <= row["edges"][-1]
    groups = {group["fate"]: group for group in found["samples"]}
    assert sorted(sample["origin"] for sample in groups[LATE]["samples"]) == ["dense.jsonl:1", "dense.jsonl:2"]
    assert groups[LATE]["samples"][0]["values"] == {"tokens_per_char": np.float32(0.9)}
    assert groups["train"]["samples"][0]["values"]["tokens_per_char"] == 0.25
    names = {group["name"]: group for group in found["origins"]}
    assert (names["dense.jsonl"]["documents"], names["dense.jsonl"]["kept_documents"]) == (3, 0)
    assert sum(group["documents"] for group in found["samples"]) == found["documents"]         # every document once


def test_without_that_rule_nothing_is_said_of_it(folder, tmp_path):
    found = inspect_text(folder / "text", data_dir=write_data_dir(tmp_path / "data", folder / "text", rule=False))
    assert LATE not in {group["fate"] for group in found["samples"]} | {rule["rule"] for rule in found["rules"]}
    assert "tokens_per_char" not in {row["name"] for row in found["statistics"]}


def test_documents_of_held_out_files_are_not_judged(folder, tmp_path):
    text, data = shutil.copytree(folder / "text", tmp_path / "text"), shutil.copytree(folder / "data", tmp_path / "data")
    (data / "validation-00000.tokens_per_char.npy").unlink()
    manifest, packed = (json.loads((each / "manifest.json").read_text()) for each in (text, data))
    *_, late, kept = packed["funnel"]
    size = len(DENSE * 31)
    for row in (packed["splits"]["validation"], kept):
        row["documents"], row["bytes"] = row["documents"] + 1, row["bytes"] + size
    late["dropped_documents"], late["dropped_bytes"] = late["dropped_documents"] - 1, late["dropped_bytes"] - size
    (text / "manifest.json").write_text(json.dumps(manifest | {"validation_from_files": True}))
    (data / "manifest.json").write_text(json.dumps(packed))
    found = inspect_text(text, data_dir=data)
    groups = {group["fate"]: group["documents"] for group in found["samples"]}
    assert (groups["validation"], groups[LATE], found["rules"][-1]["dropped"]) == (2, 1, 1)
    assert found["funnel"][-1]["documents"] == groups["train"] + groups["validation"]
    row = next(row for row in found["statistics"] if row["name"] == "tokens_per_char")
    assert sum(row["kept"]) == groups["train"]


def test_the_inspection_of_packed_data_adds_up(stages, tmp_path):
    data, folders = copy.deepcopy(stages.data), (stages.text, stages.tokenizer["bpe"])
    data.filters.max_tokens_per_char = 0.33
    pack(data, None, *folders, tmp_path / "data", silent)
    found = inspect_text(*folders, tmp_path / "data")
    groups = {group["fate"]: group["documents"] for group in found["samples"]}
    splits = {split: Shards(tmp_path / "data", split) for split in ("train", "validation")}
    assert {split: groups[split] for split in splits} == {split: shards.n_documents for split, shards in splits.items()}
    before = json.loads((stages.text / "manifest.json").read_text())["funnel"][-1]["documents"]
    assert before == groups["train"] + groups["validation"] + groups[LATE] and groups[LATE] > 5
    row = next(row for row in found["statistics"] if row["name"] == "tokens_per_char")
    assert sum(row["kept"]) == found["funnel"][-1]["documents"] and sum(row["dropped_here"]) == groups[LATE]
    for sample in next(group for group in found["samples"] if group["fate"] == LATE)["samples"]:
        assert sample["values"]["tokens_per_char"] > 0.33
        tokens = len(load_tokenizer(folders[1]).encode(sample["text"], add_special_tokens=False).ids)
        whole = len(sample["text"]) == sample["chars"]
        assert not whole or np.float32(tokens / sample["chars"]) == sample["values"]["tokens_per_char"]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60), st.lists(st.floats(-100, 100, width=32), max_size=2),
       st.sampled_from([np.float32, np.int32]))
def test_any_values_fit_their_bins(values, thresholds, dtype):
    values = np.array(values, np.float32).astype(dtype)
    groups = np.arange(len(values)) % 3
    row = spread(values, groups, thresholds)
    assert np.all(np.diff(row["edges"]) > 0) and len(row["edges"]) <= 42
    assert [sum(row[name]) for name in GROUPS] == [int(np.sum(groups == code)) for code in range(3)]
    assert row["edges"][0] <= values.min() or row["log"] and values.min() == 0
    assert values.max() <= row["edges"][-1] * (1 + 1e-9) or row["edges"][-1] <= 0


def test_values_that_are_no_numbers_are_left_out():
    row = spread(np.array([np.nan, 1.0, 2.0]), np.zeros(3, np.uint8), [])
    assert sum(row["kept"]) == 2
    assert spread(np.array([np.nan]), np.zeros(1, np.uint8), []) == {}


def test_samples_are_of_their_fate_seeded_and_short(folder, found):
    fate_of = {(text[:SAMPLE_CHARS], origin): packed_fate(text, fate) for text, origin, fate in documents()}
    groups = {group["fate"]: group for group in found["samples"]}
    assert list(groups) == [*FATES, LATE]
    for name in groups:
        samples = groups[name]["samples"]
        assert groups[name]["documents"] == count(name) and len(samples) == min(5, count(name))
        assert all(fate_of[sample["text"], sample["origin"]] == name for sample in samples)
    assert groups["min_chars"]["samples"][0]["values"]["chars"] in (7, 8)
    assert groups["exact_dedup"]["samples"][0]["values"] == {"copy of": documents()[3][1]}
    assert groups["max_contaminated_ngrams"]["samples"][0]["values"]["contaminated_by"] == "novels"
    again = inspect_text(folder / "text", data_dir=folder / "data")
    other = inspect_text(folder / "text", data_dir=folder / "data", seed=1)
    assert again == found and other["samples"] != found["samples"]


def test_clusters_show_how_copies_differ(found):
    clusters = found["clusters"]
    assert (clusters["clusters"], clusters["documents"], clusters["exact_dedup"], clusters["near_dedup"]) == (2, 7, 1, 4)
    assert sum(clusters["sizes"].values()) == 2 and clusters["sizes"]["5 to 9"] == 1
    largest, exact = clusters["examples"]
    assert largest["size"] == 5 and largest["first"]["fate"] == "train" and len(largest["copies"]) == 3
    assert any(mark == "+" and "changed" in words for mark, words in largest["copies"][0]["pieces"])
    assert exact["copies"][0]["fate"] == "exact_dedup" and exact["copies"][0]["common"] == 1


@given(st.lists(st.sampled_from("abcde"), max_size=70), st.lists(st.sampled_from("abcde"), max_size=70))
def test_pieces_of_a_comparison_join_to_both_texts(left, right):
    compared = compare(" ".join(left), "  ".join(right))
    pieces = [piece for piece in compared["pieces"] if piece != ["=", "..."]]
    for words, hidden in ((left, "+"), (right, "-")):
        joined = " ".join(text for mark, text in pieces if mark != hidden).split()
        assert joined == words[len(words) - len(joined):] and (len(joined) == len(words) or left[:len(words) - len(joined)])
    assert 0 <= compared["common"] <= 1 and (compared["common"] == 1) == (sorted(left) == sorted(right))


def test_origins_and_languages_add_up(found):
    for groups in (found["origins"], found["languages"]):
        assert sum(group["documents"] for group in groups) == len(documents())
        assert sum(group["bytes"] for group in groups) == sum(len(text.encode()) for text, *_ in documents())
        assert sum(group["kept_documents"] for group in groups) == count("train") + count("validation")
    names = {group["name"]: group for group in found["origins"]}
    assert names["texts/short.txt"]["documents"] == 12 and names["texts/short.txt"]["kept_documents"] == 0
    assert names["news.example.org"]["documents"] == 40
    assert {group["name"]: group["documents"] for group in found["languages"]} == {"en": len(documents()) - 1, "he": 1}


def test_rare_origins_are_added_up_when_there_are_too_many(folder, found, monkeypatch):
    monkeypatch.setattr(inspection_groups, "TOP", 3)
    monkeypatch.setattr(inspection_groups, "MOST", 4)
    largest, held = inspection_groups._largest, []
    monkeypatch.setattr(inspection_groups, "_largest", lambda groups, limit: held.append(limit) or largest(groups, limit))
    groups = inspect_text(folder / "text")["origins"]
    assert 2 in held                                                    # added up on the way, not only at the end
    assert [group["name"] for group in groups] == ["news.example.org", "blog.example.org", "(others)"]
    assert sum(group["documents"] for group in groups) == len(documents())


@pytest.mark.parametrize("origin, name", [
    ("https://User:pw@Example.ORG:80/a?b", "example.org"), ("http://x.de", "x.de"), ("texts/a.jsonl.xz:17", "texts/a.jsonl.xz"),
    ("books/b.txt#3", "books/b.txt"), ("books/b.txt", "books/b.txt"), ("set/train:9", "set/train"), ("", "unknown")])
def test_places(origin, name):
    assert place_of(origin) == name


def test_packages():
    assert package_of("numpy.linalg.solve") == package_of("numpy:12") == package_of("numpy") == "numpy"


def test_evaluation_sets_and_passages(found):
    example = {"origin": "set.jsonl:1", "ngram": "It was the best of times It was the best"}
    assert found["contamination"] == [{"set": "novels", "documents": 1, "examples": [example]}]
    assert found["evaluation_sets"][0]["ngrams"] == 70
    assert found["passages"]["documents"] == count("train")
    assert found["passages"]["passages"][0]["documents"] == 2           # the hostile document quotes the first one


@pytest.mark.parametrize("spoil, says", [
    (lambda text: (text / "fate-00001.npy").unlink(), "fate-00001.npy"),
    (lambda text: np.save(text / "fate-00000.npy", np.zeros(3, np.uint8)), "does not fit"),
    (lambda text: np.save(text / "fate-00000.npy", np.load(text / "fate-00000.npy") + 99), "does not fit"),
    (lambda text: (text / "clusters.parquet").write_bytes(b"PAR1"), "clusters.parquet"),
    (lambda text: (text / "contamination.jsonl").write_text("{\n"), "contamination.jsonl"),
    (lambda text: (text / "part-00000.parquet").write_bytes(b"PAR1" * 9), "part-00000.parquet"),
    (lambda text: (text / "manifest.json").write_text("{}"), "manifest.json")])
def test_damage_is_named(tmp_path, spoil, says):
    text = write_text_dir(tmp_path / "text")
    spoil(text)
    with pytest.raises(DataError, match=says) as error:
        inspect_text(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spoil", [
    lambda data: (data / "train-00001.tokens_per_char.npy").unlink(),
    lambda data: (data / "train-00001.tokens_per_char.npy").write_bytes(b""),
    lambda data: np.save(data / "train-00001.tokens_per_char.npy", np.zeros(3, np.float32))])
def test_damaged_numbers_of_packing_are_named(folder, tmp_path, spoil):
    data = shutil.copytree(folder / "data", tmp_path / "data")
    spoil(data)
    with pytest.raises(DataError, match=r"train-00001\.tokens_per_char\.npy: .*; run: cram data --force"):
        inspect_text(folder / "text", data_dir=data)


def test_data_packed_from_other_text_is_refused(folder, tmp_path):
    other = write_text_dir(tmp_path / "text", documents()[:-3])
    with pytest.raises(DataError, match="packed from other text"):
        inspect_text(other, data_dir=folder / "data")
