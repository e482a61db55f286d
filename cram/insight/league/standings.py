"""From cards to standings: what is rejected and why, who is a copy of whom, and the order within each class."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Callable, Iterable, NamedTuple, Optional

from cram.budget import Budget
from cram.errors import CramError
from cram.insight.league.card import SUFFIX, Card, read_card
from cram.insight.league.checks import MALFORMED, code_reason, contradictions
from cram.insight.league.source import source_files


class Class(NamedTuple):
    """What can be ranked together."""

    budget: str     # amount and unit, or on which hardware for how long
    amount: float   # exactly: 180.04 s are shown as 3m00.0s, too, and are more
    metric: str
    text: str       # xxh3-128 of the held-out text
    measured: str   # how much of it, and read how

    def title(self) -> str:
        return f"{self.budget}, by {self.metric}"


@dataclass
class Entry:
    """A card in the league. reasons: why it is rejected; notes: what a reader should know; rescored: whether its score was
    measured again from the weights, and held."""

    path: Path
    card: Optional[Card] = None
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rescored: bool = False
    rivals: list[str] = field(default_factory=list)  # other authors who handed in the same run

    @property
    def name(self) -> str:
        return self.card.name if self.card else self.path.name

    @property
    def by(self) -> str:
        return _by(self.author)

    @property
    def author(self) -> str:
        """Who made the run, as the cards say; all of them, where several claim it."""
        if self.card is None or not self.rivals:
            return self.card.author if self.card else ""
        names = sorted({author or "nobody named" for author in (self.card.author, *self.rivals)})
        return f"{' or '.join(names)} (disputed)"

    @property
    def accepted(self) -> bool:
        return not self.reasons


def find_cards(given: Iterable[Path]) -> list[Path]:
    """The cards among files, and in folders. CramError where there is none."""
    paths: list[Path] = []
    for path in given:
        found = sorted(path.rglob("*" + SUFFIX)) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise CramError(f"{path}: no card there (*{SUFFIX}); write one with: cram submit RUN --out {path}")
        paths += found
    return list(dict.fromkeys(paths))


def judge(paths: Iterable[Path], *, same_code: bool = False, rescore: Optional[Callable[[Card], Optional[list[str]]]] = None,
          say: Callable[[str], None] = print) -> list[Entry]:
    """Read and check every card, then all against each other.

    same_code: reject cards made with other code than this; else they are marked. rescore: gives reasons against a card's
    score, None where its weights are not at hand.
    """
    entries, ours = [], source_files()
    for path in paths:
        entry = Entry(path)
        entries.append(entry)
        try:
            entry.card = read_card(path)
        except CramError as error:
            entry.reasons.append(str(error).removeprefix(f"{path}: "))
            continue
        entry.reasons += contradictions(entry.card)
        try:
            class_of(entry.card), _facts(entry.card), _marks(entry.card)
        except MALFORMED as error:
            entry.reasons.append(f"a field is missing or of the wrong kind ({type(error).__name__}: {error})")
        if entry.reasons:
            continue
        if (told := code_reason(entry.card, ours)) is not None:
            (entry.reasons if same_code else entry.notes).append(told)
        if entry.card.rows("end")[-1]["progress"] != 1.0:
            entry.notes.append("its budget ended before its schedule did")
        if len(entry.card.rows("validation")) < 2:  # train.validate_every allows it, so it is no reason to reject
            entry.notes.append("no two validations on the way: without its weights, nothing supports its score")
        if rescore is not None and entry.accepted:
            say(f"{path.name}: measuring its score again")
            if (found := rescore(entry.card)) is None:
                entry.notes.append("weights and tokenizer not at hand")
            entry.reasons += found or []
            entry.rescored = found == []
    _refuse_copies([entry for entry in entries if entry.accepted])
    _refuse_other_text([entry for entry in entries if entry.accepted])
    return entries


def class_of(card: Card) -> Class:
    """Time is compared on the same hardware; FLOPs, tokens and steps are counted, so on any. A loss per token depends on the
    tokenizer, bits per byte do not."""
    budget, config, held_out = Budget.parse(card.ledger.budget), card.config, card.scores["held_out"]
    amount = budget.show(budget.amount)
    if budget.kind == "time":
        world = card.plan["processes"]
        amount += f" on {f'{world} x ' if world > 1 else ''}{card.plan['device']}"
    metric, _ = card.score
    listed = card.stages["data"]["files"]
    text = listed["validation.jsonl"]["xxh3_128"] if listed else card.stages["data"]["digest"]
    measured = f"{held_out['documents']:,} documents"
    if metric == "bits per byte":
        measured += f", {held_out['bytes']:,} bytes"
    else:
        hidden = f", {config.evaluate.mask_rate:g} of it hidden" if config.objective.type == "masked" else ""
        metric = f"{config.objective.type} loss{hidden}"
        measured += f", {held_out['tokens']:,} tokens, tokenizer {card.body['data']['tokenizer_sha256'][:12]}"
    return Class(amount, budget.amount, metric, text, measured)


def standings(entries: Iterable[Entry]) -> dict[Class, list[Entry]]:
    """The accepted entries of each class, best first; equal scores by name."""
    classes: dict[Class, list[Entry]] = {}
    for entry in entries:
        if entry.accepted:
            classes.setdefault(class_of(entry.card), []).append(entry)
    return {key: sorted(members, key=lambda entry: (entry.card.score[1], entry.name))
            for key, members in sorted(classes.items(), key=lambda item: item[0])}


def _refuse_copies(entries: list[Entry]) -> None:
    """The same run twice, under whatever names and ids. One card stays: one whose score was measured again, else the one that
    says it was written first. That date is its author's word, so where authors differ the run stays in the name of both."""
    seen: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda entry: (not entry.rescored, _made(entry.card), str(entry.path))):
        first = next((seen[mark] for mark in _marks(entry.card) if mark in seen), None)
        if first is None:
            for mark in _marks(entry.card):
                seen[mark] = entry
            twin = seen.setdefault(_losses(entry.card), entry)
            if twin is not entry:
                _twins(twin, entry)
        else:
            entry.reasons.append(f"the same run as {first.path.name} ({first.name}{_by(first.card.author)}), which is ranked")
            if entry.card.author != first.card.author:
                first.rivals.append(entry.card.author)
                first.notes.append(f"handed in as {entry.path.name}, too{_by(entry.card.author)}: no card proves whose run it "
                                   "is; have both show the run's folder")


def _by(author: str) -> str:
    return f" by {author}" if author else ""


def _made(card: Card) -> datetime:
    return datetime.fromisoformat(card.body["made"])


def _twins(first: Entry, entry: Entry) -> None:
    """Two runs with the same losses to the last digit: one configuration run twice, or a copy."""
    identities = [json.dumps(each.card.stages["pretrain"]["identity"], sort_keys=True) for each in (first, entry)]
    if identities[0] == identities[1]:
        entry.notes.append(f"the same losses as {first.path.name}: the same configuration run again")
    else:
        entry.reasons.append(f"the same losses, digit for digit, as {first.path.name} with another configuration: a copy")


def _marks(card: Card) -> list[str]:
    """What no two runs share: their times to the microsecond, their hashes, their weights' file."""
    times = [row["account"] for row in card.ledger.rows if row["kind"] in ("checkpoint", "close")]
    return [f"ledger {card.ledger.head}", f"metrics {card.body['metrics']['sha256']}", f"times {json.dumps(times)}",
            f"rows {json.dumps([(row['spent'], row['loss']) for row in card.rows('train')])}"]


def _losses(card: Card) -> str:
    return "losses " + json.dumps([(row["step"], row["loss"]) for row in card.rows("train")])


def _refuse_other_text(entries: list[Entry]) -> None:
    """Cards that name the same held-out text and tokenizer must tell of the same counts and baselines; most are believed."""
    groups: dict[tuple, list[Entry]] = {}
    for entry in entries:
        key, card = class_of(entry.card), entry.card
        groups.setdefault((key.text, card.body["data"]["tokenizer_sha256"], card.config.objective.type,
                           card.config.evaluate.mask_rate, card.config.evaluate.tokens), []).append(entry)
    for members in groups.values():
        told = [_facts(entry.card) for entry in members]
        most, count = Counter(told).most_common(1)[0]
        for entry, facts in zip(members, told):
            if facts != most:
                entry.reasons.append("names the held-out text of others, but tells of other counts or baselines than "
                                     + (f"the {count} that agree" if count > 1 else "they do"))
            elif count == 1 and len(members) > 1:
                entry.notes.append("others tell of other counts on this text; only measuring again says who is right")


def _facts(card: Card) -> str:
    """Counts, and baselines but for the unigram's, which knows the training text."""
    held_out, rows = card.scores["held_out"], card.scores["baselines"]
    return json.dumps([[held_out.get(name) for name in ("documents", "tokens", "predicted", "bytes")],
                       [[name, rows[name]] for name in sorted(rows) if name != "unigram"],
                       card.body["data"]["splits"]["validation"]], sort_keys=True)
