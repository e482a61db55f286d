"""Normalisation and rules: what stays at each threshold, in which order, and which files set them."""

import dataclasses
import re
import unicodedata

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cram.config import load
from cram.schema import Edits, Filters
from data_prep.bad_words import bad_words
from data_prep.blocks import Block
from data_prep.errors import DataError
from data_prep.filters import RULES, active_rules, check_order, decide
from data_prep.normalise import normalise
from data_prep.statistics import measure
from tests.data_prep.corpus import ODD_TEXTS, prose

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
odd_chars = "aé\u0301e \t\r\n\x00\x0b\x0c\x1b\x7f\x85\x9f\u2028\u2029\ufeff\u200d\u200f\U0001f600"
odd_text = st.text(st.sampled_from(odd_chars), max_size=30)


@given(st.one_of(any_text, odd_text))
def test_normalise(text):
    result = normalise(text)
    assert normalise(result) == result == result.strip()
    assert unicodedata.is_normalized("NFC", result)
    assert not any(unicodedata.category(char) == "Cc" and char not in "\t\n" for char in result)

    def letters(value):        # nothing but spaces, controls and byte order marks goes
        return "".join(char for char in unicodedata.normalize("NFD", value)
                       if not char.isspace() and unicodedata.category(char) != "Cc" and char != "\ufeff")

    assert letters(result) == letters(text)


def test_normalise_examples():
    assert normalise("\ufeff a\r\nb\rc\x0cd\u2028e\x00\x1b[0m \n") == "a\nb\nc\nd\ne[0m"
    assert normalise("cafe\u0301") == "caf\u00e9"
    assert normalise("    indent stays\n\n    here") == "indent stays\n\n    here"
    assert normalise("\x00\ufeff \n") == ""
    for text in ODD_TEXTS:           # joiners, direction marks, tabs, ligatures stay; the ohm sign is a Greek omega (NFC)
        assert normalise(text) == text.strip().replace("\u2126", "\u03a9")


CASES = {       # rule: (threshold, kept, dropped); at the threshold a document stays
    "min_chars": (10, "x" * 10, "x" * 9),
    "max_chars": (10, "x" * 10, "x" * 11),
    "min_alpha_fraction": (0.5, "ab 12", "ab 123"),
    "max_word_length": (5, "12345 12345", "123456"),
    "max_repeated_line_fraction": (0.5, "a\na\nb\nb", "a\na\na"),
    "placeholder_text": (True, "lorem dolor", "Lorem Ipsum"),
    "curly_bracket": (True, "(x)", "{x}"),
    "min_sentences": (2, "One. Two.", "One alone."),
    "max_replacement_fraction": (0.1, "123456789\ufffd", "12345678\ufffd"),
    "max_url_words": (0.5, "see www.a.b", "HTTPS://a www.b see"),
    "min_words": (3, "a b c -", "a b - -"),
    "max_words": (3, "a b c -", "a b c d"),
    "min_mean_word_length": (2, "a abc ......", "a ab ......"),
    "max_mean_word_length": (2, "a abc ......", "a abcd"),
    "max_hash_ratio": (0.5, "# b", "## b c"),
    "max_ellipsis_ratio": (0.5, "a... b", "a... b… c"),
    "max_bullet_lines": (0.5, "- a\nb", "- a\n  • b\nc"),
    "max_ellipsis_lines": (0.5, "a...\nb", "a...\nb… \nc"),
    "min_alpha_words": (0.5, "a 1", "a 1 2"),
    "min_stop_words": (2, "the x of", "the x the"),
    "max_duplicate_lines": (0.5, "a\n\na\nb\nb", "a\na\na"),
    "max_duplicate_paragraphs": (0.5, "a\nb\n\na\nb", "a\n\n\na\n\na"),
    "max_duplicate_line_chars": (0.25, "abc\nabc\nabcde"[:12], "abc\nabc\nab"),
    "max_duplicate_paragraph_chars": (0.25, "abc\n\nabc\n\nab", "abc\n\nabc"),
    "max_top_2gram_chars": (0.6, "a b a b cd", "a b a b c"),
    "max_top_3gram_chars": (0.5, "a b c a b c defghij i", "a b c a b c d"),
    "max_top_4gram_chars": (0.7, "a b c d a b c d efg h", "a b c d a b c d"),
    "min_punctuated_lines": (0.5, "a.\nb", "a.\n\nb\nc,"),
    "max_short_lines": (0.5, "a\n" + "b" * 31, "a\n" + "b" * 30),
    "max_duplicated_line_chars": (0.25, "ab\nab\nabcd", "ab\nab\nabc"),
    "max_newline_ratio": (0.5, "a b\nc d\ne", "a\nb\nc"),
    **{f"max_duplicate_{n}gram_chars": (0.2, *(" ".join("abcdefghijklmnopqrstuvwxyz"[:n]) + f" {middle} "
                                                + " ".join("abcdefghijklmnopqrstuvwxyz"[:n]) for middle in ("x" * 2 * n, "x")))
       for n in range(5, 11)},
}
ELSEWHERE = {   # statistics that other modules measure: (threshold, statistic, values, which are kept)
    "languages": (["en", "de"], "language", np.array(["en", "fr", "de"], object), [True, False, True]),
    "min_language_probability": (0.65, "language_probability", np.float32([0.65, 0.6, 0.9]), [True, False, True]),
    "max_removed_words": (0.05, "removed_words", np.float32([0, 0.05, 0.06]), [True, True, False]),
    "max_contaminated_ngrams": (0, "contaminated_ngrams", np.int32([0, 1]), [True, False]),
    "bad_words": ("list.txt", "bad_words", np.array([False, True]), [True, False]),
}
SETS = ("none", "cramming", "gopher", "c4", "fineweb")


def off(**changes) -> Filters:
    names = {field.name: None for field in dataclasses.fields(Filters)}
    return Filters(**{**names, "order": [], "languages": [], "min_language_probability": 0.65, **changes})


def verdicts(texts, filters):
    """The name of the rule that drops each document, or None."""
    rules = active_rules(filters)
    return [None if index < 0 else rules[index][0].name for index in decide(measure(Block(texts)), rules)]


def test_every_key_of_the_schema_is_a_rule_and_the_order_is_the_schemas():
    names = [field.name for field in dataclasses.fields(Filters)]
    assert ["order"] + [rule.name for rule in RULES] + ["max_tokens_per_char"] == names
    assert {*CASES, *ELSEWHERE} == {rule.name for rule in RULES} and not {*CASES} & {*ELSEWHERE}


@pytest.mark.parametrize("name", CASES)
def test_each_rule_alone(name):
    threshold, kept, dropped = CASES[name]
    filters = off(**{name: threshold})
    assert [rule.name for rule, _ in active_rules(filters)] == [name]
    assert verdicts([kept, dropped], filters) == [None, name]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_each_rule_over_what_is_measured_elsewhere(name):
    threshold, statistic, values, kept = ELSEWHERE[name]
    rules = [(rule, value) for rule, value in active_rules(off(languages=["en"], **{name: threshold}) if name != "languages"
                                                           else off(languages=threshold)) if rule.name == name]
    assert rules[0][0].statistic == statistic
    assert (decide({statistic: values}, rules) < 0).tolist() == kept


def test_null_switches_a_rule_off_and_zero_does_not():
    assert active_rules(off()) == []
    assert active_rules(off(placeholder_text=False)) == []
    assert verdicts(["", "lorem ipsum", "1" * 5000], off()) == [None] * 3
    assert [rule.name for rule, _ in active_rules(off(max_hash_ratio=0, max_contaminated_ngrams=0))] == \
        ["max_hash_ratio", "max_contaminated_ngrams"]


def test_a_document_counts_under_the_first_rule_that_drops_it():
    texts = ["lorem ipsum", "lorem ipsum " + "dolor sit amet " * 20, "fine words here " * 20, ""]
    assert verdicts(texts, Filters(max_contaminated_ngrams=None)) == ["min_chars", "placeholder_text", None, "min_chars"]
    assert verdicts(texts, Filters(max_contaminated_ngrams=None, order=["max_hash_ratio", "placeholder_text"])) == \
        ["placeholder_text", "placeholder_text", None, "min_chars"]


def test_the_order_is_that_of_the_key_then_that_of_the_schema():
    filters = off(min_chars=1, max_chars=9, min_words=1, max_hash_ratio=1, order=["max_hash_ratio", "max_words", "max_chars"])
    assert [(rule.name, value) for rule, value in active_rules(filters)] == \
        [("max_hash_ratio", 1), ("max_chars", 9), ("min_chars", 1), ("min_words", 1)]


@given(st.permutations([rule.name for rule in RULES]))
def test_the_order_never_changes_what_is_kept(order):
    texts = [text for _, *pair in CASES.values() for text in pair]
    statistics = measure(Block(texts))
    listed, ordered = (decide(statistics, active_rules(off(min_chars=9, min_words=3, max_bullet_lines=0.5, order=each)))
                       for each in ([], order))
    assert ((listed < 0) == (ordered < 0)).all() and (listed < 0).any() and (listed >= 0).any()


@pytest.mark.parametrize("order, problem", [
    (["min_word"], "'min_word' is no rule; did you mean min_words"),
    (["zzz"], "'zzz' is no rule; rules: min_chars, max_chars, .*max_contaminated_ngrams$"),
    (["min_words", "min_chars", "min_words"], "names 'min_words' twice"),
    (["max_tokens_per_char"], "'max_tokens_per_char' is no rule")])
def test_an_order_that_names_no_rule_or_one_twice(order, problem):
    with pytest.raises(DataError, match=rf"^data\.filters\.order:? .*{problem}") as caught:
        active_rules(off(order=order))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=f"^{re.escape(str(caught.value))}$"):
        check_order(order)


def test_the_list_of_bad_words_is_made_again_only_when_it_changes(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeffdarn\n", encoding="utf-8")
    first = bad_words(str(path))
    assert bad_words(str(path)) is first and first.found(Block(["darn it", "heck"])).tolist() == [True, False]
    path.write_text("heck\nheck\n")
    assert bad_words(str(path)).found(Block(["darn it", "heck"])).tolist() == [False, True]


@pytest.mark.parametrize("content, problem", [
    (None, r"cannot be read \(No such file or directory\)"),
    ("caf\u00e9\ncaf\u00e9".encode()[:-1], r"cannot be read \(line 2, byte 9: invalid UTF-8, 0xc3\)"),
    (b"\n \n", "has no word")])
def test_a_list_of_bad_words_that_cannot_be_read(tmp_path, content, problem):
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^data\.filters\.bad_words: .*list\.txt {problem}; give a UTF-8 text file") as caught:
        bad_words(path)
    assert "codec" not in str(caught.value) and "Errno" not in str(caught.value)


@pytest.mark.parametrize("name", SETS)
def test_each_rule_set_names_every_key(name, root):
    section = yaml.safe_load((root / f"configs/filters/{name}.yaml").read_text(encoding="utf-8"))["data"]
    for part, schema in (("edits", Edits), ("filters", Filters)):
        assert list(section[part]) == [field.name for field in dataclasses.fields(schema)], part
    assert set(section) == {"edits", "filters"}


@pytest.mark.parametrize("name", SETS)
def test_each_rule_set_loads_over_another_configuration(name):
    config = load(["demo", f"filters/{name}"])
    rules = [rule.name for rule, _ in active_rules(config.data.filters)]
    listed = [rule for rule in config.data.filters.order if rule in rules]
    assert rules[:len(listed)] == listed and {*rules} - {*listed} <= {"max_contaminated_ngrams"}
    assert len(rules) == {"none": 1, "cramming": 1, "gopher": 24, "c4": 4, "fineweb": 31}[name]
    assert config.budget == load("demo").budget


def test_the_rule_sets_keep_prose_and_drop_junk():
    good = [text.replace(" ba", " the of and").replace(". ", ".\n") for text in prose(20) if len(text) > 900]
    junk = ["menu\nhome\ncontact\n" * 30, "buy now " * 200, "{ x = 1; }\n" * 50]
    for name, dropped in (("gopher", junk), ("c4", junk[2:]), ("fineweb", junk)):
        filters = load(["demo", f"filters/{name}"]).data.filters
        filters.max_contaminated_ngrams = None
        found = verdicts(good + dropped, filters)
        assert found.count(None) >= 0.9 * len(good), (name, found)
        assert None not in found[len(good):], (name, found)
