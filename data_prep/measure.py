"""Stage ``measure``: sources -> normalise -> edits -> what every document is like. Numbers only, no decisions.

Writes ``part-00000.parquet`` ...: every document that is not empty, with its statistics, so that thresholds can be
changed without measuring again (stage ``text``). Columns:

    text, origin                            string
    bytes, <statistics>, removed_words      one number a document (statistics.py)
    language, language_probability          with data.identify_language
    contaminated_ngrams, contaminated_by, contaminated_example      with data.decontaminate
    key_high, key_low                       uint64, xxh3-128 of the document for exact duplicates (dedup.py)
    band_00 ...                             uint64, MinHash bands for near-duplicates (minhash.py)

and ``manifest.json``. Held-out files (data.validation_files) come first, as parts of their own. One process measures
a part; memory holds a few parts, whatever the corpus.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep import decontaminate, edits, engine, language, minhash, statistics
from data_prep.artifact import write_manifest
from data_prep.bad_words import BadWords, bad_words
from data_prep.blocks import Block, cut
from data_prep.dedup import document_keys
from data_prep.errors import DataError
from data_prep.files import file_hash
from data_prep.funnel import utf8_bytes
from data_prep.normalise import normalise
from data_prep.parts import clear_unfinished, cut_parts, fingerprint, part_name, put_in_place, read_marker, write_marker
from data_prep.progress import Progress
from data_prep.sources import Source, open_held_out, open_source
from data_prep.sources.batches import limited

ROW_GROUP = 4096        # documents read at a time
EVALUATION_SETS = "evaluation_sets.npz"
ACCOUNT = ("read_documents", "read_bytes", "changed_documents", "normalised_bytes", "edited_documents", "edited_bytes",
           "empty_documents")


class Tools(NamedTuple):
    """What measuring needs beside the text."""

    data: Any                                                   # the configuration section
    evaluation_sets: Optional[decontaminate.EvaluationSets]
    bad_words: Optional[BadWords]


def measure_corpus(data: Any, out: Path, key: str, say: Callable[[str], None]) -> None:
    """Run the stage, or go on with it: read what ``data`` (the configuration section) names, write parts into ``out``.

    key: what the result is named by; a part made under another key is made again. Raises DataError for a missing,
    damaged or unreadable source.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    clear_unfinished(out)
    if data.filters.languages:
        language.check_languages(data.filters.languages)
    source = open_source(data)
    held = open_held_out(data)
    sets = decontaminate.load(data.decontaminate, data.mirror) if data.decontaminate else None
    if sets is not None:
        sets.save(out / EVALUATION_SETS)
    made: list[dict[str, Any]] = []
    work = functools.partial(measure_part, data=data, out=out.absolute(), key=key)
    with Progress(say, "measure", data.max_bytes) as progress:
        waiting = _waiting(held, source, data, out, key, made, progress)
        for _, marker in engine.run(work, waiting, workers=data.workers, engine=data.engine, shared=out.absolute()):
            made.append(marker)
            progress.update(marker["account"]["read_bytes"], source.share_read())
    made.sort(key=lambda marker: marker["number"])
    if held is not None and not any(marker["documents"] for marker in made if marker["held_out"]):
        raise DataError("data.validation_files hold no text (after data.edits, which apply to them as well); name files with "
                        "text, or [] to hold out a share of the documents")
    _remove_others(out, len(made))
    account = Counter(dict.fromkeys(ACCOUNT, 0))
    for marker in made:
        account.update(marker["account"])
    stored = sum(marker["documents"] for marker in made)
    assert account["read_documents"] == account["empty_documents"] + stored, "documents in = stored + empty"
    write_manifest(out, {
        "version": 1, "source": _provenance(source, held), "account": dict(account),
        "edits": edits.rows([marker["edits"] for marker in made]),
        "evaluation_sets": sets.summary() if sets else None,
        "parts": [{name: marker[name] for name in ("file", "documents", "bytes", "held_out")} for marker in made]})
    for remark in [*source.remarks(), *(held.remarks() if held else []), *_remarks(sets)]:
        say(f"measure: {remark}")
    say(f"measure: {account['read_documents']:,} documents read ({account['read_bytes'] / 1e6:,.1f} MB) in {len(made)} part(s)")


def _waiting(held: Optional[Source], source: Source, data: Any, out: Path, key: str, made: list[dict[str, Any]],
             progress: Progress) -> Iterator[tuple[int, bool, str, pa.RecordBatch]]:
    """The parts that are not finished: (number, held out, fingerprint, documents); finished ones go to ``made``."""
    number = 0
    for held_out, batches in ((True, held.batches if held else ()), (False, limited(source.batches, data.max_bytes))):
        for batch in cut_parts(batches, data.part_bytes):
            digest = fingerprint(batch)
            marker = read_marker(out / f"{part_name(number)}.json", _made_from(key, held_out, digest))
            if marker is None:
                yield number, held_out, digest, batch
            else:
                made.append(marker)
                progress.skip(marker["account"]["read_bytes"])
            number += 1


def _provenance(source: Source, held: Optional[Source]) -> dict[str, Any]:
    """Where the text came from, the held-out files, and what was read there that is no UTF-8."""
    odd = {name: each.decoder.summary() for name, each in (("invalid_utf8", source), ("invalid_utf8_held_out", held)) if each}
    return {**source.provenance, **({"validation_files": held.provenance["files"]} if held else {}),
            **{name: summary for name, summary in odd.items() if summary["lines"]}}


def _remarks(sets: Optional[decontaminate.EvaluationSets]) -> list[str]:
    """What is to be known of the evaluation sets."""
    return [f"{entry['set']}: {entry['items']:,} strings, of which {entry['short_items']:,} have fewer than "
            f"{decontaminate.NGRAM} words and cannot be compared" for entry in (sets.summary() if sets else [])]


def _made_from(key: str, held_out: bool, digest: str) -> dict[str, Any]:
    return {"key": key, "held_out": held_out, "input": digest}


def _remove_others(out: Path, parts: int) -> None:
    """Remove parts beyond the last: an earlier attempt saw more documents."""
    for path in out.glob("part-*"):
        if int(path.name[5:10]) >= parts:
            path.unlink()


def measure_part(item: tuple[int, bool, str, pa.RecordBatch], data: Any, out: Path, key: str) -> dict[str, Any]:
    """Measure the documents of one part and write its file and marker; returns the marker."""
    number, held_out, digest, batch = item
    account: Counter[str] = Counter()
    edited = edits.Account()
    texts, originals, origins, removed = _clean(batch, data, account, edited)
    tools = Tools(data, decontaminate.open_sets(out / EVALUATION_SETS) if data.decontaminate else None,
                  bad_words(data.filters.bad_words) if data.filters.bad_words is not None else None)
    columns = {"text": pa.array(texts, pa.string()), "origin": pa.array(origins, pa.string()),
               **_columns(texts, originals, tools), "removed_words": removed}
    table = pa.table(columns)
    path = out / f"{part_name(number)}.parquet"
    temporary = path.with_name(f".{path.name}.tmp")
    codes = {name: "zstd" if name in ("text", "origin") else "lz4" for name in table.column_names}
    pq.write_table(table, temporary, compression=codes, row_group_size=ROW_GROUP, use_dictionary=["origin"])
    put_in_place(temporary, path)
    marker = {"number": number, "file": path.name, "files": {path.name: path.stat().st_size}, "xxh3_128": file_hash(path),
              "held_out": held_out, "documents": len(table), "bytes": int(columns["bytes"].sum()), "account": dict(account),
              "edits": edited.counts}
    write_marker(path.with_suffix(".json"), _made_from(key, held_out, digest), marker)
    return marker


def _clean(batch: pa.RecordBatch, data: Any, account: Counter, edited: edits.Account):
    """(texts, texts before edits, origins, share of words that edits removed) of the documents that are not empty."""
    raw = batch.column("text").to_pylist()
    originals = [normalise(text) for text in edits.repair(raw, data.edits, edited)]
    texts, removed = edits.edit(originals, data.edits, edited)
    sizes = [sum(map(utf8_bytes, each)) for each in (raw, originals, texts)]
    keep = np.fromiter(map(bool, texts), bool, len(texts))
    account.update(read_documents=len(raw), read_bytes=sizes[0], normalised_bytes=sizes[0] - sizes[1],
                   changed_documents=sum(old != new for old, new in zip(raw, originals)), edited_bytes=sizes[1] - sizes[2],
                   edited_documents=sum(old != new for old, new in zip(originals, texts)), empty_documents=int((~keep).sum()))
    chosen = np.flatnonzero(keep)
    return ([texts[index] for index in chosen], [originals[index] for index in chosen],
            batch.column("origin").take(pa.array(chosen)).to_pylist(), removed[keep])


def _columns(texts: list[str], originals: list[str], tools: Tools) -> dict[str, Any]:
    """Everything that is measured, column by column."""
    blocks = []
    first = 0
    for block in cut(texts):
        before = originals[first:first + len(block)]
        blocks.append(_measure_block(block, before, tools))
        first += len(block)
    blocks = blocks or [{name: values[:0] for name, values in _measure_block(Block([""]), [""], tools).items()}]
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    columns |= {name: pa.array(values, pa.string()) for name, values in columns.items() if values.dtype == object}
    keys = document_keys(texts)
    columns |= {"key_high": keys[:, 0], "key_low": keys[:, 1]}
    if tools.data.identify_language:
        codes, probabilities = language.identify(texts)
        columns |= {"language": pa.array(codes, pa.string()), "language_probability": probabilities}
    return columns


def _measure_block(block: Block, before: list[str], tools: Tools) -> dict[str, np.ndarray]:
    """What is measured of one block; ``before``: its texts before edits."""
    changed = any(old is not new and old != new for old, new in zip(before, block.texts))
    columns = {"bytes": (block.ends - block.starts).astype(np.int32),
               **statistics.measure(Block(before) if changed else block, block, tools.bad_words)}
    bands = minhash.bands(block, tools.data.near_dedup)
    columns |= {f"band_{band:02d}": bands[:, band] for band in range(bands.shape[1])}
    if tools.evaluation_sets is not None:
        columns |= decontaminate.columns(block, tools.evaluation_sets)
    return columns
