"""Local files: every kind and compression gives the same documents; bad input names the place and the remedy."""

import gzip
import json
import lzma
import os
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, strategies as st

from cram.schema import Data
from data_prep.errors import DataError
from data_prep.sources import batches as cutting, files, open_held_out, streams
from data_prep.sources.batches import batched, limited, pieces
from data_prep.sources.files import expand, read_files

TEXTS = ["first\ndocument", "h\u00e9llo \U0001f600 \u05e9\u05dc\u05d5\u05dd", "", "x" * 300_000, "last"]
ZSTD = zstandard.ZstdCompressor(write_checksum=True)
COMPRESS = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: ZSTD.compress(content[:1000]) + ZSTD.compress(content[1000:]),    # two frames, as parallel
}                                                                                             # compressors write


def documents(*paths, text_field="text"):
    return [text for batch in read_files(list(paths), text_field) for text in batch.column("text").to_pylist()]


def jsonl(texts):
    return "".join(json.dumps({"n": 1, "text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_jsonl_and_txt_read_the_same_plain_and_compressed(tmp_path, suffix):
    compress = COMPRESS.get(suffix, lambda content: content)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(jsonl(TEXTS)))
    (tmp_path / f"b.txt{suffix}").write_bytes(compress(TEXTS[1].encode()))
    assert documents(tmp_path / f"a.jsonl{suffix}", tmp_path / f"b.txt{suffix}") == [*TEXTS, TEXTS[1]]


@pytest.mark.parametrize("column", [pa.array(TEXTS), pa.array(TEXTS, pa.large_string()), pa.array(TEXTS).dictionary_encode()])
def test_parquet(tmp_path, column):
    pq.write_table(pa.table({"n": range(len(TEXTS)), "text": column}), tmp_path / "a.parquet", row_group_size=2)
    assert documents(tmp_path / "a.parquet") == TEXTS


def test_null_is_an_empty_document_and_half_a_surrogate_pair_is_replaced(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": null}\n\n{"text": "a\\ud83d b\\ud83d\\ude00"}', encoding="utf-8")
    assert documents(tmp_path / "a.jsonl") == ["", "a\ufffd b\U0001f600"]


def test_origin_names_file_and_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n')
    batch, = read_files([tmp_path / "a.jsonl"], "text")
    assert batch.column("origin").to_pylist() == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3"]


@pytest.mark.parametrize("paragraph", ["word " * 2000 + "\n\n", "word " * 10 + "\n", "\u00e9\U0001f600" * 1000])
def test_long_txt_is_cut_without_loss(tmp_path, paragraph):
    text = paragraph * (1_500_000 // len(paragraph))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = documents(tmp_path / "a.txt")
    assert "".join(pieces) == text
    assert len(pieces) > 5 and max(map(len, pieces)) <= 5 * files.PIECE_CHARS
    if "\n\n" in paragraph:
        assert all(piece.endswith("\n\n") for piece in pieces)


def test_txt_up_to_a_million_characters_is_one_document(tmp_path):
    text = "line of text\n\n" * (1_000_000 // 14)
    (tmp_path / "a.txt").write_text(text)
    assert documents(tmp_path / "a.txt") == [text]


def test_batches_are_small_and_limited_by_bytes():
    batches = list(batched((f"\u00e9{number}", "o") for number in range(5000)))
    assert [len(batch) for batch in batches] == [2048, 2048, 904]
    assert len(list(batched(("x" * 1_000_000, "o") for _ in range(8)))) == 2
    sizes = [len(f"\u00e9{number}".encode()) for number in range(5000)]
    for limit in (1, 3, 100, 20_000, 10**9):
        got = sum(len(batch) for batch in limited(batches, limit))
        assert sum(sizes[:got]) >= min(limit, sum(sizes)) and (got == 1 or sum(sizes[:got - 1]) < limit)
    assert sum(len(batch) for batch in limited(batches, None)) == 5000


@given(st.text("ab \n\u00e9", max_size=300), st.integers(2, 40), st.integers(0, 20))
def test_pieces_join_to_the_whole(text, longest, window):
    found = pieces(text, longest, window)
    count = max(-(-len(text) // longest), 1)
    assert "".join(found) == text and len(found) == count
    assert count == 1 or all(longest // 2 <= len(piece) <= longest + window for piece in found)
    at = 0
    for number, piece in enumerate(found[:-1], 1):
        at += len(piece)
        boundary = -(-len(text) * number // count)
        start = max(boundary - window, at - len(piece) + longest // 2)
        rest = text[at:boundary]                # passed over between the cut and the boundary
        assert start <= at <= boundary and "\n" not in rest and (piece[-1] == "\n" or " " not in rest)
        assert at == boundary or piece[-1] == "\n" or piece[-1] == " " and "\n" not in text[start:boundary]


def test_a_giant_document_comes_in_pieces(tmp_path):
    """Each of more than a million characters, so that one rule (max_chars) judges them alike."""
    texts = ["short", "sentence after sentence. " * 180_000, "x" * 2_000_000, "line\n" * 400_001, "last"]
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    rows = [row for batch in read_files([tmp_path / "a.jsonl"], "text") for row in batch.to_pylist()]
    assert [row["origin"].partition("jsonl:")[2] for row in rows] == ["1", "2#1", "2#2", "2#3", "3", "4#1", "4#2", "5"]
    giant = [row["text"] for row in rows if "2#" in row["origin"]]
    assert "".join(giant) == texts[1] and all(piece.endswith(" ") for piece in giant)
    assert "".join(row["text"] for row in rows) == "".join(texts)
    assert all(cutting.LONGEST_CHARS // 2 < len(row["text"]) < 2_010_000 for row in rows if "#" in row["origin"])


def test_glob_is_sorted_and_each_file_once(tmp_path):
    for name in ("b.txt", "a.txt", "c.jsonl"):
        (tmp_path / name).write_text("x")
    pattern = str(tmp_path / "*.txt")
    assert [path.name for path in expand([pattern, str(tmp_path / "c.jsonl"), pattern])] == ["a.txt", "b.txt", "c.jsonl"]


# ---- bad input -------------------------------------------------------------------------------------------------------

def refused(path, message, text_field="text"):
    with pytest.raises(DataError, match=message) as error:
        documents(path, text_field=text_field)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_files():
    with pytest.raises(DataError, match=r"data\.files: no such file: nowhere\.txt .*correct the path"):
        expand(["nowhere.txt"])
    with pytest.raises(DataError, match=r"data\.files: no file matches nowhere/\*\.jsonl"):
        expand(["nowhere/*.jsonl"])
    with pytest.raises(DataError, match=r"data\.files is empty; name files"):
        expand([])
    with pytest.raises(DataError, match=r"^data\.validation_files: no such file: nowhere\.txt"):
        expand(["nowhere.txt"], "data.validation_files")
    with pytest.raises(DataError, match=r"^data\.validation_files: no file matches nowhere\*"):
        open_held_out(Data(validation_files=["nowhere*"]))


def test_file_that_vanishes(tmp_path):
    refused(tmp_path / "gone.jsonl", "no such file; check the path")


@pytest.mark.parametrize("name", ["a.csv", "a", "a.parquet.gz", ".gz", "a.xz"])
def test_unknown_kind(tmp_path, name):
    (tmp_path / name).write_text("x")
    refused(tmp_path / name, r"unknown kind of file; known are \.txt and \.jsonl")


def test_folder(tmp_path):
    (tmp_path / "texts.txt").mkdir()
    refused(tmp_path / "texts.txt", r"is a folder; name the files in it, as in .*/\*\.jsonl")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_invalid_utf8_names_line_and_byte(tmp_path, name):
    (tmp_path / name).write_bytes('{"text": "h\u00e9"}\n'.encode() + b'{"text": "caf\xe9"}\n')
    refused(tmp_path / name, r"line 2, byte 29: invalid UTF-8 \(0xe9\); convert the file, as in: iconv")


def test_invalid_utf8_at_the_end_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_bytes("fine \u00e9".encode()[:-1])
    refused(tmp_path / "a.txt", r"line 1, byte 5: invalid UTF-8 \(0xc3\)")


def test_line_that_is_no_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": oops}\n')
    refused(tmp_path / "a.jsonl", "line 2 is no JSON")


@pytest.mark.parametrize("line, kind", [('["a"]', "list"), ('"a"', "str"), ("3", "int")])
def test_line_that_is_no_object(tmp_path, line, kind):
    (tmp_path / "a.jsonl").write_text(line)
    refused(tmp_path / "a.jsonl", f"line 1 is a JSON {kind}, not an object")


def test_line_nested_too_deeply(tmp_path):
    (tmp_path / "a.jsonl").write_text("[" * 200_000)
    refused(tmp_path / "a.jsonl", r"line 1 is no JSON \(nested too deeply\)")


def test_line_too_long(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n{"text": "' + "x" * 1000)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 500)
    monkeypatch.setattr(streams.lines, "__defaults__", (500, None))
    refused(tmp_path / "a.jsonl", "line 2 is longer than 500 bytes; jsonl has one document a line")


def test_missing_field_lists_those_present(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"title": "b", "body": "c"}\n')
    refused(tmp_path / "a.jsonl", r"line 2: no field 'text'; the fields are 'title', 'body': set data\.text_field")
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"no field 'text'; the fields are 'body': set data\.text_field")


def test_field_of_another_type(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    refused(tmp_path / "a.jsonl", "line 2: the field 'text' holds int, not a string")
    pq.write_table(pa.table({"text": [["a"]]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", "row 0: the field 'text' holds list, not a string")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_truncated_and_damaged_archives(tmp_path, suffix):
    # Random text, so that half of the archive holds some whole lines.
    content = COMPRESS[suffix](jsonl([os.urandom(2000).hex() for _ in range(200)]))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(content[:len(content) // 2])
    refused(path, r"truncated after line \d+: the compressed file ends too early; copy it again")
    path.write_bytes(content[:-1] if suffix != ".zst" else content[:-3])
    refused(path, "truncated after line")
    path.write_bytes(b"this is plain text, whatever its name says")
    refused(path, rf"damaged {re.escape(suffix)} file after line 1 \(.*\); copy it again")
    flipped = bytearray(content)
    flipped[len(flipped) // 2] ^= 0xFF
    path.write_bytes(bytes(flipped))
    with pytest.raises(DataError):
        documents(path)


def test_truncated_and_damaged_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [os.urandom(50).hex() for _ in range(1000)]}), path)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(path, r"damaged or no parquet file, after row 0 \(.*\); copy it again")
    path.write_bytes(b"PAR1 nothing")
    refused(path, "damaged or no parquet file")


def test_invalid_utf8_in_parquet_names_the_row(tmp_path):
    raw = pa.array([b"fine", b"caf\xe9"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"row 1, byte 3: invalid UTF-8 in the column 'text'")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt.gz", "a.parquet"])
def test_permission_denied(tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_text("x")

    def deny(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    # chmod does not stop a superuser, and tests often run as one.
    monkeypatch.setattr("builtins.open", deny)
    monkeypatch.setattr(pq, "ParquetFile", deny)
    refused(path, "permission denied; allow reading with: chmod")
