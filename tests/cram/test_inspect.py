"""The page and the board of ``cram data inspect`` show what the inspection found, and nothing in a document is obeyed."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cram.inspect import inspect
from cram.inspect_figures import histogram
from tests.data_prep.decided import HEBREW, LATE, SCRIPT, documents, write_data_dir, write_text_dir

VOID = {"meta", "br", "img", "link", "wbr"}
NAME = "a <b> run"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    links = tmp_path_factory.mktemp("run")
    hostile = [(SCRIPT * 9, "<script>origin</script>", fate) for fate in ("train", "min_chars", "validation")]
    rows = [(HEBREW, "https://he.example/", "validation"), *hostile, *documents()[4:]]
    write_text_dir(links / "text", rows)
    write_data_dir(links / "data", links / "text")
    said = []
    look(links, said.append)
    return links / "inspect", said


def look(links, say):
    inspect(NAME, 0, {stage: links / stage for stage in ("text", "data")}, links / "inspect", say)


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
    look(run[0].parent, lambda line: None)
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


def test_shares_of_all_fates_make_the_whole(run, page):
    found = json.loads((run[0] / "inspect.json").read_text())
    words = " ".join("".join(Tags(page).words).split())
    groups = re.findall(r"([a-z_]+): ([\d,]+) documents? \(([\d.]+)%\)", words)
    assert LATE in {fate for fate, *_ in groups}
    assert sum(int(count.replace(",", "")) for _, count, _ in groups) == found["documents"]
    assert abs(sum(float(share) for *_, share in groups) - 100) < 1
    kept = sum(int(count) for fate, count, _ in groups if fate in ("train", "validation"))
    assert kept == found["funnel"][-1]["documents"]


def test_steps_with_odd_names_are_explained_where_they_did_something(page):
    words = "".join(Tags(page).words)
    assert "validation_surplus are held-out documents beyond data.validation_max_bytes: never trained on." in words
    assert "max_tokens_per_char is judged last" in words and "edit: blank" not in words


def test_on_a_narrow_screen_every_cell_of_the_funnel_brings_the_name_of_its_column(page):
    funnel = page[page.index('<section id="funnel">'):]
    rows = re.findall(r"<tr>(.*?)</tr>", funnel[funnel.index('<table class="stacked">'):funnel.index("</table>")])
    header = re.findall(r"<th[^>]*>(.*?)</th>", rows[0])
    assert header[0] == "step" and len(header) == 8
    for row in rows[1:]:
        assert re.findall(r'<td[^>]* data-is="([^"]*)"', row) == header
    assert "content: attr(data-is)" in page


def test_with_the_text_alone(tmp_path):
    write_text_dir(tmp_path / "text")
    inspect(NAME, 0, {"text": tmp_path / "text"}, tmp_path / "runs" / "inspect", lambda line: None)
    found = json.loads((tmp_path / "runs" / "inspect" / "inspect.json").read_text())
    assert found["tokens"]["how"] == "unknown"
    assert "Tokens are unknown" in (tmp_path / "runs" / "inspect" / "index.html").read_text()
