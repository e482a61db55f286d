"""The page and the board of ``cram data inspect`` show what the inspection found, and nothing in a document is obeyed."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cram.errors import CramError
from cram.inspect import inspect
from cram.inspect_figures import histogram
from tests.data_prep.decided import HEBREW, SCRIPT, documents, write_data_dir, write_text_dir

VOID = {"meta", "br", "img", "link", "wbr"}
CONFIG = SimpleNamespace(name="a <b> run", seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    links = tmp_path_factory.mktemp("run")
    hostile = [(SCRIPT * 9, "<script>origin</script>", fate) for fate in ("train", "min_chars", "validation")]
    rows = [(HEBREW, "https://he.example/", "validation"), *hostile, *documents()[4:]]
    write_text_dir(links / "text", rows)
    write_data_dir(links / "data", links / "text")
    said = []
    inspect(CONFIG, links, said.append)
    return links / "inspect", said


class Tags(HTMLParser):
    """Every tag with its attributes; fails on tags that do not nest."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def page(run):
    return (run[0] / "index.html").read_text(encoding="utf-8")


def test_the_page_is_whole_and_asks_nothing_of_the_network(page):
    tags = Tags(page)
    assert len(page) < 300_000
    assert not {tag for tag, _ in tags.tags} & {"script", "img", "iframe", "link", "object", "embed"}
    for tag, attributes in tags.tags:
        assert not any(name.startswith("on") or name == "src" for name in attributes), attributes
        assert attributes.get("href", "#").startswith("#")
    assert "http-equiv" not in page and "url(" not in page and "@import" not in page
    targets = {attributes["id"] for tag, attributes in tags.tags if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in tags.tags if tag == "a"} == targets


def test_hostile_text_is_shown_as_text(page):
    words = "".join(Tags(page).words)
    assert "<script>alert('cram')</script>" in words and "<script>origin</script>" in words and "a <b> run: the data" in words
    assert "<script" not in page and "onerror=alert(1)>" not in page


def test_text_keeps_its_own_direction(page):
    shown = re.findall(r"<pre([^>]*)>", page)
    assert shown and set(shown) == {' dir="auto"'}
    assert f"<bdi>{HEBREW.split()[0]}" in page


def test_numbers_of_the_page_are_those_of_the_json(run, page):
    found = json.loads((run[0] / "inspect.json").read_text())
    words = " ".join("".join(Tags(page).words).split())
    for step in found["funnel"]:
        assert f"{step['documents']:,}" in words
    for rule in found["rules"]:
        assert f"{rule['rule']}{rule['statistic']}{rule['threshold']:g}{rule['beyond']:,}" in words
    for group in found["samples"]:
        if group["documents"]:
            assert f"{group['fate']}: {group['documents']:,} document" in words
    assert f"{found['funnel'][-1]['tokens']:,}" in words and "~" in words
    assert "novels" in words and "he.example" in words
    assert f"{found['funnel'][0]['documents']:,} documents read" in run[1][0]


def test_the_same_again_gives_the_same_bytes(run, tmp_path):
    names = ("index.html", "inspect.json")
    before = [(run[0] / name).read_bytes() for name in names]
    inspect(CONFIG, run[0].parent, lambda line: None)
    assert before == [(run[0] / name).read_bytes() for name in names]
    assert len(list((run[0] / "tensorboard").glob("events*"))) == 1


def test_light_and_dark_and_paper(page):
    assert "prefers-color-scheme: dark" in page and "color-scheme: light dark" in page and "@media print" in page


def test_the_board_reads_back_what_was_found(run):
    found = json.loads((run[0] / "inspect.json").read_text())
    board = EventAccumulator(str(run[0] / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    board.Reload()
    for unit in ("documents", "bytes", "tokens"):
        assert [event.value for event in board.Scalars(f"funnel/{unit}")] == [step[unit] for step in found["funnel"]]
    for group in found["samples"]:
        side = "kept" if group["fate"] in ("train", "validation") else "dropped"
        assert board.Scalars(f"{side}/{group['fate']}")[0].value == group["documents"]
    for row in found["statistics"]:
        kept = board.Histograms(f"{row['name']}/kept")[0].histogram_value
        assert kept.num == sum(row["kept"]) and row["edges"][0] <= kept.min < kept.max <= row["edges"][-1]
        assert sum(kept.bucket) == sum(row["kept"])
    texts = board.Tensors("samples/min_chars/text_summary")
    assert len(texts) == 5
    lines = [line for text in texts for line in text.tensor_proto.string_val[0].decode().splitlines()]
    assert all(line.startswith("    ") for line in lines)
    assert "| 0 | read |" in board.Tensors("funnel/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("edges, log, threshold", [
    ([0.0, 0.25, 0.5], False, 0.3), ([1.0, 10.0, 100.0], True, 20), ([-0.5, 0.5, 1.5], False, True),
    ([3.0, 4.0, 5.0], False, 99)])
def test_a_histogram_draws_its_bars_and_the_threshold_where_it_belongs(edges, log, threshold):
    row = {"name": "a&b", "edges": edges, "log": log, "kept": [4, 0], "dropped_here": [0, 2], "dropped_elsewhere": [0, 0],
           "rules": [{"rule": "max_<x>", "threshold": threshold}]}
    paths = {path.get("class"): path.get("d") for path in ET.fromstring(histogram(row)).iter("path")}
    assert set(paths) == {"g", "a", "k", "d"} | ({"t"} if threshold in (0.3, 20) else set())
    if "t" in paths:
        at = float(re.match(r"M([\d.]+)", paths["t"])[1])
        split = float(re.match(r"M([\d.]+)", paths["d"])[1])            # the second bar begins at the middle edge
        assert at > split and at < 410 - (410 - split) / 2
    height = [float(re.search(r"V([\d.]+)", paths[style])[1]) for style in "kd"]
    assert height[0] < height[1]                                        # 4 documents stand taller than 2


def test_data_of_an_earlier_text_is_left_out_aloud(tmp_path):
    write_text_dir(tmp_path / "old", documents()[:-3])
    write_text_dir(tmp_path / "text")
    write_data_dir(tmp_path / "data", tmp_path / "old")
    said = []
    inspect(CONFIG, tmp_path, said.append)
    assert "packed from other text" in said[0] and "cram data" in said[0]
    found = json.loads((tmp_path / "inspect" / "inspect.json").read_text())
    assert found["tokens"]["how"] == "unknown" and "Tokens are unknown" in (tmp_path / "inspect" / "index.html").read_text()


def test_a_run_without_text_says_what_to_do(tmp_path):
    with pytest.raises(CramError, match="cram text"):
        inspect(CONFIG, tmp_path, print)
