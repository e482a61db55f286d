"""Stage ``data``: text and tokenizer in, token shards out.

Every part of the text becomes one training shard, by itself: parts are packed side by side, and a run that was cut off
goes on with the parts that are not finished. The held-out documents become ``validation-00000``, always a stream.
``out`` holds the files of shard_writer.py and

    train-00000.counts.npy   int64 [vocabulary], tokens of the shard
    train-00000.tokens_per_char.npy  what data.filters.max_tokens_per_char looked at; only where it is on (pack_part.py)
    train-00000.json         the part's marker, written last: what it was made from, its files, what was dropped
    token_counts.npy         int64 [vocabulary], sum over the training shards, padding left out
    validation.jsonl         the held-out texts, in the order of the validation documents
    manifest.json            made from the markers, in order of parts: the same bytes from any number of workers

A process holds the tokens of one part: about 30 bytes for each token of it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

from data_prep import engine
from data_prep.artifact import read_manifest, write_manifest
from data_prep.errors import DataError
from data_prep.files import file_hash
from data_prep.funnel import SAMPLES, check_splits
from data_prep.pack_part import Job, pack_documents, pack_part, shard_name
from data_prep.parts import clear_unfinished
from data_prep.progress import Progress
from data_prep.shard_writer import write_array, write_file
from data_prep.shards import token_dtype
from data_prep.text import read_split


def pack(data: Any, row_tokens: Optional[int], text_dir: Path, tokenizer_dir: Path, out: Path,
         say: Callable[[str], None]) -> None:
    """Run the stage, or go on with it: tokenise both splits and write the shards into ``out``.

    row_tokens: the length of training rows, for data.packing=best-fit (stream: not looked at). Drops documents with more than
    ``data.filters.max_tokens_per_char`` tokens per character (token compression, Geiping & Goldstein 2023,
    section 4.4), but none of held-out files. Raises DataError when that leaves a split empty, or when the disk is full.
    """
    best_fit, threshold = data.packing == "best-fit", data.filters.max_tokens_per_char
    if best_fit and (row_tokens is None or row_tokens < 2):
        raise DataError(f"train.sequence_length is {row_tokens}; data.packing=best-fit needs rows of 2 tokens or more")
    out, text_dir, tokenizer_dir = Path(out).absolute(), Path(text_dir).absolute(), Path(tokenizer_dir).absolute()
    text = read_manifest(text_dir, "prepared text", ("funnel", "splits", "source", "parts"))
    tokenizer = read_manifest(tokenizer_dir, "tokenizer", ("sha256", "type", "vocab_size", "special", "lossless"))
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    clear_unfinished(out)
    job = Job(text_dir, tokenizer_dir, tokenizer["sha256"], out, row_tokens if best_fit else None, threshold)
    validation = _pack_validation(job, judged=not text.get("validation_from_files", False))
    parts = _pack_parts(job, text["parts"], data, text["splits"]["train"]["bytes"], say)
    _remove_others(out, [validation, *parts])
    splits = {"train": _split(parts, job.row_tokens), "validation": _split([validation], None)}
    dropped = _sum_dropped([validation, *parts])
    funnel = _funnel(text, splits, dropped if threshold is not None else None)
    check_splits({split: splits[split]["documents"] for split in splits}, funnel, data)
    train = splits["train"]
    write_array(out / "token_counts.npy", _sum_counts(out, parts, train))
    samples = {"max_tokens_per_char": dropped["samples"]} if threshold is not None else {}
    write_manifest(out, {
        "version": 1, "dtype": token_dtype(tokenizer["vocab_size"]).name,
        **{key: tokenizer[key] for key in ("vocab_size", "special", "lossless")}, "tokenizer_sha256": tokenizer["sha256"],
        "packing": data.packing, "row_tokens": job.row_tokens, "padding_share": train["padding_tokens"] / train["tokens"],
        "config": {"packing": data.packing, "row_tokens": job.row_tokens, "max_tokens_per_char": threshold},
        "text_manifest_xxh3_128": file_hash(text_dir / "manifest.json"), "parts": len(parts),
        "splits": splits, "funnel": funnel, "samples": {**text.get("samples", {}), **samples}, "source": text["source"]})
    padding = f", {train['padding_tokens'] / train['tokens']:.2%} padding" if best_fit else ""
    say(f"data: {train['tokens']:,} training tokens in {train['documents']:,} documents, {len(train['shards'])} shard(s), "
        f"{train['bytes'] / train['tokens']:.2f} bytes per token{padding}; {splits['validation']['tokens']:,} held out")


def _pack_validation(job: Job, judged: bool) -> dict[str, Any]:
    """The held-out documents: one shard, always a stream, and their texts. judged: whether the token rule looks at them."""
    job = job if judged else dataclasses.replace(job, max_tokens_per_char=None)
    texts: list[str] = []
    marker = pack_documents("validation-00000", read_split(job.text_dir, "validation"), job, None, texts)
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    write_file(job.out / "validation.jsonl", "".join(lines).encode())
    return marker


def _pack_parts(job: Job, parts: list[dict[str, Any]], data: Any, total_bytes: int, say: Callable[[str], None]
                ) -> list[dict[str, Any]]:
    """The markers of all parts, in their order."""
    made = []
    with Progress(say, "data", total_bytes) as progress:
        for _, marker in engine.run(functools.partial(pack_part, job=job), list(enumerate(parts)), workers=data.workers,
                                    engine=data.engine, shared=job.out):
            made.append(marker)
            progress.update(marker["bytes"])
    return sorted(made, key=lambda marker: marker["number"])


def _remove_others(out: Path, markers: list[dict[str, Any]]) -> None:
    """Remove files of shards that no marker names: an earlier attempt was made from another text or with other keys."""
    expected = {file for marker in markers for file in marker["files"]}
    expected |= {f"{shard_name(marker['number'])}.json" for marker in markers if "number" in marker}
    for path in [*out.glob("train-*"), *out.glob("validation-*")]:
        if path.name not in expected:
            path.unlink()


def _split(markers: list[dict[str, Any]], row_tokens: Optional[int]) -> dict[str, Any]:
    """A split's entry in the manifest."""
    shards = [marker["shard"] for marker in markers if marker["shard"] is not None]
    return {"tokens": sum(shard["tokens"] for shard in shards), **{
        key: sum(marker[key] for marker in markers) for key in ("documents", "bytes", "padding_tokens")},
        "row_tokens": row_tokens, "shards": shards}


def _sum_counts(out: Path, parts: list[dict[str, Any]], train: dict[str, Any]) -> np.ndarray:
    """int64 [vocabulary]: the training tokens by kind; asserts that each is counted."""
    total = np.sum([np.load(out / f"{shard_name(part['number'])}.counts.npy") for part in parts if part["shard"]], axis=0)
    assert total.sum() == train["tokens"] - train["padding_tokens"], "every training token is counted"
    return total


def _sum_dropped(markers: list[dict[str, Any]]) -> dict[str, Any]:
    """What the token rule dropped in all shards, with the first samples."""
    dropped = [marker["dropped"] for marker in markers]
    return {**{key: sum(each[key] for each in dropped) for key in ("documents", "bytes")},
            "samples": [sample for each in dropped for sample in each["samples"]][:SAMPLES]}


def _funnel(text: dict[str, Any], splits: dict[str, Any], dropped: Optional[dict[str, Any]]) -> list[dict[str, Any]]:
    """The text stage's funnel with the token rule and the new remainder; asserts that it adds up."""
    *rows, kept = text["funnel"]
    if dropped is not None:
        rows.append({"rule": "max_tokens_per_char", "dropped_documents": dropped["documents"],
                     "dropped_bytes": dropped["bytes"]})
    left = {key: sum(split[key] for split in splits.values()) for key in ("documents", "bytes")}
    for key in ("documents", "bytes"):
        assert kept[key] == left[key] + (dropped[key] if dropped else 0), f"{key} in = kept + dropped"
    return [*rows, {"rule": "kept", **left}]
