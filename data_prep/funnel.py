"""The account of documents: what came in, what each rule dropped, what is left. It must add up."""

from __future__ import annotations

from typing import Any, Iterable

SAMPLES = 5
SAMPLE_CHARS = 300


def utf8_bytes(text: str) -> int:
    """Size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


class Funnel:
    """Counts of documents and UTF-8 bytes by rule, with the first excerpts each rule dropped.

    Bytes that normalisation removes (or adds: NFC can lengthen) are a row of their own, so that
    bytes read = bytes normalised away + bytes dropped + bytes kept.
    """

    def __init__(self, rules: Iterable[str]):
        self.read_documents = self.read_bytes = 0
        self.kept_documents = self.kept_bytes = 0
        self.changed_documents = self.normalised_bytes = 0
        self.dropped: dict[str, list[int]] = {rule: [0, 0] for rule in rules}
        self.samples: dict[str, list[str]] = {rule: [] for rule in self.dropped}

    def read(self, raw: list[str], normalised: list[str]) -> None:
        """Documents that came in, before and after normalisation."""
        before = sum(map(utf8_bytes, raw))
        self.read_documents += len(raw)
        self.read_bytes += before
        self.normalised_bytes += before - sum(map(utf8_bytes, normalised))
        self.changed_documents += sum(old != new for old, new in zip(raw, normalised))

    def drop(self, rule: str, texts: list[str]) -> None:
        """Documents that a rule dropped."""
        self.dropped[rule][0] += len(texts)
        self.dropped[rule][1] += sum(map(utf8_bytes, texts))
        room = SAMPLES - len(self.samples[rule])
        self.samples[rule] += [text[:SAMPLE_CHARS] for text in texts[:room] if text]

    def keep(self, documents: int, size: int) -> None:
        """Documents that are left, with their bytes."""
        self.kept_documents += documents
        self.kept_bytes += size

    def rows(self) -> list[dict[str, Any]]:
        """The account, top to bottom; asserts that it adds up."""
        documents = sum(count for count, _ in self.dropped.values())
        size = sum(size for _, size in self.dropped.values())
        assert self.read_documents == documents + self.kept_documents, "documents in = kept + dropped"
        assert self.read_bytes == self.normalised_bytes + size + self.kept_bytes, "bytes in = normalised + dropped + kept"
        return [
            {"rule": "read", "documents": self.read_documents, "bytes": self.read_bytes},
            {"rule": "normalise", "dropped_documents": 0, "dropped_bytes": self.normalised_bytes,
             "changed_documents": self.changed_documents},
            *({"rule": rule, "dropped_documents": count, "dropped_bytes": size}
              for rule, (count, size) in self.dropped.items()),
            {"rule": "kept", "documents": self.kept_documents, "bytes": self.kept_bytes},
        ]
