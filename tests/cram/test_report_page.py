"""Every page of the lab is one file that asks nothing of the network, however it is made."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from cram.drawing import drawing
from cram.report_page import STYLE, to_html, to_markdown

REFERRING = {"src", "srcset", "poster", "data", "action", "formaction", "background", "manifest", "ping", "xlink:href"}


def blocks():
    with drawing(3, 2) as made:
        made.figure.subplots().plot([1, 2], [3, 4], label="a")
    return [("title", "a <page>"), ("facts", [("1.38", "bits per byte", "xz: 2.37")]), ("verdict", "unsure", "cannot tell"),
            ("section", "s"), ("text", "see http://example.org/"), ("table", ["a", "b"], [["x", "1"]]), ("code", "<script>"),
            ("figure", "curve", made.svg, "a curve"), ("details", "more", [("verdict", "good", "yes")]),
            ("links", [("the run", "../demo/report.html")])]


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.referred, self.links = set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for name, value in attributes:
            if name in REFERRING or name == "href" and tag != "a":
                self.referred.append(value)
            elif name == "href":
                self.links.append(value)
            assert not name.startswith("on"), (tag, name)


def test_a_page_loads_nothing_and_runs_nothing():
    page, reader = to_html(blocks(), "t"), Reader()
    reader.feed(page)
    assert all(value.startswith("#") for value in reader.referred) and reader.links == ["../demo/report.html"]
    assert not {"script", "link", "img", "iframe", "object", "embed", "video", "base"} & reader.tags
    assert not re.search(r"url\((?!#)|@import|@font-face", page)


def test_a_page_says_how_it_is_read_on_a_phone_in_the_dark_and_on_paper():
    page = to_html(blocks(), "t")
    for needed in ('name="viewport" content="width=device-width', "prefers-color-scheme: dark", "@media print", "overflow-x: auto"):
        assert needed in page
    assert "screen and (prefers-color-scheme: dark)" in STYLE  # paper stays white


def test_markdown_and_html_hold_the_same_words():
    text, page = to_markdown(blocks()), to_html(blocks(), "t")
    for words in ("1.38", "bits per byte", "cannot tell", "see http://example.org/", "the run"):
        assert words in page and words in text


def test_an_unknown_block_is_no_page():
    with pytest.raises((ValueError, KeyError, IndexError, TypeError)):
        to_html([("riddle", "x")], "t")


def test_help_stays_instant_and_loads_no_torch():
    asked = ("import sys; from cram.cli import main; main(['--help']); "
             "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib', 'scipy')))")
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True).returncode == 0
