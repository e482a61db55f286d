"""Statistics of documents against their plain definitions, one document and one character at a time."""

import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep.bad_words import BadWords
from data_prep.blocks import Block, cut
from data_prep.characters import TERMINAL, classify
from data_prep.errors import DataError
from data_prep.spans import occurrences, repeats, stripped_spans
from data_prep.statistics import measure
from tests.data_prep.corpus import ODD_TEXTS, prose

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
odd_text = st.text(st.sampled_from("aé\u0301e \t\n\u2009\u200d\U0001f600.…-•#1世。?!\"'{"), max_size=40)
lines_text = st.lists(st.sampled_from(["one line", " one line", "two", "", "  ", "lorem IPSUM", "- a bullet", " • b",
                                       "So on...", "the end… ", "Mr. Smith, of the U.S. Said \"so.\" To me", "http://a.b c",
                                       "x" * 30, "x" * 31, "12 #3 ###",
                                       "a a a a a a a a a a a a a a"]), max_size=12).map("\n".join)
words_text = st.lists(st.sampled_from("a b c the be\n to\n".split(" ")), max_size=60).map(" ".join)
documents = st.lists(st.one_of(any_text, odd_text, lines_text, words_text), max_size=8)


def ratio(part, whole):
    return part / whole if whole else 0


def repeated(values):
    """The values that equal an earlier one."""
    return [value for index, value in enumerate(values) if value in values[:index]]


def is_symbol(char):
    return unicodedata.category(char)[0] in "PS"


def characters(text):
    solid = [char for char in text if not char.isspace()]
    alphabetic = [char for char in solid if unicodedata.category(char)[0] in "LM"]
    return {"chars": len(text), "alpha_fraction": ratio(len(alphabetic), len(solid)),
            "replacement_fraction": ratio(text.count("\ufffd"), len(text)),
            "placeholder": "lorem ipsum" in text.lower(), "curly_bracket": "{" in text}


def words(text):
    found = text.split()
    proper = [word for word in found if not all(map(is_symbol, word))]
    return {"longest_word": max(map(len, found), default=0), "words": len(proper),
            "url_words": ratio(sum(word.lower().startswith(("http://", "https://", "www.")) for word in found), len(found)),
            "mean_word_length": ratio(sum(map(len, proper)), len(proper)),
            "alpha_words": ratio(sum(any(map(str.isalpha, word)) for word in found), len(found)),
            "stop_words": len({"the", "be", "to", "of", "and", "that", "have", "with"} & {*found}),
            "hash_ratio": ratio(text.count("#"), len(found)),
            "ellipsis_ratio": ratio(text.count("...") + text.count("…"), len(found))}


def lines(text):
    every = text.split("\n")
    full, written = [line for line in every if line], [line for line in every if line.strip()]
    inner = [line.strip() for line in written]
    paragraphs = [part.strip("\n") for part in text.strip("\n").replace("\n\n", "\0").split("\0") if part.strip("\n")]
    return {"bullet_lines": ratio(sum(line.lstrip().startswith(("-", "•")) for line in every), len(every)),
            "ellipsis_lines": ratio(sum(line.rstrip().endswith(("...", "…")) for line in every), len(every)),
            "duplicate_lines": ratio(len(repeated(full)), len(full)),
            "duplicate_line_chars": ratio(sum(map(len, repeated(full))), len(text)),
            "duplicate_paragraphs": ratio(len(repeated(paragraphs)), len(paragraphs)),
            "duplicate_paragraph_chars": ratio(sum(map(len, repeated(paragraphs))), len(text)),
            "punctuated_lines": ratio(sum(terminal(line[-1]) for line in written), len(written)),
            "short_lines": ratio(sum(len(line) <= 30 for line in written), len(written)),
            "duplicated_line_chars": ratio(sum(map(len, repeated(written))), len(text.replace("\n", ""))),
            "newline_ratio": ratio(text.count("\n"), len(text.split())),
            "repeated_lines": ratio(len(repeated(inner)), len(inner))}


def terminal(char):
    return bool(classify(np.frombuffer(char.encode(), np.uint8))[0] & TERMINAL)


def top_gram(text, n):
    found = text.split()
    counts = Counter(" ".join(found[index:index + n]) for index in range(len(found) - n + 1))
    gram, count = counts.most_common(1)[0] if counts else ("", 0)
    return ratio(len(gram) * count, len(text))


def duplicate_grams(text, n):
    found, seen = text.split(), set()
    index = chars = 0
    while index + n <= len(found):
        gram = tuple(found[index:index + n])
        chars += len("".join(gram)) if gram in seen else 0
        index += n if gram in seen else 1
        seen.add(gram)
    return ratio(chars, len(text))


def grams(text):
    return {**{f"top_{n}gram_chars": top_gram(text, n) for n in (2, 3, 4)},
            **{f"duplicate_{n}gram_chars": duplicate_grams(text, n) for n in range(5, 11)}}


@settings(deadline=None)         # the first call builds the table of character classes
@given(documents)
@example(["\n"])
def test_statistics_are_those_of_the_definitions(texts):
    measured = measure(Block(texts))
    for index, text in enumerate(texts):
        expected = {**characters(text), **words(text), **lines(text), **grams(text)}
        assert {*expected, "sentences"} == {*measured}
        for name, value in expected.items():
            assert np.isclose(measured[name][index], value, rtol=1e-6), (name, text)
    assert {len(values) for values in measured.values()} == {len(texts)}
    assert {values.dtype for values in measured.values()} <= {np.dtype(kind) for kind in (np.float32, np.int32, bool)}


def test_a_document_is_measured_alike_alone_and_among_others():
    texts = [*prose(40), *ODD_TEXTS, "", "A", "A", "A `` key", *map(chr, range(33, 127)), "word " * 300,
             "a\na\n\na\na"]
    together = measure(Block(texts))
    for index, text in enumerate(texts):
        for name, values in measure(Block([text])).items():
            assert together[name][index] == values[0], (name, text)


def test_documents_of_equal_words_and_lines_are_no_duplicates_of_each_other():
    measured = measure(Block(["A single line of eleven words, which occurs in all documents here."] * 500))
    for name in ("duplicate_lines", "duplicate_paragraphs", "repeated_lines", "duplicate_5gram_chars"):
        assert not measured[name].any(), name


@pytest.mark.parametrize("text, count", [
    ("", 0), ("...", 1), ("One.", 1), ("One. Two! Three? Four", 4), ("One.\n\nTwo\nthree", 3),
    ("He met Dr. Smith of the U.S. army, J. S. Bach, e.g. here, and so on... but vs. whom", 1),
    ('"Stop." He said: (Go.) "Now!"', 3), ("No.. and", 1), ("Really?! Yes.", 2),
    ("你好。 世界！ 再见", 3), ("3.14 is pi. 2.7 is e.", 2)])
def test_sentences(text, count):
    assert measure(Block([text]))["sentences"].tolist() == [count]


def test_gopher_sees_the_text_before_edits_and_the_rest_after():
    before, after = Block(["- one line\n- one line\n- two"]), Block(["two"])
    measured = measure(before, after)
    assert measured["chars"] == 3 and measured["newline_ratio"] == 0 and measured["sentences"] == 1
    assert measured["words"] == 5 and measured["bullet_lines"] == 1 and measured["duplicate_lines"] == np.float32(1 / 3)


@given(st.text("ab.… ", max_size=30))
def test_occurrences_count_as_str_count_does(text):
    block = Block([text, "", text])
    for sign in ("..", "...", "ab", "…"):
        assert occurrences(block, sign.encode()).tolist() == [text.count(sign), 0, text.count(sign)]


@given(st.lists(st.integers(0, 5)))
def test_repeats(values):
    assert repeats(np.array(values, np.uint64)).tolist() == [value in values[:index] for index, value in enumerate(values)]


@given(documents)
def test_stripped_lines(texts):
    block = Block(texts)
    starts, ends = stripped_spans(block)
    found = [block.text[start:end].tobytes().decode() for start, end in zip(starts, ends)]
    assert found == [line.strip() for text in texts for line in text.split("\n")]


def test_another_splitter_changes_the_words_alone():
    def halves(text):
        return [(start, start + 2) for start in range(0, len(text) - 1, 2)]

    measured = measure(Block(["世界ab", "éé"], halves))
    assert measured["words"].tolist() == [2, 1] and measured["mean_word_length"].tolist() == [2, 2]
    assert measured["chars"].tolist() == [4, 2]


def test_empty_blocks():
    assert {len(values) for values in measure(Block([])).values()} == {0}
    measured = measure(Block(["", ""]))
    assert not any(values.any() for values in measured.values())


def test_long_documents_are_blocks_of_their_own_and_count_alike():
    text = "\n".join(prose(300))
    assert len(list(cut([text, "short", text]))) == 3
    measured = measure(Block([text]))
    for name, value in {**words(text), **grams(text)}.items():
        assert np.isclose(measured[name][0], value, rtol=1e-5), name


def test_bad_words(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("darn\n\nHecking Awful\né!\n", encoding="utf-8")
    block = Block(["Darn it", "darned", "undarn", "(darn)", "a hecking  awful", "a HECKING awful day", "É!", "é", ""])
    found = measure(block, bad_words=BadWords(path))["bad_words"]
    assert found.tolist() == [True, False, False, True, False, True, True, False, False]
    assert "bad_words" not in measure(block)


@pytest.mark.parametrize("content", [None, b"\n \n", b"\xff\xfe"])
def test_a_list_of_bad_words_that_cannot_be_used(tmp_path, content):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.filters\.bad_words: .*list\.txt .*one word or phrase a line"):
        BadWords(path)
