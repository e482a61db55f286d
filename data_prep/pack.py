"""Stage ``data``: text and tokenizer in, uint16 token shards out.

Every document becomes ``[CLS] tokens [SEP]``; [CLS] and [SEP] occur nowhere else, so document boundaries
can be read from the stream. Documents never cross shards. Per split (train, validation):

    train-00000.bin          tokens, little-endian uint16
    train-00000.starts.npy   uint64 [documents], first token of each document within the shard
    train-00000.bytes.npy    uint32 [documents], UTF-8 bytes of each document's text

and token_counts.npy (int64 [vocabulary], training split, all tokens), validation.jsonl (the held-out texts,
in the order of the validation documents), manifest.json. Memory holds one batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import xxhash
from tokenizers import Tokenizer

from data_prep.artifact import read_manifest, write_manifest
from data_prep.errors import DataError
from data_prep.funnel import SAMPLE_CHARS, SAMPLES, utf8_bytes
from data_prep.progress import now_and_then
from data_prep.shards import TOKEN, index_hash
from data_prep.text import check_splits, read_split
from data_prep.tokenizer import load_tokenizer

class ShardWriter:
    """Appends documents to numbered shards of at most ``shard_tokens`` tokens (a longer document has its own)."""

    def __init__(self, folder: Path, split: str, shard_tokens: int):
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._file = None
        self.shards: list[dict[str, Any]] = []
        self.tokens = self.documents = self.bytes = 0

    def add(self, tokens: np.ndarray, size: int) -> None:
        """Append one document: its uint16 tokens, markers included, and the UTF-8 bytes of its text."""
        if self._file is not None and self._position + len(tokens) > self._limit:
            self.close()
        if self._file is None:
            self._name = f"{self._split}-{len(self.shards):05d}"
            self._file = open(self._folder / f"{self._name}.bin", "wb", buffering=1 << 20)
            self._hash, self._position, self._starts, self._bytes = xxhash.xxh3_128(), 0, [], []
        data = tokens.astype(TOKEN, copy=False).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._starts.append(self._position)
        self._bytes.append(size)
        self._position += len(tokens)
        self.tokens, self.documents, self.bytes = self.tokens + len(tokens), self.documents + 1, self.bytes + size

    def close(self) -> None:
        """Finish the current shard: its index files and its entry in ``shards``."""
        if self._file is None:
            return
        self._file.close()
        self._file = None
        starts, sizes = np.array(self._starts, np.uint64), np.array(self._bytes, np.uint32)
        np.save(self._folder / f"{self._name}.starts.npy", starts)
        np.save(self._folder / f"{self._name}.bytes.npy", sizes)
        self.shards.append({"file": f"{self._name}.bin", "tokens": self._position, "documents": len(starts),
                            "xxh3_128": self._hash.hexdigest(), "index_xxh3_128": index_hash(starts, sizes)})

    def summary(self) -> dict[str, Any]:
        """The split's entry in the manifest."""
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes, "shards": self.shards}


def pack(data: Any, text_dir: Path, tokenizer_dir: Path, out: Path, say: Callable[[str], None]) -> None:
    """Run the stage: tokenise both splits and write the shards into ``out``.

    Drops documents with more than ``data.filters.max_tokens_per_char`` tokens per character (token compression,
    Geiping & Goldstein 2023, section 4.4). Raises DataError when that leaves a split empty.
    """
    if data.shard_tokens < 1:
        raise DataError(f"data.shard_tokens is {data.shard_tokens}; it must be 1 or more, as in 100000000")
    out, text_dir = Path(out), Path(text_dir)
    out.mkdir(parents=True, exist_ok=True)
    text = read_manifest(text_dir, "prepared text", ("funnel", "splits", "source"))
    manifest = read_manifest(Path(tokenizer_dir), "tokenizer", ("sha256", "vocab_size", "special", "lossless"))
    tokenizer = load_tokenizer(tokenizer_dir)
    threshold = data.filters.max_tokens_per_char
    dropped, tell = _Dropped(), now_and_then(say)
    counts = np.zeros(manifest["vocab_size"], np.int64)
    splits: dict[str, Any] = {}
    with open(out / "validation.jsonl", "w", encoding="utf-8") as validation:
        for split in ("validation", "train"):
            writer = ShardWriter(out, split, data.shard_tokens)
            for batch in read_split(text_dir, split):
                texts = batch.column("text").to_pylist()
                for document, ids in zip(texts, _encode(tokenizer, texts, manifest)):
                    if threshold is not None and len(ids) - 2 > threshold * len(document):
                        dropped.add(document)
                        continue
                    writer.add(ids, utf8_bytes(document))
                    if split == "validation":
                        validation.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
                    else:
                        counts += np.bincount(ids, minlength=len(counts))
                tell(f"data: {writer.bytes / 1e6:,.0f} of {text['splits'][split]['bytes'] / 1e6:,.0f} MB packed")
            writer.close()
            splits[split] = writer.summary()
    funnel = _funnel(text, splits, dropped if threshold is not None else None)
    check_splits({split: splits[split]["documents"] for split in splits}, funnel, data)
    assert counts.sum() == splits["train"]["tokens"], "every training token is counted"
    np.save(out / "token_counts.npy", counts)
    write_manifest(out, {
        "version": 1, "dtype": "uint16", "vocab_size": manifest["vocab_size"], "special": manifest["special"],
        "lossless": manifest["lossless"], "tokenizer_sha256": manifest["sha256"],
        "splits": {split: splits[split] for split in ("train", "validation")},
        "funnel": funnel, "samples": {**text.get("samples", {}), **dropped.samples(threshold)}, "source": text["source"]})
    train = splits["train"]
    say(f"data: {train['tokens']:,} training tokens in {train['documents']:,} documents, {len(train['shards'])} shard(s), "
        f"{train['bytes'] / train['tokens']:.2f} bytes per token; {splits['validation']['tokens']:,} held out")


def _encode(tokenizer: Tokenizer, texts: list[str], manifest: dict[str, Any]) -> list[np.ndarray]:
    """uint16 arrays ``[CLS] tokens [SEP]`` of the documents; asserts what the format promises."""
    cls, sep = manifest["special"]["cls"], manifest["special"]["sep"]
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    if manifest["lossless"] and texts:
        assert tokenizer.decode(encodings[0].ids, skip_special_tokens=False) == texts[0], "decode(encode(text)) == text"
    documents = []
    for encoding in encodings:
        ids = np.array([cls, *encoding.ids, sep], TOKEN)
        assert np.count_nonzero((ids == cls) | (ids == sep)) == 2, "[CLS] and [SEP] occur at the borders only"
        documents.append(ids)
    return documents


class _Dropped:
    """Documents that the token rule dropped."""

    def __init__(self) -> None:
        self.documents = self.bytes = 0
        self._samples: list[str] = []

    def add(self, text: str) -> None:
        self.documents, self.bytes = self.documents + 1, self.bytes + utf8_bytes(text)
        if len(self._samples) < SAMPLES:
            self._samples.append(text[:SAMPLE_CHARS])

    def samples(self, threshold: float | None) -> dict[str, list[str]]:
        return {} if threshold is None else {"max_tokens_per_char": self._samples}


def _funnel(text: dict[str, Any], splits: dict[str, Any], dropped: _Dropped | None) -> list[dict[str, Any]]:
    """The text stage's funnel with the token rule and the new remainder; asserts that it adds up."""
    *rows, kept = text["funnel"]
    if dropped is not None:
        rows.append({"rule": "max_tokens_per_char", "dropped_documents": dropped.documents, "dropped_bytes": dropped.bytes})
    left = {key: sum(split[key] for split in splits.values()) for key in ("documents", "bytes")}
    for key in ("documents", "bytes"):
        assert kept[key] == left[key] + (getattr(dropped, key) if dropped else 0), f"{key} in = kept + dropped"
    return [*rows, {"rule": "kept", **left}]
