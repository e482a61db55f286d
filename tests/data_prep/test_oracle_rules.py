"""Every rule against datatrove, the library that made FineWeb: over its own words the verdicts must be the same."""

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter

from cram.config import load
from data_prep.blocks import cut
from data_prep.edits import Account, edit
from data_prep.filters import active_rules, decide
from data_prep.statistics import measure
from tests.data_prep import oracle_table as oracle

MOST_DIFFERENT = 0.005          # share of documents; only "words that are punctuation alone" is defined otherwise
DEFINED_OTHERWISE = {"min_words", "min_mean_word_length"}        # datatrove's punctuation lacks "•" and other symbols


@pytest.fixture(scope="module")
def texts():
    """At least 2,000 docstrings, and documents made up near the thresholds."""
    found = oracle.documents([], 2000) + oracle.edge_cases(400)
    return [text for text in found if oracle.spacy_spans(text)]


@pytest.fixture(scope="module")
def theirs(texts):
    with pytest.MonkeyPatch.context() as patch:
        oracle.split_once(patch.setattr)
        return oracle.datatrove_verdicts(texts)


@pytest.mark.slow
def test_the_words_are_datatroves(texts):
    from datatrove.utils.text import split_into_words

    for text in texts[::40]:
        assert oracle.spacy_words(text) == split_into_words(text)


@pytest.mark.slow
def test_each_rule_agrees_with_datatrove(texts, theirs):
    assert len(texts) >= 2300
    ours = oracle.our_verdicts(texts, oracle.spacy_spans)
    for rule, their in theirs.items():
        different = np.mean(their != ours[rule])
        assert different <= (MOST_DIFFERENT if rule in DEFINED_OTHERWISE else 0.001), (rule, different)
        assert rule == "max_words" or 5 <= their.sum() <= len(texts) - 5, f"{rule}: the documents are no test of it"


@pytest.mark.slow
def test_over_whitespace_words_the_rules_about_lines_are_the_same(texts, theirs):
    ours = oracle.our_verdicts(texts)
    for rule in theirs:
        if "lines" in rule or "line_chars" in rule or "paragraph" in rule or rule in ("placeholder_text", "curly_bracket"):
            assert (theirs[rule] == ours[rule]).all(), rule


@pytest.mark.slow
def test_documents_too_long_for_gopher(monkeypatch):
    texts = ["word " * 99_999 + "end", "word " * 100_000 + "end"]
    oracle.split_once(monkeypatch.setattr)
    case = next(case for case in oracle.cases() if case.rule == "max_words")
    assert [oracle.drops(case, text) for text in texts] == [False, True]
    assert oracle.our_verdicts(texts, oracle.spacy_spans)["max_words"].tolist() == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("name, punctuation", [("c4", True), ("fineweb", False)])
def test_c4_with_its_line_edits_agrees(texts, name, punctuation):
    texts = texts[::4]
    filter = C4QualityFilter(filter_no_terminal_punct=punctuation)
    data = load(["demo", f"filters/{name}"]).data
    data.edits.emails = data.edits.ips = False
    edited, _ = edit(texts, data.edits, Account())
    rules = [(rule, value) for rule, value in active_rules(data.filters)
             if rule.name in ("placeholder_text", "curly_bracket", "min_sentences")]
    ours = np.concatenate([decide(measure(block), rules) >= 0 for block in cut(edited, oracle.spacy_spans)])
    theirs = np.array([filter.filter(Document(text=text, id="")) is not True for text in texts])
    assert np.mean(ours == theirs) >= 0.995 and 50 < theirs.sum() < len(texts) - 50


@pytest.mark.slow
def test_the_table(texts, theirs):
    ours = {rule: ~their for rule, their in theirs.items()}
    rows = oracle.table(texts, theirs, ours).splitlines()
    assert len(rows) == 2 + len(theirs) and all(row.endswith("| 0.00% |") for row in rows[2:])
    assert oracle.table(texts, theirs, theirs).count("| 100.00% |") == len(theirs)
