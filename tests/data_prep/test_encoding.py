"""Broken encodings: bytes that are no UTF-8 (data.invalid_utf8) and text decoded wrongly before (data.edits.mojibake)."""

import itertools
import json
import lzma
import sys
import time

import ftfy
import pytest
from ftfy.badness import is_bad
from hypothesis import given, settings, strategies as st

from cram.schema import Data, Edits
from data_prep import mojibake
from data_prep.edits import Account, repair
from data_prep.errors import DataError
from data_prep.sources import open_source
from data_prep.sources.files import read_files
from data_prep.sources.streams import TextDecoder, lines


def read(path, policy):
    decoder = TextDecoder(policy)
    texts = [text for batch in read_files([path], "text", decoder) for text in batch.column("text").to_pylist()]
    return texts, decoder.summary()


# ---- data.invalid_utf8 -----------------------------------------------------------------------------------------------

CLEAN = {"lines": 0, "replacement_characters": 0, "first": None}


@pytest.mark.parametrize("policy", ["refuse", "replace", "cp1252"])
def test_valid_utf8_is_read_the_same_under_every_policy(tmp_path, policy):
    text = "caf\u00e9 \U0001f600 \ufffd \u05e9\u05dc\u05d5\u05dd \x00"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")
    assert read(tmp_path / "a.txt", policy) == ([text], CLEAN) == read(tmp_path / "a.jsonl", policy)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.xz"])
def test_txt(tmp_path, name):
    content = "fine \u00e9 \ufffd\n".encode() + b"caf\xe9 \x93quoted\x94 \x81\nna\xefve \xef\xbf\xbd\n"
    path = tmp_path / name
    path.write_bytes(lzma.compress(content) if name.endswith("xz") else content)
    with pytest.raises(DataError, match=r"line 2, byte 15: invalid UTF-8 \(0xe9\).*set data.invalid_utf8 to replace or cp1252"):
        read(path, "refuse")
    place = f"{path}: line 2"
    as_cp1252 = "fine \u00e9 \ufffd\ncaf\u00e9 \u201cquoted\u201d \ufffd\nna\u00efve \u00ef\u00bf\u00bd\n"
    assert read(path, "cp1252") == ([as_cp1252], {"lines": 2, "replacement_characters": 1, "first": place})
    assert read(path, "replace") == (["fine \u00e9 \ufffd\ncaf\ufffd \ufffdquoted\ufffd \ufffd\nna\ufffdve \ufffd\n"],
                                     {"lines": 2, "replacement_characters": 5, "first": place})


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "\u00e9"}\n'.encode() + '{"text": "na\u00efve \u2014 \u201cyes\u201d"}\n'.encode("cp1252")
                     + b'\n{"text": "z"}')
    assert read(path, "cp1252") == (["\u00e9", "na\u00efve \u2014 \u201cyes\u201d", "z"],
                                    {"lines": 1, "replacement_characters": 0, "first": f"{path}: line 2"})
    texts, summary = read(path, "replace")
    assert texts == ["\u00e9", "na\ufffdve \ufffd \ufffdyes\ufffd", "z"] and summary["replacement_characters"] == 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=8))
def test_any_bytes_can_be_read_and_lines_stay_apart(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("bytes") / "a.txt"
    path.write_bytes(b"\n".join(rows))
    for policy, encoding in (("replace", "utf-8"), ("cp1252", "cp1252")):
        texts, summary = read(path, policy)
        expected, broken = [], 0
        for line in rows:
            try:
                expected.append(line.decode())
            except UnicodeDecodeError:
                expected.append(line.decode(encoding, "replace"))
                broken += 1
        assert "".join(texts) == "\n".join(expected)
        assert summary["lines"] == broken


def test_a_long_run_of_bytes_that_continue_nothing(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\x80" * 2_000_000)
    start = time.process_time()
    texts, summary = read(tmp_path / "a.txt", "replace")
    assert sum(map(len, texts)) == summary["replacement_characters"] == 2_000_000
    assert "".join(read(tmp_path / "a.txt", "cp1252")[0]) == "\u20ac" * 2_000_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("size", range(1, 12))
def test_pieces_of_a_line_are_cut_between_characters(tmp_path, size):
    text = "a\U0001f600\u00e9\u20ac\u05e9\U0001f600\U0001f600\nb\u20ac"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = list(lines(tmp_path / "a.txt", piece_bytes=size))
    assert "".join(piece.decode() for _, _, piece in pieces) == text
    assert [offset for _, offset, _ in pieces] == [0, *itertools.accumulate(len(piece) for _, _, piece in pieces)][:-1]


@pytest.mark.parametrize("policy", ["replace", "cp1252"])
def test_remarks_name_the_key_and_the_first_place(tmp_path, policy):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "caf\xe9"}\n' * 2)
    (tmp_path / "b.txt").write_bytes(b"fine\ncaf\xe9")
    for names, remark in ((["b.txt"], "1 line was no UTF-8 (data.invalid_utf8={}), the first {}/b.txt: line 2"),
                          (["a.jsonl", "b.txt"], "3 lines were no UTF-8 (data.invalid_utf8={}), the first {}/a.jsonl: line 1")):
        source = open_source(Data(source="files", files=[str(tmp_path / name) for name in names], invalid_utf8=policy))
        assert source.remarks() == []
        list(source.batches)
        assert source.remarks() == [remark.format(policy, tmp_path)]


def test_unknown_policy_is_a_mistake_of_the_caller():
    with pytest.raises(KeyError):
        TextDecoder("ignore")


# ---- data.edits.mojibake ---------------------------------------------------------------------------------------------

WORDS = ["caf\u00e9", "\u00fcber", "\u201cquoted\u201d", "it\u2019s", "\u2014", "\u20ac5", "\U0001f600", "Fran\u00e7ois",
         "\u0141\u00f3d\u017a", "voil\u00e0 le", "ma\u00f1ana",
         "\u041c\u043e\u0441\u043a\u0432\u0430", "\u0391\u03b8\u03ae\u03bd\u03b1", "\u5317\u4eac", "plain", "\u00c5rhus",
         "S\u00e3o", "\u00a3", "\u2026", "\u00bd"]


def mended(text):
    return repair([text], Edits(mojibake=True), Account())[0]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1251", "cp1250", "mac_roman", "cp437"])
def test_repairs_what_ftfy_repairs(encoding):
    """The trigger lets nothing pass that ftfy would repair, however short the line."""
    for word in WORDS:
        try:
            broken = f"The {word} of it".encode().decode(encoding)
        except UnicodeDecodeError:
            continue
        assert mended(broken) == ftfy.fix_encoding(broken), (word, broken)


def test_repairs_line_by_line_and_counts():
    account = Account()
    texts = ["caf\u00c3\u00a9\nfine caf\u00e9\n\u5317\u4eac\ndon\u00e2\u20ac\u2122t", "plain", "\u00dcber caf\u00e9"]
    result = repair(texts, Edits(mojibake=True), account)
    assert result == ["caf\u00e9\nfine caf\u00e9\n\u5317\u4eac\ndon\u2019t", "plain", "\u00dcber caf\u00e9"]
    assert account.counts == {"mojibake": {"documents": 1, "items": 2, "bytes": 2 + 5}}
    assert result[1] is texts[1] and result[2] is texts[2]
    assert repair(result, Edits(mojibake=True), Account()) == result


@pytest.mark.parametrize("text", ["", "plain", "Caf\u00e9 \u00dcber stra\u00dfe", "\u201cIt\u2019s\u2026\u201d \u2014 \u20ac5",
                                  "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd", "\u5317\u4eac\u6b22\u8fce\u4f60",
                                  "\U0001f600\U0001f1e9\U0001f1ea",
                                  "\u041c\u043e\u0441\u043a\u0432\u0430", "\x00", "S\u00c3O PAULO \u00c2NGELA"])
def test_sound_text_stays(text):
    assert mended(text) == text


@settings(max_examples=300, deadline=None)
@given(st.text("a \u00e9\u00c3\u00c2\u00a9\u00e2\u20ac\u2122\u0153\u00a0\u00b0\u00ef\u00bf\u00bd\u0440\u0421\u0412"
               "\u221a\u00ac\ufb01\u0161\u0178\n", max_size=12))
def test_never_more_and_hardly_less_than_ftfy(text):
    """What is handed over is repaired as ftfy does; what is not has no two suspicious characters side by side."""
    for line, result in zip(text.split("\n"), mended(text).split("\n")):
        assert result == ftfy.fix_encoding(line) or result == line and not mojibake._TRIGGER.search(line) and is_bad(line)


def test_absent_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(DataError, match=r"data\.edits\.mojibake needs ftfy.*pip install 'cram-lm\[web\]'"):
        repair(["caf\u00c3\u00a9"], Edits(mojibake=True), Account())
