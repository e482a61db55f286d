"""Vocabularies: lossless where promised, the same in every process, refused with a remedy."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.schema import Tokenizer
from data_prep.errors import DataError
from data_prep.normalise import normalise
from data_prep.text import read_split
from data_prep.tokenizer import MAX_DOCUMENT, load_tokenizer, train_tokenizer
from data_prep.vocabulary import SPECIAL_IDS, SPECIAL_TOKENS, train_vocabulary
from data_prep.wordpiece import MAX_ALPHABET, alphabet_of, count_codes
from tests.data_prep.corpus import ODD_TEXTS, files_data, prepare, prose, silent, write_jsonl

KINDS = ("bpe", "wordpiece", "unigram")


@pytest.fixture(scope="module")
def trained(stages, tmp_path_factory):
    """{kind: folder}: each kind, trained on the corpus of the stages."""
    folder = tmp_path_factory.mktemp("tokenizers")
    train_tokenizer(Tokenizer(type="unigram", vocab_size=640, sample_bytes=40_000_000), stages.text, folder / "unigram", silent)
    return {**stages.tokenizer, "unigram": folder / "unigram"}


@pytest.fixture(scope="module")
def bpe(stages):
    return load_tokenizer(stages.tokenizer["bpe"])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_fixed_ids(trained, kind):
    tokenizer = load_tokenizer(trained[kind])
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert SPECIAL_IDS == {token.strip("[]").lower(): index for index, token in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.get_vocab_size() == 640 and sorted(tokenizer.get_vocab().values()) == list(range(640))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=300, deadline=None)
def test_bpe_is_lossless_and_never_unknown(bpe, text):
    ids = bpe.encode(text, add_special_tokens=False).ids
    assert bpe.decode(ids, skip_special_tokens=False) == text
    assert all(token > 4 for token in ids)


@pytest.mark.parametrize("text", [*ODD_TEXTS, "nul \x00 inside", " leading and trailing \n\n", "\r\n \t", "", "7" * 1000])
def test_bpe_round_trip_of_odd_text(bpe, text):
    assert bpe.decode(bpe.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    assert "\x00" not in normalise(text)


def test_digits_are_cut_in_pairs(bpe):
    for text in ("123456", "x 2024-12-31", "3.14159"):
        pieces = [bpe.decode([token]) for token in bpe.encode(text, add_special_tokens=False).ids]
        assert max(sum(char.isdigit() for char in piece) for piece in pieces) <= 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["[MASK]", "a [CLS] b[SEP]c", "[PAD][UNK]", "The [MASK] sat."])
def test_names_of_special_tokens_in_text_are_plain_text(trained, kind, text):
    tokenizer = load_tokenizer(trained[kind])
    one = tokenizer.encode(text, add_special_tokens=False).ids
    many = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    assert one == many and not set(one) & {0, 2, 3, 4}
    if kind == "bpe":
        assert 1 not in one and tokenizer.decode(one, skip_special_tokens=False) == text


def test_wordpiece_lowers_strips_and_marks(stages):
    tokenizer = load_tokenizer(stages.tokenizer["wordpiece"])
    assert tokenizer.encode("CAFÉ").tokens == tokenizer.encode("cafe").tokens
    assert tokenizer.decode(tokenizer.encode("Story 7, a").ids) == "story 7, a"
    assert tokenizer.encode("\u0416").ids == [1]                   # no Cyrillic in the corpus


def test_unigram_folds_space_and_compatible_characters(trained):
    tokenizer = load_tokenizer(trained["unigram"])
    assert tokenizer.encode("\ufb01ne \n\n day").tokens == tokenizer.encode("fine day").tokens
    assert tokenizer.decode(tokenizer.encode("Story 7, a").ids) == "Story 7, a"
    assert tokenizer.encode("\u0416").ids[-1] == 1                # no Cyrillic in the corpus


def test_unigram_pieces_are_ordered_by_score(trained):
    model = json.loads((trained["unigram"] / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    scores = [score for _, score in model["vocab"][5:]]
    assert scores == sorted(scores, reverse=True) and all(score == round(score, 4) < 0 for score in scores)
    assert model["unk_id"] == 1 and len({piece for piece, _ in model["vocab"]}) == 640


def test_bytes_of_tokens(stages):
    """Oracle: the tokens of a text stand for its bytes."""
    folder = stages.tokenizer["bpe"]
    tokenizer, sizes = load_tokenizer(folder), np.load(folder / "token_bytes.npy")
    assert sizes.dtype == np.int32 and sizes.shape == (640,) and not sizes[:5].any() and sizes[5:].all()
    for text in (*ODD_TEXTS, "[MASK]", ""):
        assert sizes[tokenizer.encode(text, add_special_tokens=False).ids].sum() == len(text.encode())
    assert not (stages.tokenizer["wordpiece"] / "token_bytes.npy").exists()


def test_long_documents_are_cut_for_training(tmp_path, monkeypatch):
    seen = []

    def train(config, sample):
        seen.extend(text for batch in sample for text in batch)
        return train_vocabulary(config, sample)

    monkeypatch.setattr("data_prep.tokenizer.train_vocabulary", train)
    long = " ".join(prose(300, seed=1))
    prepare(files_data(write_jsonl(tmp_path / "a.jsonl", [long, *prose(40)])), tmp_path / "text", silent)
    train_tokenizer(Tokenizer(vocab_size=300), tmp_path / "text", tmp_path / "out", silent)
    assert max(map(len, seen)) == MAX_DOCUMENT and len(long) > 2 * MAX_DOCUMENT and long[:MAX_DOCUMENT] in seen
    texts = [text for batch in read_split(tmp_path / "text", "train") for text in batch.column("text").to_pylist()]
    assert "".join(seen) == "".join(texts)


def test_wordpiece_vocabulary_is_made_of_pieces_of_the_corpus(stages):
    """Oracle: every piece occurs in the normalised words, "##" pieces within a word, others at the start."""
    tokenizer = load_tokenizer(stages.tokenizer["wordpiece"])
    words = {word for batch in read_split(stages.text, "train") for text in batch.column("text").to_pylist()
             for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))}
    characters = {char for word in words for char in word}
    for piece in set(tokenizer.get_vocab()) - set(SPECIAL_TOKENS):
        content = piece.removeprefix("##")
        if len(content) == 1:
            assert content in characters
        elif piece.startswith("##"):
            assert any(content in word[1:] for word in words), piece
        else:
            assert any(word.startswith(piece) for word in words), piece


def test_alphabet_is_counted_after_normalisation():
    class Lower:
        def normalize_str(self, text):
            return text.lower()

    counts = count_codes([["Ab a"], [], ["B\U0001f600"]])
    assert counts.sum() == 6 and counts[ord("a")] == 1 and counts[0x1F600] == 1
    assert alphabet_of(counts, Lower()) == ["a", "b", "\U0001f600"]
    many = count_codes([["".join(map(chr, range(0x4E00, 0x4E00 + 1500))), chr(0x4E00 + 1400)]])
    assert alphabet_of(many, Lower()) == sorted([*map(chr, range(0x4E00, 0x4E00 + MAX_ALPHABET - 1)), chr(0x4E00 + 1400)])


PROGRAM = """
import sys
from pathlib import Path
from cram.schema import Tokenizer
from data_prep.tokenizer import train_tokenizer
text, out = map(Path, sys.argv[1:])
for kind in ("bpe", "wordpiece", "unigram"):
    train_tokenizer(Tokenizer(type=kind, vocab_size=640), text, out / kind, lambda message: None)
"""


@pytest.mark.parametrize("processes", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_same_files_in_every_process(stages, trained, tmp_path, root, processes):
    """Hash seeds differ, and so do the seeds of the trainers' own hash maps."""
    runs = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(stages.text), str(tmp_path / str(seed))], cwd=root,
                             env={**os.environ, "PYTHONHASHSEED": str(seed), "RAYON_NUM_THREADS": str(1 + seed % 2)})
            for seed in range(processes)]
    assert [run.wait() for run in runs] == [0] * len(runs)
    for kind in ("bpe", "wordpiece"):
        expected = (trained[kind] / "tokenizer.json").read_bytes()
        for seed in range(len(runs)):
            assert (tmp_path / str(seed) / kind / "tokenizer.json").read_bytes() == expected, (kind, seed)
    expected = scores(trained["unigram"])
    for seed in range(len(runs)):           # but for ties: unigram.py
        found = scores(tmp_path / str(seed) / "unigram")
        differ = [piece for piece, score in found.items() if score != expected[piece]]
        assert found.keys() == expected.keys() and len(differ) <= 2 and all(len(piece) == 1 for piece in differ), (seed, differ)


def scores(folder):
    return dict(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])


def test_sample_is_a_fixed_part(stages, tmp_path):
    def train(sample_bytes, name):
        train_tokenizer(Tokenizer(vocab_size=400, sample_bytes=sample_bytes), stages.text, tmp_path / name, silent)
        return json.loads((tmp_path / name / "manifest.json").read_text())

    whole, half = train(10**9, "whole"), train(100_000, "half")
    assert whole["trained_documents"] == json.loads((stages.text / "manifest.json").read_text())["splits"]["train"]["documents"]
    assert 60_000 < half["trained_bytes"] < 140_000 < whole["trained_bytes"]
    assert train(100_000, "again") == half
    assert half["vocab_size"] == 400 and half["lossless"] and half["special"] == SPECIAL_IDS


# ---- refusals --------------------------------------------------------------------------------------------------------

def refused(stages, out, message, **keys):
    with pytest.raises(DataError, match=message) as error:
        train_tokenizer(Tokenizer(**keys), stages.text, out, silent)
    assert "\n" not in str(error.value) and not out.exists()
    return str(error.value)


def test_sample_that_could_overflow_the_counts(stages, tmp_path):
    refused(stages, tmp_path / "out", r"tokenizer\.sample_bytes is 10,000,000,001; pairs are counted in 32 bits",
            sample_bytes=10**10 + 1)


def test_unigram_says_what_it_trains_on(stages, tmp_path):
    said = []
    config = Tokenizer(type="unigram", vocab_size=640, sample_bytes=60_000_000)
    train_tokenizer(config, stages.text, tmp_path / "out", said.append)
    assert said[0].startswith("tokenizer: unigram trains on 50 MB at most, not tokenizer.sample_bytes=60000000")


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_larger_than_the_corpus_allows(stages, tmp_path, kind):
    message = refused(stages, tmp_path / "out",
                      r"tokenizer\.vocab_size=60000 is more than this corpus allows: \d+ tokens were reached on [\d,]+ bytes "
                      r".*; set tokenizer\.vocab_size=\d+, or add text", type=kind, vocab_size=60_000)
    remedy = int(message.split("set tokenizer.vocab_size=")[1].split(",")[0])
    train_tokenizer(Tokenizer(type=kind, vocab_size=remedy), stages.text, tmp_path / "remedy", silent)


def test_vocabulary_below_the_alphabet(stages, tmp_path):
    refused(stages, tmp_path / "out", r"tokenizer\.vocab_size is 261; bpe needs more than 261", vocab_size=261)
    refused(stages, tmp_path / "out", r"tokenizer\.vocab_size is 50; wordpiece needs more than \d+ for the \d+ characters",
            type="wordpiece", vocab_size=50)
    refused(stages, tmp_path / "out", r"tokenizer\.vocab_size is 3; wordpiece needs more than 5",
            type="wordpiece", vocab_size=3)
    refused(stages, tmp_path / "out", r"tokenizer\.vocab_size is 20; unigram needs more for the characters of this corpus",
            type="unigram", vocab_size=20)


def test_nothing_to_train_on(stages, tmp_path):
    refused(stages, tmp_path / "out", "reached on 0 bytes .*tokenizer.sample_bytes=1.*; raise tokenizer.sample_bytes or",
            vocab_size=400, sample_bytes=1)


def test_small_corpus_small_vocabulary(tmp_path):
    prepare(files_data(write_jsonl(tmp_path / "a.jsonl", prose(20)), validation_fraction=0.2), tmp_path / "text", silent)
    train_tokenizer(Tokenizer(vocab_size=300), tmp_path / "text", tmp_path / "out", silent)
    assert load_tokenizer(tmp_path / "out").get_vocab_size() == 300


def test_loading_a_foreign_or_damaged_tokenizer(stages, tmp_path):
    with pytest.raises(DataError, match=r"holds no finished tokenizer; run that stage again"):
        load_tokenizer(tmp_path)
    (tmp_path / "manifest.json").write_bytes((stages.tokenizer["bpe"] / "manifest.json").read_bytes())
    with pytest.raises(DataError, match=r"tokenizer\.json: cannot be read \(No such file.*run the tokenizer stage again"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((stages.tokenizer["wordpiece"] / "tokenizer.json").read_bytes())
    with pytest.raises(DataError, match=r"tokenizer\.json: differs from the one its manifest was written for"):
        load_tokenizer(tmp_path)
