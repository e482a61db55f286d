"""Reader of packed shards: a memory-mapped stream of tokens with document boundaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xxhash

from data_prep.artifact import read_manifest
from data_prep.errors import DataError
from data_prep.files import file_hash

TOKEN = np.dtype("<u2")


class Shards:
    """One split of what ``pack`` wrote, as one stream.

    Attributes: manifest (dict), n_tokens, n_documents, vocab_size (int), special ({name: id}), lossless (bool),
    document_starts (int64 [n_documents + 1], global token positions, the last is n_tokens),
    document_bytes (int64 [n_documents], UTF-8 bytes of each text).

    Raises DataError when the manifest is missing or foreign, a file is missing or has the wrong size, or
    (``verify``, which reads everything) a hash differs.
    """

    def __init__(self, folder: Path, split: str, verify: bool = False):
        folder = Path(folder)
        self.manifest = read_manifest(folder, "packed data", ("dtype", "vocab_size", "special", "lossless", "splits"))
        if self.manifest["dtype"] != "uint16" or split not in self.manifest["splits"]:
            raise DataError(f"{folder / 'manifest.json'}: no uint16 split {split!r}; "
                            f"it has {', '.join(self.manifest['splits'])}")
        self.vocab_size: int = self.manifest["vocab_size"]
        self.special: dict[str, int] = self.manifest["special"]
        self.lossless: bool = self.manifest["lossless"]
        entry = self.manifest["splits"][split]
        self.n_tokens: int = entry["tokens"]
        self.n_documents: int = entry["documents"]
        self._tokens: list[np.ndarray] = []
        starts, sizes = [], []
        first_token = 0
        for shard in entry["shards"]:
            path = folder / shard["file"]
            tokens, shard_starts, shard_sizes = _open_shard(path, shard, verify)
            self._tokens.append(tokens)
            starts.append(shard_starts.astype(np.int64) + first_token)
            sizes.append(shard_sizes.astype(np.int64))
            first_token += len(tokens)
        self.document_starts = np.concatenate([*starts, np.array([first_token], np.int64)])
        self.document_bytes = np.concatenate([*sizes, np.zeros(0, np.int64)])
        if first_token != self.n_tokens or len(self.document_bytes) != self.n_documents:
            raise DataError(f"{folder / 'manifest.json'}: its shards do not add up to its {split} split; "
                            f"make it again: cram data --force")
        self._first = np.cumsum([0, *map(len, self._tokens)])       # first token of each shard, and the end

    def read(self, start: int, stop: int) -> np.ndarray:
        """uint16 [stop - start]: a copy of the tokens start to stop of the stream, across shards."""
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start} to {stop} of a stream of {self.n_tokens}")
        out = np.empty(stop - start, np.uint16)
        index = int(np.searchsorted(self._first, start, side="right")) - 1
        done = start
        while done < stop:
            end = min(stop, int(self._first[index + 1]))
            offset = int(self._first[index])
            out[done - start:end - start] = self._tokens[index][done - offset:end - offset]
            done, index = end, index + 1
        return out


def _open_shard(path: Path, shard: dict, verify: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens memory-mapped, document starts, document bytes) of one shard, checked against its manifest entry."""
    again = "make it again: cram data --force"
    try:
        tokens = np.memmap(path, TOKEN, mode="r")
        starts = np.load(path.with_suffix(".starts.npy"))
        sizes = np.load(path.with_suffix(".bytes.npy"))
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: missing; {again}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: the shard or its index cannot be read ({error}); {again}") from None
    if len(tokens) != shard["tokens"] or path.stat().st_size != shard["tokens"] * TOKEN.itemsize:
        raise DataError(f"{path}: has {path.stat().st_size:,} bytes, its manifest says "
                        f"{shard['tokens'] * TOKEN.itemsize:,}; {again}")
    if not len(starts) == len(sizes) == shard["documents"]:
        raise DataError(f"{path}: its index has {len(starts):,} documents, its manifest says {shard['documents']:,}; {again}")
    if verify and (file_hash(path) != shard["xxh3_128"] or index_hash(starts, sizes) != shard["index_xxh3_128"]):
        raise DataError(f"{path}: its content differs from what was written (xxh3-128); {again}")
    return tokens, starts, sizes


def index_hash(starts: np.ndarray, sizes: np.ndarray) -> str:
    """xxh3-128 over the two index arrays of a shard."""
    return xxhash.xxh3_128(starts.tobytes() + sizes.tobytes()).hexdigest()
