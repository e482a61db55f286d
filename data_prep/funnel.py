"""The account of documents: what came in, what each rule dropped, what is left. It must add up."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.errors import DataError

SAMPLES = 5
SAMPLE_CHARS = 300
_KEYS = {"installed-docs": "packages", "files": "files", "hub": "dataset"}


def utf8_bytes(text: str) -> int:
    """Size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def account_rows(account: dict[str, int], fates: list[str], fate: np.ndarray, sizes: np.ndarray) -> list[dict[str, Any]]:
    """The account, top to bottom; asserts that documents and bytes add up.

    account: counts of the measure stage; fates: what the codes mean, the first two are kept (train, validation);
    fate: uint8 [documents]; sizes: bytes [documents]. Bytes that normalisation or edits remove (or add: NFC can
    lengthen) are rows of their own, so that bytes read = normalised away + edited away + dropped + kept.
    """
    documents = np.bincount(fate, minlength=len(fates))
    size = [int(sizes[fate == code].sum(dtype=np.int64)) for code in range(len(fates))]
    kept = {"documents": int(documents[:2].sum()), "bytes": sum(size[:2])}
    assert account["read_documents"] == account["empty_documents"] + documents.sum(), "documents in = kept + dropped"
    assert account["read_bytes"] == account["normalised_bytes"] + account["edited_bytes"] + sum(size), \
        "bytes in = normalised + edited + dropped + kept"
    return [
        {"rule": "read", "documents": account["read_documents"], "bytes": account["read_bytes"]},
        {"rule": "normalise", "dropped_documents": 0, "dropped_bytes": account["normalised_bytes"],
         "changed_documents": account["changed_documents"]},
        {"rule": "edits", "dropped_documents": 0, "dropped_bytes": account["edited_bytes"],
         "changed_documents": account["edited_documents"]},
        {"rule": "empty", "dropped_documents": account["empty_documents"], "dropped_bytes": 0},
        *({"rule": name, "dropped_documents": int(documents[code]), "dropped_bytes": size[code]}
          for code, name in enumerate(fates) if code > 1),
        {"rule": "kept", **kept},
    ]


def check_splits(documents: dict[str, int], funnel: list[dict[str, Any]], data: Any) -> None:
    """DataError, with the remedy, when there is no document to train on or none to hold out."""
    read, kept = funnel[0]["documents"], sum(documents.values())
    if read == 0:
        raise DataError(f"the corpus is empty: data.source={data.source} gave no document; check data.{_KEYS[data.source]}")
    dropped = sorted((row for row in funnel if row.get("dropped_documents")), key=lambda row: -row["dropped_documents"])
    causes = ", ".join(f"{row['rule']} {row['dropped_documents']:,}" for row in dropped[:3])
    if kept == 0:
        raise DataError(f"no document is left of {read:,} read (dropped: {causes}); "
                        f"relax data.filters or data.validation_max_bytes, or add text")
    place = f"{kept:,} of {read:,} documents are kept{f' (dropped: {causes})' if causes else ''}"
    surplus = any(row["rule"] == "validation_surplus" for row in dropped)
    token_rule = any(row["rule"] == "max_tokens_per_char" for row in dropped)
    if documents["validation"] == 0 and surplus and not token_rule:
        raise DataError(f"the validation split is empty: {place}; the documents held out are larger than "
                        f"data.validation_max_bytes={data.validation_max_bytes:,}: raise it")
    if data.validation_files:
        if documents["train"] == 0:
            raise DataError(f"the train split is empty: {place}; what resembles data.validation_files is not trained on: "
                            f"hold out other files, or add text")
        return
    for split, other in (("validation", "raise"), ("train", "lower")):
        if documents[split] == 0:
            raise DataError(f"the {split} split is empty: {place}, and data.validation_fraction={data.validation_fraction} of "
                            f"them are held out by hash, near-duplicates together; add documents (at least two that differ are "
                            f"needed), or {other} data.validation_fraction")
