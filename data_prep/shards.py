"""Reader of packed shards: a memory-mapped stream of tokens with document boundaries.

A token takes 2 bytes, or 4 where the vocabulary is larger than 65,536: ``manifest["dtype"]``. The stream holds pieces.
Packed as a stream, a piece is a document. Packed by best fit, a document longer than a row is several pieces, which
stand in their order but not side by side, and [PAD] fills the rows up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import xxhash

from data_prep.artifact import read_manifest
from data_prep.errors import DataError
from data_prep.files import file_hash

DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
AGAIN = "make it again: cram data --force"


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of the types that holds every token id."""
    return DTYPES["uint16" if vocab_size <= 65_536 else "uint32"]


class Shard(NamedTuple):
    """One shard, opened. tokens [tokens] memory-mapped; starts uint64 [pieces], in tokens of the shard; documents
    uint32 [pieces], the document of each piece; bytes uint32 [documents]."""

    tokens: np.ndarray
    starts: np.ndarray
    documents: np.ndarray
    bytes: np.ndarray


class Shards:
    """One split of what ``pack`` wrote, as one stream.

    Attributes: manifest (dict), dtype, n_tokens, n_documents, vocab_size (int), special ({name: id}), lossless (bool),
    row_tokens (best-fit: tokens a row; None: a stream),
    piece_starts (int64 [pieces + 1], global token positions, the last is n_tokens), piece_documents (int64 [pieces]),
    document_starts (int64 [n_documents + 1], where the first piece of each begins, the last is n_tokens),
    document_bytes (int64 [n_documents], UTF-8 bytes of each text).

    Raises DataError when the manifest is missing or foreign, a file is missing or has the wrong size, or
    (``verify``, which reads everything) a hash differs.
    """

    def __init__(self, folder: Path, split: str, verify: bool = False):
        self.folder = folder = Path(folder)
        self.manifest = read_manifest(folder, "packed data", ("dtype", "vocab_size", "special", "lossless", "splits"))
        if self.manifest["dtype"] not in DTYPES or split not in self.manifest["splits"]:
            raise DataError(f"{folder / 'manifest.json'}: no {' or '.join(DTYPES)} split {split!r}; "
                            f"it has {', '.join(self.manifest['splits'])} of {self.manifest['dtype']}")
        self.dtype = DTYPES[self.manifest["dtype"]]
        self.vocab_size: int = self.manifest["vocab_size"]
        self.special: dict[str, int] = self.manifest["special"]
        self.lossless: bool = self.manifest["lossless"]
        entry = self.manifest["splits"][split]
        self.n_tokens: int = entry["tokens"]
        self.n_documents: int = entry["documents"]
        self.row_tokens: Optional[int] = entry.get("row_tokens")
        shards = [open_shard(folder / shard["file"], shard, self.dtype, verify) for shard in entry["shards"]]
        self._tokens = [shard.tokens for shard in shards]
        self._first = np.cumsum([0, *map(len, self._tokens)])       # first token of each shard, and the end
        first_document = np.cumsum([0, *(len(shard.bytes) for shard in shards)])
        self.document_bytes = _joined([shard.bytes for shard in shards], np.zeros(len(shards), np.int64))
        self.piece_documents = _joined([shard.documents for shard in shards], first_document)
        self.piece_starts = np.append(_joined([shard.starts for shard in shards], self._first), self._first[-1])
        if self._first[-1] != self.n_tokens or first_document[-1] != self.n_documents:
            raise DataError(f"{folder / 'manifest.json'}: its shards do not add up to its {split} split; {AGAIN}")
        firsts = np.unique(self.piece_documents, return_index=True)[1] if self.row_tokens else np.arange(self.n_documents)
        self.document_starts = np.append(self.piece_starts[firsts], self.n_tokens)

    def read(self, start: int, stop: int) -> np.ndarray:
        """dtype [stop - start]: a copy of the tokens start to stop of the stream, across shards."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.n_tokens}")
        out = np.empty(stop - start, self.dtype)
        index = int(np.searchsorted(self._first, start, side="right")) - 1
        done = start
        while done < stop:
            end = min(stop, int(self._first[index + 1]))
            offset = int(self._first[index])
            out[done - start:end - start] = self._tokens[index][done - offset:end - offset]
            done, index = end, index + 1
        return out

    def read_document(self, number: int) -> np.ndarray:
        """dtype [tokens]: [CLS] ... [SEP] of one document, its pieces joined."""
        pieces = [self.read(*self.piece_starts[index:index + 2]) for index in np.flatnonzero(self.piece_documents == number)]
        tokens = np.concatenate([pieces[0], *(piece[1:] for piece in pieces[1:])])      # each piece has its own [CLS]
        return tokens[tokens != self.special["pad"]]

    def token_counts(self) -> np.ndarray:
        """int64 [vocabulary]: how often each token occurs in the training split, padding left out."""
        path = self.folder / "token_counts.npy"
        try:
            counts = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read ({error}); {AGAIN}") from None
        if counts.shape != (self.vocab_size,):
            raise DataError(f"{path}: counts {len(counts):,} tokens of a vocabulary of {self.vocab_size:,}; {AGAIN}")
        return counts


def _joined(arrays: list[np.ndarray], offsets: np.ndarray) -> np.ndarray:
    """int64: the arrays end to end, each with its offset added."""
    return np.concatenate([np.zeros(0, np.int64), *(array.astype(np.int64) + int(offset)
                                                    for array, offset in zip(arrays, offsets))])


def open_shard(path: Path, shard: dict[str, Any], dtype: np.dtype, verify: bool) -> Shard:
    """One shard, checked against its manifest entry: all sizes, and with ``verify`` the content."""
    try:
        tokens = np.memmap(path, dtype, mode="r")
        starts, sizes = np.load(path.with_suffix(".starts.npy")), np.load(path.with_suffix(".bytes.npy"))
        documents = (np.load(path.with_suffix(".documents.npy")) if "pieces" in shard
                     else np.arange(len(starts), dtype=np.uint32))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; {AGAIN}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the shard or its index cannot be read ({error}); {AGAIN}") from None
    expected = shard["tokens"] * dtype.itemsize
    if path.stat().st_size != expected:
        raise DataError(f"{path}: has {path.stat().st_size:,} bytes, its manifest says {expected:,}; {AGAIN}")
    pieces = shard.get("pieces", shard["documents"])
    if not (len(starts) == len(documents) == pieces and len(sizes) == shard["documents"]):
        raise DataError(f"{path}: its index has {len(sizes):,} documents in {len(starts):,} pieces, its manifest says "
                        f"{shard['documents']:,} in {pieces:,}; {AGAIN}")
    index = [starts, sizes, *([documents] if "pieces" in shard else [])]
    if verify and (file_hash(path) != shard["xxh3_128"] or index_hash(*index) != shard["index_xxh3_128"]):
        raise DataError(f"{path}: its content differs from what was written (xxh3-128); {AGAIN}")
    return Shard(tokens, starts, documents, sizes)


def index_hash(*arrays: np.ndarray) -> str:
    """xxh3-128 over the index arrays of a shard."""
    return xxhash.xxh3_128(b"".join(array.tobytes() for array in arrays)).hexdigest()
