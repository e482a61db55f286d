"""Web-like text made from clean documents: what a crawl adds to them, in stated shares.

Real crawls hold, beside documents, navigation around them, pages of nothing but that, tables of numbers, placeholder
text, keyword spam, other languages, and many copies (Penedo et al. 2023, RefinedWeb; Lee et al. 2022). This recipe has
one of each, so that what filters and deduplication are worth can be measured where no crawl is at hand. It is a model:
the shares are ours, and a filter may meet harder junk outside.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Callable, Sequence

from cram.bench.corpora import edited, running_words

MENU = ("Home", "About us", "Contact", "Log in", "Sign up", "Search", "Products", "Blog", "FAQ", "Careers", "Sitemap", "Basket",
        "My account", "Help", "News", "Events", "Gallery", "Archive", "Share", "Tweet", "Print", "Next", "Back", "Read more")
NOTICES = ("We use cookies to give you the best experience. By using this site you accept our cookie policy.",
           "Please enable javascript in your browser to view this page.", "All rights reserved. Terms of use | Privacy policy",
           "Subscribe to our newsletter!", "This site uses cookies. Learn more", "Click here to continue")
LOREM = ("lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore et dolore magna "
         "aliqua ut enim ad minim veniam quis nostrud exercitation ullamco laboris nisi ut aliquip ex ea commodo").split()
SYLLABLES = ("ka mi ško ře ńa lu zé ø å vä tü ğı ça ão ñe jö wo ki nga mba tla xi qu ẽ ži dź čo ła hü rā sī to pe ru").split()


@dataclass(frozen=True)
class Recipe:
    """Shares of the number of clean documents. zipf: a copied page has c copies with a probability as c^-zipf."""

    wrapped: float = 0.4            # documents inside menus, cookie notices and lists of links
    boilerplate: float = 0.15       # pages of menus and notices alone
    numbers: float = 0.1            # tables of numbers and hashes
    lorem: float = 0.05             # placeholder text
    keywords: float = 0.1           # few words, over and over
    foreign: float = 0.1            # made-up words of another language
    copied: float = 0.15            # pages that have exact copies
    zipf: float = 1.5
    max_copies: int = 40
    near: float = 0.1               # pages that have near copies
    near_copies: int = 3
    near_changed: float = 0.01      # share of words exchanged in a near copy


def make_web(texts: Sequence[str], recipe: Recipe, seed: int = 0) -> tuple[list[str], dict[str, int]]:
    """(pages in a random order, how many there are of each kind)."""
    rng, pool = random.Random(seed), running_words(texts)
    wrapped = [_wrap(text, rng) if rng.random() < recipe.wrapped else text for text in texts]
    kinds: dict[str, list[str]] = {"documents": wrapped}
    for kind, page in PAGES.items():
        kinds[kind] = [page(rng, pool) for _ in range(round(getattr(recipe, kind) * len(texts)))]
    pages = [page for made in kinds.values() for page in made]
    sizes = range(1, recipe.max_copies + 1)
    likely = [copies ** -recipe.zipf for copies in sizes]
    kinds["exact copies"] = [page for page in pages if rng.random() < recipe.copied
                             for _ in range(rng.choices(sizes, likely)[0])]
    kinds["near copies"] = [edited(page, recipe.near_changed, pool, rng) for page in pages if rng.random() < recipe.near
                            for _ in range(recipe.near_copies)]
    everything = [page for made in kinds.values() for page in made]
    rng.shuffle(everything)
    return everything, {kind: len(made) for kind, made in kinds.items()}


def _menu(rng: random.Random) -> str:
    return rng.choice(("\n", " | ", " » ")).join(rng.sample(MENU, rng.randint(4, 14)))


def _links(rng: random.Random) -> str:
    return "\n".join(f"• https://www.example.com/{rng.choice(MENU).lower().replace(' ', '-')}/{rng.randrange(10**6)}"
                     for _ in range(rng.randint(2, 8)))


def _wrap(text: str, rng: random.Random) -> str:
    return "\n".join([_menu(rng), rng.choice(NOTICES), text, _links(rng), rng.choice(NOTICES)])


def _boilerplate(rng: random.Random, pool: Sequence[str]) -> str:
    return "\n".join(rng.choice((_menu, _links))(rng) + "\n" + rng.choice(NOTICES) for _ in range(rng.randint(3, 12)))


def _numbers(rng: random.Random, pool: Sequence[str]) -> str:
    if rng.random() < 0.5:
        return "\n".join(f"{rng.getrandbits(128):032x}  {rng.choice(pool)}.bin" for _ in range(rng.randint(10, 60)))
    columns = rng.randint(3, 8)
    return "\n".join("\t".join(f"{rng.gauss(0, 1000):.3f}" for _ in range(columns)) for _ in range(rng.randint(10, 60)))


def _lorem(rng: random.Random, pool: Sequence[str]) -> str:
    sentences = [" ".join(rng.choices(LOREM, k=rng.randint(5, 15))).capitalize() + "." for _ in range(rng.randint(5, 40))]
    return "Lorem ipsum dolor sit amet. " + " ".join(sentences)


def _keywords(rng: random.Random, pool: Sequence[str]) -> str:
    words = rng.sample(pool, min(rng.randint(3, 8), len(pool)))
    phrases = [" ".join(rng.sample(words, min(3, len(words)))) for _ in range(4)]
    return ", ".join(rng.choice(phrases) for _ in range(rng.randint(40, 200)))


def _foreign(rng: random.Random, pool: Sequence[str]) -> str:
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(120)]
    return " ".join(" ".join(rng.choices(words, k=rng.randint(5, 15))).capitalize() + "." for _ in range(rng.randint(5, 40)))


# What each kind of page is made by; the names are fields of Recipe.
PAGES: dict[str, Callable[[random.Random, Sequence[str]], str]] = {
    "boilerplate": _boilerplate, "numbers": _numbers, "lorem": _lorem, "keywords": _keywords, "foreign": _foreign}
