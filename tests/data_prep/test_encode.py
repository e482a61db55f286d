"""The fast encoder against the library: the same ids, document by document, whatever the text."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from cram.schema import Tokenizer
from data_prep import chunk_memo, encode
from data_prep.blocks import Block
from data_prep.encode import Encoder, bpe_chunks, wordpiece_chunks
from data_prep.vocabulary import WORDS, train_vocabulary
from tests.data_prep.corpus import ODD_TEXTS, prose

KINDS = ("bpe", "wordpiece", "unigram")
MEMO_KINDS = ("bpe", "wordpiece")
SPACES = "\t\n\x0b\x0c\r\x1c\x1f \x85\xa0\u1680\u180e\u2000\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
SYMBOLS = "aZ'sl09.,-_(\"\x00\x7f" + SPACES + "éßжΣ\u0301\u0345\u0903\u20dd٣Ⅷ½中の한“”—…€\u200d\U0001f600\U0001d165"
TEXT = st.text(st.one_of(
    st.sampled_from(SYMBOLS), st.sampled_from("ab '\n  1."), st.characters(exclude_categories=["Cs"])))


@functools.lru_cache(maxsize=None)
def tokenizer(kind):
    texts = [*prose(60), *ODD_TEXTS, SYMBOLS * 3, "it's we'll I'd 2024 10,000.00 x1y2 the THE The\n    return x\n" * 50]
    trained = train_vocabulary(Tokenizer(type=kind, vocab_size=700 if kind == "bpe" else 1200), [texts])
    trained.encode_special_tokens = True
    return trained


@functools.lru_cache(maxsize=None)
def shared(kind):
    """One encoder for all examples, so that its memo is warm and grows."""
    return Encoder(tokenizer(kind), kind)


def expected(kind, texts):
    return [one.ids for one in tokenizer(kind).encode_batch_fast(texts, add_special_tokens=False)]


def check(encoder, kind, texts):
    ids, counts = encoder.encode(texts)
    assert ids.dtype == np.uint16 and counts.dtype == np.int64 and len(counts) == len(texts) and counts.sum() == len(ids)
    assert [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])][:len(texts)] == expected(kind, texts)


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXT, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_same_ids_for_any_text(kind, texts):
    check(shared(kind), kind, texts)


@pytest.mark.parametrize("kind", MEMO_KINDS)
def test_same_ids_for_every_short_text(kind):
    """Every neighbourhood of the characters that the rules tell apart."""
    texts = ["".join(chars) for chars in itertools.product("a'1. \n\t\x00\xa0é\u2003“", repeat=4)]
    check(Encoder(tokenizer(kind), kind), kind, texts)


@pytest.mark.parametrize("codes", [range(0x3100), pytest.param(range(0x3100, 0x30000), marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", MEMO_KINDS)
def test_same_ids_beside_every_character(kind, codes):
    """Each character after a letter, before a space, and at the start of an indented line."""
    chars = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    texts = ["".join(f"a{char} b\n {char}a 1" for char in chars[begin:begin + 256]) for begin in range(0, len(chars), 256)]
    check(Encoder(tokenizer(kind), kind), kind, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_same_ids_for_documents(kind):
    texts = [*prose(200, seed=1), *ODD_TEXTS, "", "", "\n", " ", "[MASK] in [CLS]text[SEP]", "x" * 5000, "word " * 3000, ""]
    encoder = Encoder(tokenizer(kind), kind)
    for _ in range(2):
        check(encoder, kind, texts)
    assert [part.tolist() for part in encoder.encode([])] == [[], []]
    check(encoder, kind, ["", ""])


def unsafe_cuts():
    """Texts of four characters whose chunks, split by the pattern one by one, are not the pieces of the whole."""
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")

    @functools.lru_cache(maxsize=None)
    def pieces(text):
        return [piece for piece, _ in split.pre_tokenize_str(text)]

    texts = ["".join(chars) for chars in itertools.product("as'1. \n\t\xa0é", repeat=4)]
    block = Block(texts)
    starts, ends = bpe_chunks(np.append(block.text, chunk_memo.PADDING), block.ends)
    first, raw = np.searchsorted(starts, np.append(block.starts, len(block.text))), block.text.tobytes()
    return [text for text, low, high in zip(texts, first, first[1:]) if pieces(text) != [
        piece for start, end in zip(starts[low:high], ends[low:high]) for piece in pieces(raw[start:end].decode())]]


def test_cuts_are_where_the_pattern_cuts():
    assert unsafe_cuts() == []


@pytest.mark.parametrize("pair", ["'s", ".\n", "11", "aa", " a", ".a", "..", "\t "])
def test_a_wrong_rule_would_be_seen(monkeypatch, pair):
    wrong = encode.safe_pairs().copy()
    wrong[256 * ord(pair[0]) + ord(pair[1])] = True
    monkeypatch.setattr(encode, "safe_pairs", lambda: wrong)
    assert unsafe_cuts()


def test_wrong_cuts_give_wrong_ids(monkeypatch):
    """So the tests above compare what they mean to compare."""
    wrong = encode.safe_pairs().copy()
    wrong[256 * ord("'") + ord("s")] = True
    monkeypatch.setattr(encode, "safe_pairs", lambda: wrong)
    with pytest.raises(AssertionError):
        check(Encoder(tokenizer("bpe"), "bpe"), "bpe", ["it's"])


@pytest.mark.parametrize("kind", MEMO_KINDS)
def test_chunks_that_share_one_hash(kind, monkeypatch):
    monkeypatch.setattr(chunk_memo, "slot_hash", lambda first, second: np.full(len(first), 2**64 - 1, np.uint64))
    encoder = Encoder(tokenizer(kind), kind)
    for seed in (0, 1, 0):
        check(encoder, kind, [*prose(5, seed), *ODD_TEXTS])


@pytest.mark.parametrize("limits", [{"max_chunks": 40}, {"max_ids": 60}, {"max_chunks": 1}, {"max_chunks": 700}])
@pytest.mark.parametrize("kind", MEMO_KINDS)
def test_a_full_memo_is_started_anew(kind, limits, monkeypatch):
    monkeypatch.setattr("data_prep.blocks.BLOCK_BYTES", 300)
    encoder = Encoder(tokenizer(kind), kind, **limits)
    for seed in range(3):
        check(encoder, kind, [*prose(20, seed), *ODD_TEXTS])


def test_the_memo_saves_work(monkeypatch):
    encoder = Encoder(tokenizer("bpe"), "bpe")
    texts = prose(100, seed=5)
    encoder.encode(texts)
    monkeypatch.setattr(encoder._memo, "_encode", lambda chunks: pytest.fail(f"encoded again: {chunks[:3]}"))
    encoder.encode(texts)


def test_keys_tell_chunks_apart():
    """Equal keys only for equal bytes, up to 16 of them; nothing beyond a chunk's end matters."""
    rng = np.random.default_rng(0)
    text = np.concatenate([rng.integers(0, 2, 400).astype(np.uint8), chunk_memo.PADDING])
    starts = rng.integers(0, 380, 4000)
    ends = starts + rng.integers(1, 17, 4000)
    keys = list(zip(*(part.tolist() for part in chunk_memo.load_keys(text, starts, ends))))
    contents = [text[start:end].tobytes() for start, end in zip(starts, ends)]
    assert len(set(keys)) == len(set(contents)) == len(set(zip(keys, contents)))


@pytest.mark.parametrize("find", [bpe_chunks, wordpiece_chunks])
@given(texts=st.lists(TEXT, min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_chunks_stay_within_documents(find, texts):
    block = Block(texts)
    starts, ends = find(np.append(block.text, chunk_memo.PADDING), block.ends)
    assert (starts < ends).all() and (ends[:-1] <= starts[1:]).all()
    covered = np.zeros(len(block.text), bool)
    for start, end in zip(starts, ends):
        covered[start:end] = True
    left = bytes(block.text[~covered])
    assert left == b"\n" * len(texts) if find is bpe_chunks else not left.strip(b" \t\n\r")
    assert not covered[block.ends].any()


def test_a_tokenizer_that_reads_special_tokens_is_refused():
    plain = tokenizer("bpe").from_str(tokenizer("bpe").to_str())
    with pytest.raises(ValueError, match="encode_special_tokens = True"):
        Encoder(plain, "bpe")


@pytest.mark.parametrize("kind", MEMO_KINDS)
def test_a_tokenizer_that_cuts_otherwise_is_refused(kind):
    foreign = tokenizer(kind).from_str(tokenizer(kind).to_str())
    foreign.encode_special_tokens = True
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel()
    with pytest.raises(ValueError, match=f"does not cut text as {kind}"):
        Encoder(foreign, kind)
    Encoder(foreign, "unigram").encode(["left to the library"])


def test_large_vocabularies_use_four_bytes():
    class Large:
        encode_special_tokens = True
        to_str = tokenizer("bpe").to_str

        def get_vocab_size(self):
            return 70_000

        def encode_batch_fast(self, texts, add_special_tokens):
            return [type("Encoding", (), {"ids": [65_536 + len(text)]}) for text in texts]

    ids, counts = Encoder(Large(), "bpe").encode(["one two", "three"])
    assert ids.dtype == np.uint32 and ids.tolist() == [65_539, 65_540, 65_541] and counts.tolist() == [2, 1]
