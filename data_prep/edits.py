"""What changes the text of a document before it is judged (data.edits). All is off unless asked for; all is counted.

The order is fixed: ``repair`` (mojibake, before the text is normalised), then ``edit``: e-mail addresses, IP
addresses, citation marks (masking.py), then whole lines (lines.py), in the order of ``LINE_RULES``; a line counts under
the first rule that removes it. C4's rules come from Raffel et al. 2020, section 2.2; the others follow the line-wise
corrections of RefinedWeb (Penedo et al. 2023, appendix G.2) and their counterparts in DCLM (Li et al. 2024).

As in C4, C4's line rules also strip the lines they leave, and those that ask for words or punctuation remove blank
lines; both count under "blank". The same text is left as by datatrove's C4QualityFilter, but for citations: it counts a
line's words with them, as "[1]", and looks at the end of the line when they have left a space there, so that "Rain fell.
[1]" goes for want of a full stop. Here they are gone before lines are judged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable

import numpy as np

from data_prep import masking
from data_prep.blocks import Block, cut
from data_prep.funnel import utf8_bytes
from data_prep.lines import Lines
from data_prep.mojibake import repair_text

POLICY = (b"terms of use", b"privacy policy", b"cookie policy", b"uses cookies", b"use of cookies", b"use cookies")
C4_LINE_RULES = ("max_line_word_chars", "terminal_punctuation", "min_line_words", "javascript_lines", "policy_lines")


@dataclass
class Account:
    """What the edits did: ``counts[edit]`` = {"documents": changed, "items": lines or marks, "bytes": fewer bytes}.

    JSON-able. The bytes of all edits add up to the bytes the text lost (negative where a replacement is longer).
    """

    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, edit: str, documents: int, items: int, bytes: int) -> None:
        """Count what one edit did to some documents."""
        row = self.counts.setdefault(edit, {"documents": 0, "items": 0, "bytes": 0})
        for name, value in (("documents", documents), ("items", items), ("bytes", bytes)):
            row[name] += int(value)


def rows(counts: Iterable[dict[str, dict[str, int]]]) -> list[dict[str, Any]]:
    """The accounts of all parts as one table, [{"edit", "documents", "items", "bytes"}], in the order of the edits."""
    total: dict[str, Counter[str]] = {}
    for account in counts:
        for edit, row in account.items():
            total.setdefault(edit, Counter()).update(row)
    order = ["mojibake", *TEXT_EDITS, *LINE_RULES, "blank"]
    return [{"edit": edit, **{name: total[edit][name] for name in ("documents", "items", "bytes")}}
            for edit in order if edit in total]


TEXT_EDITS: dict[str, Callable[[str], tuple[str, int]]] = {
    "emails": masking.mask_emails, "ips": masking.mask_ips, "citations": masking.remove_citations}

# Which lines a rule removes: bool [lines] for the rule's setting. Asked in this order.
LINE_RULES: dict[str, Callable[[Lines, Any], np.ndarray]] = {
    "max_line_word_chars": lambda lines, most: lines.has_longer_word(most),
    "terminal_punctuation": lambda lines, _: ~lines.ends_a_sentence(),
    "min_line_words": lambda lines, least: lines.words < least,
    "javascript_lines": lambda lines, _: lines.mentions((b"javascript",)),
    "policy_lines": lambda lines, _: lines.mentions(POLICY),
    "url_lines": lambda lines, _: lines.is_address(),
    "counter_lines": lambda lines, _: lines.is_counter(),
    "max_line_uppercase": lambda lines, most: lines.uppercase_fraction() > most,
    "max_line_digits": lambda lines, most: lines.digit_fraction() > most}
KEPT, BLANK = -1, -2        # instead of the number of the rule that removes a line


def is_on(setting: Any) -> bool:
    """Whether a key of data.edits switches its edit on: true or a number; false and null are off."""
    return setting is not None and setting is not False


def repair(texts: list[str], edits: Any, account: Account) -> list[str]:
    """Texts decoded with the wrong encoding, repaired (data.edits.mojibake; mojibake.py); the same list when it is off.

    Comes before normalise, which removes the control characters that such text often holds. DataError without ftfy.
    """
    return _each(texts, "mojibake", repair_text, account) if edits.mojibake else texts


def edit(texts: list[str], edits: Any, account: Account) -> tuple[list[str], np.ndarray]:
    """Apply ``edits`` (the configuration section) to normalised texts and count what they did in ``account``.

    Returns the texts, some perhaps empty now and those without a change the same objects, and the share of each
    document's words that went with whole lines, float32 [documents].
    """
    for name, change in TEXT_EDITS.items():
        if getattr(edits, name):
            texts = _each(texts, name, change, account)
    active = {name: getattr(edits, name) for name in LINE_RULES if is_on(getattr(edits, name))}
    if not active:
        return texts, np.zeros(len(texts), np.float32)
    edited: list[str] = []
    removed = [np.zeros(0, np.float32)]
    for block in cut(texts):
        block_texts, block_removed = _edit_lines(block, active, account)
        edited += block_texts
        removed.append(block_removed)
    return edited, np.concatenate(removed)


def _each(texts: list[str], name: str, change: Callable[[str], tuple[str, int]], account: Account) -> list[str]:
    changed = []
    for text in texts:
        new, marks = change(text)
        if marks:
            account.add(name, 1, marks, utf8_bytes(text) - utf8_bytes(new))
        changed.append(new)
    return changed


def _edit_lines(block: Block, active: dict[str, Any], account: Account) -> tuple[list[str], np.ndarray]:
    """Apply the active line rules to a block: (texts, share of words removed float32 [documents])."""
    lines, spans = Lines(block), block.lines
    words = spans.per_document(lines.words)
    fate = _fates(lines, active)
    words_kept = spans.per_document(np.where(fate == KEPT, lines.words, 0))
    texts = list(block.texts)
    if any(name in active for name in C4_LINE_RULES):
        starts, ends = lines.starts, lines.ends
    else:
        starts, ends = spans.starts, spans.ends
    changed = (fate != KEPT) | (starts > spans.starts) | (ends < spans.ends)
    touched = np.flatnonzero((spans.per_document(changed) > 0) & (block.ends > block.starts))
    raw = block.text.tobytes()
    for document in touched.tolist():
        texts[document] = _join_kept(raw, fate, starts, ends, slice(*spans.first[document:document + 2]))
    _count(block, fate, list(active), texts, touched, account)
    return texts, ((words - words_kept) / np.maximum(words, 1)).astype(np.float32)


def _fates(lines: Lines, active: dict[str, Any]) -> np.ndarray:
    """int8 [lines]: KEPT, BLANK, or which of the active rules removes the line."""
    blank = lines.words == 0
    fate = np.where(blank, BLANK, KEPT).astype(np.int8)
    for number, (name, setting) in enumerate(active.items()):
        fate[(fate == KEPT) & LINE_RULES[name](lines, setting)] = number
    if "terminal_punctuation" not in active and active.get("min_line_words", 0) < 1:
        fate[blank] = KEPT
    return fate


def _join_kept(raw: bytes, fate: np.ndarray, starts: np.ndarray, ends: np.ndarray, lines: slice) -> str:
    kept = np.flatnonzero(fate[lines] == KEPT)
    pieces = [raw[start:end] for start, end in zip(starts[lines][kept].tolist(), ends[lines][kept].tolist())]
    return b"\n".join(pieces).decode("utf-8").strip()


def _count(block: Block, fate: np.ndarray, names: list[str], texts: list[str], touched: np.ndarray, account: Account) -> None:
    """Count the lines each rule removed, with the newline after them, and the blank space that went besides."""
    spans = block.lines
    sizes = spans.ends - spans.starts + 1
    before = (block.ends - block.starts)[touched]
    lost = before - np.array([utf8_bytes(texts[document]) for document in touched.tolist()], np.int64)
    emptied = touched[[not texts[document] for document in touched.tolist()]]
    sizes[spans.first[emptied + 1] - 1] -= 1                    # the last line of a document has no newline
    for number, name in enumerate(names):
        gone = fate == number
        if gone.any():
            account.add(name, np.count_nonzero(spans.per_document(gone)), np.count_nonzero(gone), sizes[gone].sum())
    space = lost - spans.per_document(np.where(fate >= 0, sizes, 0))[touched]
    if space.any():
        account.add("blank", np.count_nonzero(space), spans.per_document(fate == BLANK)[touched].sum(), space.sum())
