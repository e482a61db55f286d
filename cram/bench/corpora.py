"""Text to measure with: a corpus of any size, and pages as dirty as the web's, made from clean documents.

``grow`` makes a larger corpus of a smaller one: every further copy of a document has so many words exchanged that it is
no duplicate of the first, but for a stated share that is. Exchanged words are drawn from running text, so that common
words stay common. ``edited`` is the one way by which near-duplicates are made.

All is drawn from a seed: the same documents, the same parameters, the same text.
"""

from __future__ import annotations

import random
from typing import Any, Iterable, Iterator, Optional, Sequence

from cram.errors import CramError
from data_prep import minhash
from data_prep.blocks import cut
from data_prep.normalise import normalise
from data_prep.sources import open_source
from data_prep.sources.batches import limited

POOL_WORDS = 200_000        # running words from which exchanged ones are drawn
DOCSTRINGS = ("numpy", "torch", "pandas", "networkx")


def read_documents(files: Sequence[str], max_bytes: Optional[int] = None, seed: int = 0) -> tuple[list[str], str]:
    """(normalised documents in a random order, what they are). files: patterns of jsonl, txt or parquet files.

    Without files: the docstrings of installed packages. DataError for a file that cannot be read, CramError when no
    document is left.
    """
    from cram.schema import Data

    data = Data(source="files", files=list(files)) if files else Data(source="installed-docs", packages=list(DOCSTRINGS))
    source = open_source(data)
    read = (text for batch in limited(source.batches, max_bytes) for text in batch.column("text").to_pylist())
    texts = [text for text in map(normalise, read) if text]
    if not texts:
        raise CramError(f"no document in {', '.join(files)}; give files with text")
    random.Random(seed).shuffle(texts)
    told = ", ".join(files) if files else "docstrings of " + ", ".join(
        f"{name} {version}" for name, version in source.provenance["packages"].items())
    return texts, f"{told}: {len(texts):,} documents, {megabytes(texts):,.1f} MB"


def megabytes(texts: Sequence[str]) -> float:
    """10^6 bytes of UTF-8."""
    return sum(len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts) / 1e6


def take(texts: Iterable[str], megabytes_wanted: float) -> list[str]:
    """The first documents, up to the one that reaches so much text."""
    taken, size = [], 0.0
    for text in texts:
        taken.append(text)
        size += megabytes([text])
        if size >= megabytes_wanted:
            break
    return taken


def distinct(texts: Sequence[str]) -> Iterator[str]:
    """The texts without near-duplicates of earlier ones: those that share a MinHash band with one (FineWeb's 14 x 8)."""
    from cram.schema import NearDedup

    seen: set[tuple[int, int]] = set()
    for block in cut(texts):
        for text, values in zip(block.texts, minhash.bands(block, NearDedup()).tolist()):
            bands = set(enumerate(values))
            if seen.isdisjoint(bands):
                seen |= bands
                yield text


def running_words(texts: Sequence[str]) -> list[str]:
    """Words of the first documents, as often as they stand there."""
    pool: list[str] = []
    for text in texts:
        pool += text.split()
        if len(pool) >= POOL_WORDS:
            break
    return pool or ["word"]


def edited(text: str, rate: float, pool: Sequence[str], rng: random.Random) -> str:
    """The text with a share ``rate`` of its words (at least one), chosen at random, exchanged for words of ``pool``."""
    words = text.split(" ")
    for place in rng.sample(range(len(words)), max(1, round(rate * len(words)))):
        line_end = "\n" if "\n" in words[place] else ""          # a line break stays one
        words[place] = rng.choice(pool) + line_end
    return " ".join(words)


GROWTH = {"changed": 0.35, "exact": 0.05, "near": 0.05, "near_changed": 0.01}


def grow(texts: Sequence[str], megabytes_wanted: float, seed: int = 0, recipe: dict[str, float] = GROWTH) -> Iterator[str]:
    """Documents until so many megabytes are reached: first ``texts``, then copies of them, round after round.

    recipe: of the copies, ``exact`` are equal to their original and ``near`` have a share ``near_changed`` of their words
    exchanged; all others have ``changed`` of them exchanged. With 0.35, two texts share 0.65^5 of their runs of five
    words: a Jaccard similarity of 0.06. No copy is made from a copy.
    """
    rng, pool = random.Random(seed), running_words(texts)
    size, copying = 0.0, False
    while True:
        for text in texts:
            draw = rng.random() if copying else 0.0
            if copying and draw >= recipe["exact"]:
                near = draw < recipe["exact"] + recipe["near"]
                text = edited(text, recipe["near_changed" if near else "changed"], pool, rng)
            yield text
            size += megabytes([text])
            if size >= megabytes_wanted:
                return
        copying = True


def describe(recipe: Any) -> str:
    """Parameters in one line."""
    values = recipe if isinstance(recipe, dict) else vars(recipe)
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())
