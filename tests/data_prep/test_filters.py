"""Normalisation, statistics and rules against plain definitions, character by character."""

import unicodedata
from dataclasses import fields

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cram.schema import Filters
from data_prep.filters import RULES, active_rules, passing
from data_prep.funnel import Funnel
from data_prep.normalise import normalise
from data_prep.statistics import measure
from tests.data_prep.corpus import ODD_TEXTS

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
odd_chars = "aé\u0301e \t\r\n\x00\x0b\x0c\x1b\x7f\x85\x9f\u2028\u2029\ufeff\u200d\u200f\U0001f600"
odd_text = st.text(st.sampled_from(odd_chars), max_size=30)
lines_text = st.lists(st.sampled_from(["one line", " one line", "two", "", "  ", "lorem IPSUM"]), max_size=9).map("\n".join)


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


def reference(text):
    """The statistics by their definitions."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    solid = [char for char in text if not char.isspace()]
    alphabetic = [char for char in solid if unicodedata.category(char)[0] in "LM"]
    return {
        "chars": len(text),
        "alpha_fraction": len(alphabetic) / len(solid) if solid else 0,
        "longest_word": max(map(len, text.split()), default=0),
        "repeated_lines": sum(line in lines[:index] for index, line in enumerate(lines)) / len(lines) if lines else 0,
        "placeholder": "lorem ipsum" in text.lower(),
    }


@settings(deadline=None)         # the first call builds the table of character classes
@given(st.lists(st.one_of(any_text, odd_text, lines_text), max_size=8))
def test_statistics_are_those_of_the_definitions(texts):
    measured = measure(texts)
    for index, text in enumerate(texts):
        for name, value in reference(text).items():
            assert np.isclose(measured[name][index], value), (name, text)
    assert {len(values) for values in measured.values()} == {len(texts)}


CASES = {       # rule: (threshold, kept, dropped); at the threshold a document stays
    "min_chars": (10, "x" * 10, "x" * 9),
    "max_chars": (10, "x" * 10, "x" * 11),
    "min_alpha_fraction": (0.5, "ab 12", "ab 123"),
    "max_word_length": (5, "12345 12345", "123456"),
    "max_repeated_line_fraction": (0.5, "a\na\nb\nb", "a\na\na"),
    "placeholder_text": (True, "lorem dolor", "Lorem Ipsum"),
}


def off():
    return Filters(**{field.name: False if field.name == "placeholder_text" else None for field in fields(Filters)})


def test_every_key_of_the_schema_is_a_rule_and_the_order_is_the_schemas():
    names = [field.name for field in fields(Filters)]
    assert [rule.name for rule in RULES] + ["max_tokens_per_char"] == names
    assert set(CASES) == {rule.name for rule in RULES}


def test_each_rule_alone():
    for name, (threshold, kept, dropped) in CASES.items():
        filters = off()
        setattr(filters, name, threshold)
        assert [rule.name for rule, _ in active_rules(filters)] == [name]
        funnel = Funnel([name])
        assert passing([kept, dropped], filters, funnel).tolist() == [True, False], name
        assert funnel.dropped[name] == [1, len(dropped)] and funnel.samples[name] == [dropped]


def test_null_switches_a_rule_off():
    assert active_rules(off()) == []
    assert passing(["", "lorem ipsum", "1" * 5000], off(), Funnel([])).all()


def test_a_document_counts_under_the_first_rule_that_drops_it():
    filters = Filters()
    funnel = Funnel(rule.name for rule in RULES)
    kept = passing(["lorem ipsum", "lorem ipsum " + "dolor sit amet " * 20, "fine words here " * 20, ""], filters, funnel)
    assert kept.tolist() == [False, False, True, False]
    assert {name: count for name, (count, _) in funnel.dropped.items() if count} == {"min_chars": 2, "placeholder_text": 1}


def test_samples_are_few_and_short():
    funnel = Funnel(["min_chars"])
    funnel.drop("min_chars", ["y" * 1000] * 3)
    funnel.drop("min_chars", ["z"] * 9)
    assert funnel.samples["min_chars"] == ["y" * 300] * 3 + ["z"] * 2
    assert funnel.dropped["min_chars"] == [12, 3009]
