"""The funnel as a person reads it: what is left after each step, in documents, bytes and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Optional

from data_prep.artifact import read_manifest
from data_prep.errors import DataError
from data_prep.text import read_split
from data_prep.tokenizer import load_tokenizer

ENCODED_BYTES = 1_000_000                   # held-out text that bytes per token are measured on


def read_packed(data_dir: Path, text: dict[str, Any]) -> dict[str, Any]:
    """The data stage's manifest, which must go on from the text's funnel."""
    packed = read_manifest(Path(data_dir), "packed data", ("funnel", "splits", "config"))
    if packed["funnel"][:len(text["funnel"]) - 1] != text["funnel"][:-1]:
        raise DataError(f"{data_dir}: was packed from other text than this run's; run: cram data")
    return packed


def bytes_per_token(text_dir: Path, tokenizer_dir: Optional[Path], packed: Optional[dict]) -> tuple[Optional[float], str]:
    """Bytes of text a token, and how it is known; None where there is no tokenizer."""
    if packed is not None:
        size, tokens = (sum(split[unit] for split in packed["splits"].values()) for unit in ("bytes", "tokens"))
        return size / max(tokens, 1), "packed"
    if tokenizer_dir is None:
        return None, "unknown"
    tokenizer, size, tokens = load_tokenizer(tokenizer_dir), 0, 0
    for batch in read_split(text_dir, "validation"):
        texts = batch.column("text").to_pylist()
        size += sum(len(text.encode()) for text in texts)
        tokens += sum(len(each.ids) for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        if size >= ENCODED_BYTES:
            break
    return size / max(tokens, 1), "held-out text"


def funnel_steps(text: dict[str, Any], packed: Optional[dict[str, Any]], rate: Optional[float]) -> list[dict[str, Any]]:
    """What is left after each step: step, documents, bytes, tokens, and what it took: dropped_documents, dropped_bytes.

    tokens is exact where the text was packed, else bytes / rate, else None. changed: documents that a step altered.
    """
    steps: list[dict[str, Any]] = []
    documents = size = 0
    for row in _rows(text, packed):
        taken, lost = row.get("dropped_documents", 0), row.get("dropped_bytes", 0)
        if "documents" in row:
            assert not steps or (documents, size) == (row["documents"], row["bytes"]), "the funnel adds up"
            documents, size = row["documents"], row["bytes"]
        documents, size = documents - taken, size - lost
        steps.append({"step": row["rule"], "documents": documents, "bytes": size, "dropped_documents": taken,
                      "dropped_bytes": lost, "changed": row.get("changed_documents"),
                      "tokens": None if rate is None else round(size / rate), "exact": False})
    if packed is not None:
        steps[-1] |= {"tokens": sum(split["tokens"] for split in packed["splits"].values()), "exact": True}
    return steps


def _rows(text: dict[str, Any], packed: Optional[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The funnel's rows, with one for each edit in the place of all edits."""
    for row in (packed or text)["funnel"]:
        if row["rule"] != "edits" or not text["edits"]:
            yield row
            continue
        for edit in text["edits"]:
            yield {"rule": f"edit: {edit['edit']}", "dropped_bytes": edit["bytes"], "changed_documents": edit["documents"]}
        if left := row["dropped_bytes"] - sum(edit["bytes"] for edit in text["edits"]):
            yield {"rule": "edits, other", "dropped_bytes": left}
