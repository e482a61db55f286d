"""Edits: the same text as datatrove leaves, nothing else touched, everything counted, no input that takes for ever."""

import itertools
import json
import re
import time

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.formatters.pii import PIIFormatter
from hypothesis import given, settings, strategies as st

from cram.schema import Edits
from data_prep import masking
from data_prep.edits import LINE_RULES, POLICY, Account, edit, repair, rows
from data_prep.normalise import normalise
from data_prep.sources.docstrings import find_package, read_docstrings

C4 = dict(terminal_punctuation=True, min_line_words=3, max_line_word_chars=1000, javascript_lines=True, policy_lines=True)
CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
FRAGMENTS = ["Rain fell", "a", "one two three", "The end.", "Wait...", "Wait…", "Why?", 'so "they" said"', "it's'",
             "JavaScript on", "\n", "\n\n",
             "\n  indented", " ", "\t", "\xa0", "We use Cookies here.", "See our TERMS OF USE now.", "Privacy Policy",
             "{", ".",
             "..", "...", "w" * 21, "é" * 20 + ".", "é" * 21 + ".", "\U0001f600\U0001f600 \U0001f600.",
             "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd.", "日本語。", "x\u3000y z!",
             "3 likes", "https://a.example/b", "www.example.org is here", "SHOUTING LOUD", "1234 5678", "12.5%", "\u200f",
             "\x00", "#", "-"]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=12), max_size=25).map(" ".join).map(normalise)


def edited(text_list, account=None, **keys):
    return edit(text_list, Edits(**keys), account or Account())[0]


def datatrove_c4(text, terminal_punctuation=True, min_line_words=3, max_line_word_chars=1000, javascript_lines=True,
                 policy_lines=True, citations=True):
    document = Document(text=text, id="0")
    assert C4QualityFilter(
        remove_citations=citations, filter_no_terminal_punct=terminal_punctuation, min_num_sentences=-1,
        filter_lorem_ipsum=False, filter_curly_bracket=False, min_words_per_line=min_line_words or -1,
        max_word_length=max_line_word_chars or -1,
        filter_javascript=javascript_lines, filter_policy=policy_lines).filter(document) is True
    return document.text


@pytest.fixture(scope="module")
def docstrings():
    """2,500 real documents."""
    found = itertools.islice(read_docstrings([find_package("numpy"), find_package("pandas")]), 2500)
    return [normalise(text) for text, _ in found]


# ---- against datatrove -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("keys", [C4, {**C4, "terminal_punctuation": False}, {**C4, "min_line_words": None},
                                  {**C4, "max_line_word_chars": 20, "min_line_words": 6}])
def test_c4_leaves_what_datatrove_leaves(docstrings, keys):
    clean = [normalise(CITATION.sub("", text)) for text in docstrings]
    assert edited(clean, citations=True, **keys) == [datatrove_c4(text, **keys) for text in clean]


def test_c4_with_citations_agrees_on_almost_all(docstrings):
    ours = edited(docstrings, citations=True, **C4)
    differ = [text for text, mine in zip(docstrings, ours) if mine != datatrove_c4(text)]
    assert len(differ) <= 0.005 * len(docstrings)
    assert all(CITATION.search(text) for text in differ)


@settings(max_examples=300, deadline=None)
@given(texts, st.booleans(), st.sampled_from([None, 1, 2, 3]), st.sampled_from([None, 20]), st.booleans(), st.booleans())
def test_c4_on_odd_lines(text, punctuation, words, chars, javascript, policy):
    keys = dict(terminal_punctuation=punctuation, min_line_words=words, max_line_word_chars=chars, javascript_lines=javascript,
                policy_lines=policy)
    if any(keys.values()):                  # with none of them ours leaves all alone, datatrove's still strips
        assert edited([text], **keys) == [datatrove_c4(text, citations=False, **keys)]


EDGES = FRAGMENTS + ["So it goes..", "So it goes....", "So it. . .", "'", "a b c'", "Rain (fell).)", "Rain fell.\u201d",
                     "The cookie rule.", "Read the terms  of use.", "He uses the javascrip tool.", "NOJAVASCRIPTHERE at all.",
                     *(f"Mind the {phrase.decode().title()} now." for phrase in POLICY)]


@pytest.mark.parametrize("rule", [*C4, "all"])
def test_c4_on_edges(rule):
    """Every edge line alone, under every rule alone."""
    keys = C4 if rule == "all" else {**dict.fromkeys(C4, False), "min_line_words": None, "max_line_word_chars": None,
                                     rule: C4[rule]}
    keys = {**keys, "max_line_word_chars": 20} if keys["max_line_word_chars"] else keys
    lines = [normalise(line) for line in EDGES]
    assert edited(lines, **keys) == [datatrove_c4(line, citations=False, **keys) for line in lines]


def test_citations_go_before_lines_are_judged():
    """Where ours and datatrove's part, on purpose."""
    assert edited(["Rain fell here. [1]"], citations=True, **C4) == ["Rain fell here."]
    assert datatrove_c4("Rain fell here. [1]") == ""
    assert edited(["[1] Yes indeed."], citations=True, **C4) == [""]
    assert datatrove_c4("[1] Yes indeed.") == "Yes indeed."
    assert edited(["Rain[2] fell here.[citation needed]\nHistory[edit]"], citations=True, **C4) == ["Rain fell here."]


ADDRESSES = ["a@b.co", "john.o'neil+x@mail.example.org", "email@example.com", "x@[1.2.3.4]", "a@b", "@", "@@", "a@b.c@d.e",
             "é@b.co",
             "ü.a@b-c.de", ".a@b.co", "8.8.8.8", "1.2.3.4.5.6.7.8", "192.168.0.1", "127.0.0.1", "01.2.3.4", "256.1.1.1",
             "1.1.1.1000", "192.0.2.1", "..", "a.b@", "http://u@h.org/1", "a/b/c@d.fr", "email@example.com@q.de",
             "99.99.99.99x", "٣.1.1.1.1", "::1", "-@-.-", "x@a.b."]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(ADDRESSES) | st.text("a1.@-! \n", max_size=8), max_size=12), st.sampled_from(["", " ", ", ",
                                                                                                              "\n"]))
def test_addresses_are_found_where_datatrove_finds_them(parts, between):
    text = between.join(parts)
    for keys in (dict(emails=True), dict(ips=True), dict(emails=True, ips=True)):
        oracle = PIIFormatter(remove_emails="emails" in keys, remove_ips="ips" in keys, email_replacement=masking.EMAIL,
                              ip_replacement=masking.IP)
        assert edited([text], **keys) == [oracle.format(text)]


def test_addresses_in_real_text(docstrings):
    oracle = PIIFormatter(email_replacement=masking.EMAIL, ip_replacement=masking.IP)
    assert edited(docstrings, emails=True, ips=True) == [oracle.format(text) for text in docstrings]


def test_replacements_belong_to_nobody_and_stay():
    text = "Write to ada@lovelace.org, or 8.8.8.8."
    once = edited([text], emails=True, ips=True)
    assert once == ["Write to email@example.com, or 192.0.2.1."]
    account = Account()
    assert edited(once, account, emails=True, ips=True) == once and account.counts == {}


# ---- rules for lines -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("keys, gone, stays", [
    (dict(url_lines=True), ["https://a.example/b?c", "See www.example.org now", "HTTP://A.B", "Source: http://x.y"],
     ["One two three http://x.y", "awww.nice", "www", "(see the site)"]),
    (dict(counter_lines=True), ["3 likes", "1,204 Comments", "• 12.5K views •", "Read more", "Read More...", "sign in",
                                "2 items in cart", "1 share"],
     ["He likes it", "3 likes from me", "I read more", "日本語 3 likes", "Read", "4 bookmarked"]),
    (dict(max_line_uppercase=0.5), ["HELLO WORLD", "ABc", "ÄÖü"], ["ABcd", "Hello", "1234", "日本語", "---"]),
    (dict(max_line_digits=0.999999), ["1234", "12 34", "٣٤"], ["1234.", "12a", "---", "²"]),
    (dict(min_line_words=2), ["one", "日本語"], ["one two", "x\u3000y"]),
    (dict(max_line_word_chars=3), ["four", "a éééé", "\U0001f600" * 4], ["one two", "ééé", "\U0001f600" * 3]),
])
def test_line_rules(keys, gone, stays):
    for line in gone:
        assert edited([f"to be\n{line}\nor no", line], **keys) == ["to be\nor no", ""]
    assert edited(stays, **keys) == stays


@settings(max_examples=200, deadline=None)
@given(st.lists(texts, max_size=4), st.dictionaries(st.sampled_from(sorted(LINE_RULES)), st.just(True), max_size=5))
def test_only_whole_lines_vanish_and_all_is_counted(documents, switches):
    numbers = dict(min_line_words=3, max_line_word_chars=20, max_line_uppercase=0.5, max_line_digits=0.9)
    keys = {name: numbers.get(name, True) for name in switches}
    account = Account()
    result, removed = edit(documents, Edits(**keys), account)
    assert removed.dtype == np.float32 and removed.shape == (len(documents),)
    for before, after, share in zip(documents, result, removed):
        lines = iter(line.strip() for line in before.split("\n"))
        assert all(line.strip() in lines for line in after.split("\n") if line.strip())       # a subsequence
        words = len(before.split())
        assert share == np.float32((words - len(after.split())) / max(words, 1))
    lost = sum(len(before.encode()) - len(after.encode()) for before, after in zip(documents, result))
    assert sum(row["bytes"] for row in account.counts.values()) == lost
    assert edit(result, Edits(**keys), Account())[0] == result                                # idempotent
    assert json.loads(json.dumps(account.counts)) == account.counts
    # One document at a time gives the same: a block's borders do not matter.
    assert [edited([text], **keys)[0] for text in documents] == result


def test_account_names_the_first_rule_and_adds_up_over_parts():
    documents = ["Good line of text.\n\nRead on\nJavascript is needed here.", "nothing here", "All is well here."]
    accounts = [Account(), Account()]
    for account in accounts:
        result, removed = edit(documents, Edits(**C4), account)
    assert result == ["Good line of text.", "", "All is well here."]
    assert removed.tolist() == pytest.approx([6 / 10, 1, 0])
    assert rows(account.counts for account in accounts) == [
        {"edit": "terminal_punctuation", "documents": 4, "items": 4, "bytes": 2 * (8 + 12)},
        {"edit": "javascript_lines", "documents": 2, "items": 2, "bytes": 2 * 27},
        {"edit": "blank", "documents": 2, "items": 2, "bytes": 2}]
    assert rows([]) == []


def test_nothing_switched_on_gives_the_same_list_back():
    documents = ["any  text ", "", "\x00"]
    account = Account()
    assert repair(documents, Edits(), account) is documents
    result, removed = edit(documents, Edits(), account)
    assert result is documents and not removed.any() and account.counts == {}


def test_unchanged_documents_are_the_same_objects():
    documents = ["A line that stays as it is.", "Gone"]
    result = edited(documents, emails=True, ips=True, citations=True, **C4)
    assert result[0] is documents[0] and result[1] == ""


def test_lines_keep_their_indentation_without_c4():
    text = "def f():\n\n    return 1\n3 likes"
    assert edited([text], counter_lines=True) == ["def f():\n\n    return 1"]


# ---- size ------------------------------------------------------------------------------------------------------------

ALL = dict(emails=True, ips=True, citations=True, url_lines=True, counter_lines=True, max_line_uppercase=0.5,
           max_line_digits=0.9, **C4)


@pytest.mark.parametrize("unit", ["a/", "a@", "@", "[", "[1", "1.", "1.1.", "http://", "javascript", ".", "A", "a.b@c-"])
def test_repetitive_text_takes_linear_time(unit):
    start = time.process_time()
    edited([unit * 100_000 + " a@b.co"], **ALL)
    assert time.process_time() - start < 5


@pytest.mark.slow
@pytest.mark.parametrize("line", ["word " * 10_000_000, "x" * 50_000_000, "\u05e9\u05dc\u05d5\u05dd " * 5_500_000])
def test_one_line_of_50_mb(line):
    start = time.process_time()
    result = edited([line + "end."], **ALL)
    assert len(result[0]) == (0 if " " not in line else len(line) + 4)
    assert time.process_time() - start < 30


def test_a_million_empty_documents():
    start = time.process_time()
    account = Account()
    result, removed = edit([""] * 1_000_000, Edits(**ALL), account)
    assert time.process_time() - start < 10
    assert result == [""] * 1_000_000 and not removed.any() and account.counts == {}
    assert edit([], Edits(**ALL), account)[0] == []
