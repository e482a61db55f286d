"""One part of the text -> one shard, with a marker that proves it is finished. Parts know nothing of each other.

The marker ``train-00000.json`` is written last. It holds what the shard was made from (the part's and its fates' hashes,
the tokenizer's, the keys of packing), so that neither a torn shard nor one made from something else is ever trusted.

With data.filters.max_tokens_per_char on, the number that decided is kept beside the shard, for ``cram data inspect``:

    train-00000.tokens_per_char.npy    float32 [training documents of the part], those that are dropped included
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterable, NamedTuple, Optional

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from data_prep.artifact import read_manifest
from data_prep.encode import Encoder
from data_prep.errors import DataError
from data_prep.files import file_hash
from data_prep.funnel import SAMPLE_CHARS, SAMPLES
from data_prep.parts import read_marker, write_marker
from data_prep.shard_writer import lay_out, write_array, write_shard
from data_prep.shards import token_dtype
from data_prep.text import read_part
from data_prep.tokenizer import load_tokenizer

FORMAT = 2      # of the shards: raised when the code changes what comes out, so that older markers are not trusted


@dataclass(frozen=True)
class Job:
    """What all parts share. row_tokens: best-fit into rows of so many tokens; None: a stream."""

    text_dir: Path
    tokenizer_dir: Path
    tokenizer_sha256: str
    out: Path
    row_tokens: Optional[int]
    max_tokens_per_char: Optional[float]


class Encoded(NamedTuple):
    """Documents that the token rule keeps. ids [tokens], without markers; counts int64, sizes uint32 [documents]: tokens
    and UTF-8 bytes of each; dropped: {"documents", "bytes", "samples"} of the others; tokens_per_char: float32 [all of
    them], None without the rule."""

    ids: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray
    dropped: dict[str, Any]
    tokens_per_char: Optional[np.ndarray]


class Loaded(NamedTuple):
    """A tokenizer ready for use, with its manifest."""

    manifest: dict[str, Any]
    tokenizer: Tokenizer
    encoder: Encoder


def shard_name(number: int) -> str:
    """train-00007"""
    return f"train-{number:05d}"


def ratio_file(shard: str) -> str:
    """The file with the tokens per character of a shard's documents."""
    return f"{shard}.tokens_per_char.npy"


def pack_part(item: tuple[int, dict[str, Any]], job: Job) -> dict[str, Any]:
    """Pack the training documents of one part, unless a marker proves that it is done; returns the marker.

    item: number of the part and its entry in the text's manifest. Raises DataError for a damaged part or a full disk.
    """
    number, part = item
    path = job.out / f"{shard_name(number)}.json"
    made_from = {"format": FORMAT, "part": part, "text_xxh3_128": _hash(job.text_dir / part["file"]),
                 "fate_xxh3_128": _hash(job.text_dir / f"fate-{number:05d}.npy"),
                 **{key: value for key, value in asdict(job).items() if not isinstance(value, Path)}}
    marker = read_marker(path, made_from)
    if marker is not None:
        return marker
    path.unlink(missing_ok=True)
    marker = {"number": number, **pack_documents(shard_name(number), read_part(job.text_dir, number), job, job.row_tokens)}
    found = marker["documents"] + marker["dropped"]["documents"]
    if found != part["train_documents"]:
        raise DataError(f"{job.text_dir / part['file']}: has {found:,} documents for training, its manifest says "
                        f"{part['train_documents']:,}; run: cram text --force")
    try:
        write_marker(path, made_from, marker)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); make room, then run again") from None
    return marker


def pack_documents(name: str, batches: Iterable[pa.RecordBatch], job: Job, row_tokens: Optional[int],
                   kept: Optional[list[str]] = None) -> dict[str, Any]:
    """Write shard ``name`` and its token counts, if a document is left for it. ``kept`` receives the texts in it."""
    loaded = load(job.tokenizer_dir, job.tokenizer_sha256)
    vocab_size, special = loaded.manifest["vocab_size"], loaded.manifest["special"]
    encoded = encode(batches, loaded, job.max_tokens_per_char, kept)
    marker = {"shard": None, "files": {}, "documents": len(encoded.counts), "padding_tokens": 0,
              "bytes": int(encoded.sizes.sum(dtype=np.int64)), "dropped": encoded.dropped}
    if encoded.tokens_per_char is not None:
        marker["files"] |= write_array(job.out / ratio_file(name), encoded.tokens_per_char)
    if not len(encoded.counts):
        return marker
    counts = np.bincount(encoded.ids, minlength=vocab_size)
    assert not counts[[special[key] for key in ("pad", "cls", "sep", "mask")]].any(), "no document holds a marker"
    layout = lay_out(encoded.ids, encoded.counts, special, row_tokens)
    counts[[special["cls"], special["sep"]]] = len(layout.starts), len(encoded.counts)
    marker["padding_tokens"] = len(layout.tokens) - int(counts.sum())
    marker["shard"], files = write_shard(job.out, name, layout, encoded.sizes, row_tokens)
    marker["files"] |= files | write_array(job.out / f"{name}.counts.npy", counts)
    return marker


def encode(batches: Iterable[pa.RecordBatch], loaded: Loaded, max_tokens_per_char: Optional[float],
           kept: Optional[list[str]] = None) -> Encoded:
    """Tokenise the ``text`` column; documents with more tokens (markers aside) per character are dropped."""
    dtype = token_dtype(loaded.manifest["vocab_size"])
    ids, counts, sizes = [np.zeros(0, dtype)], [np.zeros(0, np.int64)], [np.zeros(0, np.uint32)]
    ratios = [np.zeros(0, np.float32)]
    dropped: dict[str, Any] = {"documents": 0, "bytes": 0, "samples": []}
    for batch in batches:
        column = batch.column("text")
        texts, size_D = column.to_pylist(), pc.binary_length(column).to_numpy(zero_copy_only=False).astype(np.uint32)
        ids_N, count_D = loaded.encoder.encode(texts)
        if loaded.manifest["lossless"] and texts:
            first = loaded.tokenizer.decode(ids_N[:count_D[0]].tolist(), skip_special_tokens=False)
            assert first == texts[0], "decode(encode(text)) == text"
        if max_tokens_per_char is not None:
            chars_D = pc.utf8_length(column).to_numpy(zero_copy_only=False)
            ratios.append((count_D / np.maximum(chars_D, 1)).astype(np.float32))
            keep_D = within(ratios[-1], max_tokens_per_char)
            gone = [texts[index] for index in np.flatnonzero(~keep_D)]
            dropped["documents"] += len(gone)
            dropped["bytes"] += int(size_D[~keep_D].sum(dtype=np.int64))
            dropped["samples"] += [text[:SAMPLE_CHARS] for text in gone[:SAMPLES - len(dropped["samples"])]]
            texts = [texts[index] for index in np.flatnonzero(keep_D)]
            ids_N, count_D, size_D = ids_N[np.repeat(keep_D, count_D)], count_D[keep_D], size_D[keep_D]
        ids.append(ids_N.astype(dtype))
        counts.append(count_D.astype(np.int64))
        sizes.append(size_D)
        if kept is not None:
            kept.extend(texts)
    return Encoded(np.concatenate(ids), np.concatenate(counts), np.concatenate(sizes), dropped,
                   None if max_tokens_per_char is None else np.concatenate(ratios))


def within(tokens_per_char: np.ndarray, threshold: float) -> np.ndarray:
    """bool [documents]: which documents the token rule keeps. Both sides are float32, as the numbers are stored."""
    return tokens_per_char <= np.float32(threshold)


@functools.lru_cache(maxsize=1)
def load(folder: Path, sha256: str) -> Loaded:
    """The tokenizer in ``folder``, once a process: what the encoder remembers serves the parts that follow."""
    manifest = read_manifest(folder, "tokenizer", ("sha256", "type", "vocab_size", "special", "lossless"))
    if manifest["sha256"] != sha256:
        raise DataError(f"{folder}: the tokenizer was replaced while parts were packed; run: cram data")
    tokenizer = load_tokenizer(folder)
    return Loaded(manifest, tokenizer, Encoder(tokenizer, manifest["type"]))


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run: cram text --force") from None
