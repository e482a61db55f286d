"""The text of the course: made by a seeded grammar, the same bytes on every machine and every version of Python.

A document tells of two people: their trade, town, and what they own, how many of it and of which colour. What is said once
comes back later in the same document, and is different in the next one, so a model gains from looking back within a document
and gains nothing from looking into another. Verbs agree with their subject, with a noun of the other number between (the
attractor of Linzen et al. 2016), so that minimal pairs can be made; some documents count, some quote.

``web.jsonl`` holds some of these documents with what a crawl adds: exact and near copies, menus, tables of numbers, placeholder
text, lists of keywords. Each row names its ``kind``, so that what a filter does can be judged.

Only ``Random.random`` is used: it alone is promised to draw the same numbers in every version.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Callable, Sequence, TypeVar

from data_prep.files import replace_durably

FOLDER = Path("runs/lessons/text")
CLEAN_DOCUMENTS = 2400
WEB_DOCUMENTS = 400
# Shares of WEB_DOCUMENTS that are added.
WEB_SHARES = {"exact copy": 0.2, "near copy": 0.1, "menu": 0.15, "numbers": 0.1, "placeholder": 0.05, "keywords": 0.1}

PEOPLE = ("Mira Tom Ada Ilya Nora Omar Lena Hugo Vera Ravi Ines Paul Yuki Ruth Emil Dana Karl Zoe Ivan Lucy Amos Tara Finn "
          "Elsa Noah Rosa Adam Maya Leon Anna Theo Judy").split()
TRADES = "baker teacher farmer doctor painter sailor miller tailor singer carpenter gardener printer".split()
TOWNS = "Oldham Riverton Highgate Eastport Westbury Millford Stonebridge Fairview Lakeside Northfield".split()
COLOURS = "red blue green white black yellow grey brown".split()
NUMBERS = "two three four five six seven eight nine ten eleven twelve".split()
THINGS = "boat key lamp clock chair book horse cart drum kite wheel rope basket coat bell flute".split()
PLACES = "mill bridge market harbour school tower garden church station well".split()
STATES = ("old", "new", "heavy", "broken", "clean", "ready", "lost", "famous")
SYLLABLES = "ka mi ro la den vor sten bal ti gar lun pe sa rik mon del fa ne tor win hal os bri cu zan".split()
VERBS = (("stands", "stand"), ("waits", "wait"), ("belongs", "belong"), ("looks", "look"), ("rests", "rest"))

T = TypeVar("T")


class Dice(random.Random):
    """A seeded generator of which ``random()`` alone is used."""

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """``count`` different ones."""
        left = list(options)
        return [left.pop(int(self.random() * len(left))) for _ in range(count)]

    def between(self, low: int, high: int) -> int:
        return low + int(self.random() * (high - low + 1))


def agreement(dice: Dice) -> tuple[str, str]:
    """A minimal pair: a sentence whose verb agrees with its subject, and the same with the verb of the other number."""
    subject, attractor, place = dice.pick(THINGS), dice.pick(THINGS), dice.pick(PLACES)
    plural, other = dice.random() < 0.5, dice.random() < 0.5
    start = f"The {subject}{'s' * plural} near the {attractor}{'s' * other}"
    if dice.random() < 0.5:
        forms, end = ("is", "are"), dice.pick(STATES)
    else:
        forms, end = dice.pick(VERBS), f"by the {place}"
    return f"{start} {forms[plural]} {end}.", f"{start} {forms[not plural]} {end}."


def surname(dice: Dice) -> str:
    """One of many: in a document it is known only from its first mention."""
    return "".join(dice.pick(SYLLABLES) for _ in range(dice.between(2, 3))).capitalize()


def document(dice: Dice) -> str:
    """Two to four paragraphs about two people."""
    cast = [(f"{person} {surname(dice)}", *(dice.pick(words) for words in (TRADES, TOWNS, NUMBERS, COLOURS, THINGS)))
            for person in dice.some(PEOPLE, 2)]
    sentences = [f"{person} is a {trade} in {town} and owns {number} {colour} {thing}s."
                 for person, trade, town, number, colour, thing in cast]
    for _ in range(dice.between(8, 24)):
        person, trade, town, number, colour, thing = dice.pick(cast)
        sentences.append(dice.pick((
            lambda: f"{person.split()[0]} keeps the {number} {colour} {thing}s near the {dice.pick(PLACES)}.",
            lambda: f"Everybody in {town} knows {person} the {trade}.",
            lambda: f"The {trade} sold one of the {colour} {thing}s.",
            lambda: f"\"{agreement(dice)[0][:-1]},\" said {person} of {town}.",
            lambda: agreement(dice)[0],
            lambda: f"{person.split()[0]} counted the {thing}s: one, {', '.join(NUMBERS[:NUMBERS.index(number) + 1])}.",
            lambda: f"{' and '.join(each[0] for each in dice.some(cast, 2))} met at the {dice.pick(PLACES)}."))())
    breaks = dice.between(4, 7)
    return "\n".join(" ".join(sentences[start:start + breaks]) for start in range(0, len(sentences), breaks))


def near_copy(text: str, dice: Dice) -> str:
    """The text with one word in fifty exchanged."""
    words = text.split(" ")
    for _ in range(max(1, len(words) // 50)):
        words[int(dice.random() * len(words))] = dice.pick(THINGS)
    return " ".join(words)


MENU = "Home About Contact Login Search Products Blog Careers Sitemap Basket Help News Events Gallery Archive".split()
LOREM = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore".split()
JUNK: dict[str, Callable[[Dice], str]] = {
    "menu": lambda dice: "\n".join(" | ".join(dice.some(MENU, 6)) for _ in range(dice.between(6, 20))),
    "numbers": lambda dice: "\n".join("\t".join(f"{dice.random() * 1000:.3f}" for _ in range(6)) for _ in range(30)),
    "placeholder": lambda dice: "Lorem ipsum dolor. " + " ".join(dice.pick(LOREM) for _ in range(dice.between(60, 200))) + ".",
    "keywords": lambda dice: ", ".join(f"cheap {thing}s" for thing in dice.some(THINGS, 3) * dice.between(15, 40)),
}


def clean(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of documents: text and kind."""
    dice = Dice(seed)
    return [{"text": document(dice), "kind": "document"} for _ in range(count)]


def web(count: int, seed: int) -> list[dict[str, str]]:
    """Documents with what a crawl adds, in the order of reading: copies come after what they copy."""
    dice, rows = Dice(seed), clean(count, seed + 1)
    for kind, share in WEB_SHARES.items():
        for _ in range(round(share * count)):
            original = dice.pick(rows[:count])["text"]
            text = original if kind == "exact copy" else near_copy(original, dice) if kind == "near copy" else JUNK[kind](dice)
            rows.append({"text": text, "kind": kind})
    return rows


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Minimal pairs of agreement, as a benchmark of the family of BLiMP lies on disk; none is in the text but by chance."""
    dice = Dice(seed)
    return [dict(zip(("sentence_good", "sentence_bad"), agreement(dice))) for _ in range(count)]


def write_text(folder: Path) -> None:
    """Write the files of the course into ``folder``, each only when it is not there already with these bytes."""
    for name, rows in (("clean.jsonl", clean(CLEAN_DOCUMENTS, 1)), ("web.jsonl", web(WEB_DOCUMENTS, 2)),
                       ("pairs.jsonl", pairs(400, 3))):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            replace_durably(folder / name, content)
