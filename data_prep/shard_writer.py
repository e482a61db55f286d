"""Token ids of documents -> the files of one shard: laid out, written durably, described.

    train-00000.bin             tokens, little-endian uint16 (or uint32), documents as [CLS] tokens [SEP]
    train-00000.starts.npy      uint64 [pieces], first token of each piece within the shard
    train-00000.bytes.npy       uint32 [documents], UTF-8 bytes of each document's text
    train-00000.documents.npy   uint32 [pieces], the document of each piece; best-fit only, else piece i is document i

Best-fit: a document longer than a row is cut. Every piece begins with [CLS], so boundaries can be read from the tokens
alone; only the last ends with [SEP]. No row cuts a piece, and [PAD] stands at the end of rows alone.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import xxhash

from data_prep.best_fit import fit_documents
from data_prep.errors import DataError
from data_prep.parts import put_in_place
from data_prep.shards import index_hash


class Layout(NamedTuple):
    """tokens [tokens]; starts int64 [pieces] ascending; documents int64 [pieces], the document of each piece."""

    tokens: np.ndarray
    starts: np.ndarray
    documents: np.ndarray


def lay_out(ids: np.ndarray, counts: np.ndarray, special: dict[str, int], row_tokens: Optional[int]) -> Layout:
    """Documents between their markers: end to end, or with ``row_tokens`` fitted into rows of that length.

    ids: all documents' tokens end to end, without markers, in the type of the shard; counts: int64 [documents].
    """
    content = np.empty(len(ids) + len(counts), ids.dtype)              # what follows [CLS]: tokens and [SEP]
    last_D = np.cumsum(counts + 1) - 1
    inner = np.ones(len(content), bool)
    inner[last_D] = False
    content[last_D], content[inner] = special["sep"], ids
    if row_tokens is None:
        document_P, length_P = np.arange(len(counts)), counts + 2
        start_P = np.cumsum(length_P) - length_P
        size = len(content) + len(counts)
    else:
        pieces = fit_documents(counts + 1, row_tokens)
        start_P = pieces.row * row_tokens + pieces.offset
        order_P = np.lexsort((start_P, pieces.document))               # a document is read from its places, in order
        document_P, length_P, start_P = pieces.document[order_P], pieces.length[order_P], start_P[order_P]
        size = int(pieces.row.max(initial=-1) + 1) * row_tokens
    tokens = np.full(size, special["pad"], ids.dtype)
    tokens[start_P] = special["cls"]
    place = np.repeat(start_P + 1 - (np.cumsum(length_P - 1) - (length_P - 1)), length_P - 1)
    place += np.arange(len(content))
    tokens[place] = content
    order_P = np.argsort(start_P)
    return Layout(tokens, start_P[order_P], document_P[order_P])


def write_shard(folder: Path, name: str, layout: Layout, sizes: np.ndarray, row_tokens: Optional[int]
                ) -> tuple[dict[str, Any], dict[str, int]]:
    """Write the files of shard ``name``; returns its entry in the manifest, and {file: bytes}.

    sizes: uint32 [documents], UTF-8 bytes of the texts. Raises DataError where the disk refuses.
    """
    tokens = layout.tokens.astype(layout.tokens.dtype.newbyteorder("<"), copy=False)
    starts, documents = layout.starts.astype(np.uint64), layout.documents.astype(np.uint32)
    files = {f"{name}.bin": memoryview(tokens).cast("B"), f"{name}.starts.npy": npy(starts), f"{name}.bytes.npy": npy(sizes)}
    entry = {"file": f"{name}.bin", "tokens": len(tokens), "documents": len(sizes), "bytes": int(sizes.sum(dtype=np.int64))}
    index = [starts, sizes]
    if row_tokens is not None:
        files[f"{name}.documents.npy"] = npy(documents)
        index.append(documents)
        entry["pieces"] = len(starts)
    for file, content in files.items():
        write_file(folder / file, content)
    entry |= {"xxh3_128": xxhash.xxh3_128_hexdigest(files[f"{name}.bin"]), "index_xxh3_128": index_hash(*index)}
    return entry, {file: len(content) for file, content in files.items()}


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_array(path: Path, array: np.ndarray) -> dict[str, int]:
    """Write a .npy file durably; returns {file: bytes}."""
    content = npy(array)
    write_file(path, content)
    return {path.name: len(content)}


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write under a temporary name, then put it in place durably. DataError where the disk refuses (full, read-only)."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        put_in_place(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); make room or choose another folder with "
                        f"out=..., then run again: finished parts are kept") from None
