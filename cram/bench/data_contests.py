"""Filters, near-duplicate signatures and encoding: our way and theirs, on the same documents (see data.py)."""

from __future__ import annotations

import importlib
import random
import re
from functools import partial
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import xxhash

from cram.bench.corpora import edited, megabytes, running_words, take
from cram.bench.data import Contest, Entry, Sizes
from cram.bench.measure import Unavailable
from cram.config import load
from cram.schema import Edits, NearDedup, Tokenizer
from data_prep import edits, minhash, statistics, statistics_lines, statistics_ngrams, statistics_words
from data_prep.blocks import Block, cut
from data_prep.clusters import near_clusters
from data_prep.encode import Encoder
from data_prep.filters import active_rules, decide
from data_prep.vocabulary import train_vocabulary

RULE_SETS = ("gopher", "c4", "fineweb")
SAME = "cram, their sample"         # the very documents that the slow competitor gets
SAMPLE_SEED = 1
LEAST_DOCUMENTS = 10                # in that sample: longer documents are left out of it, where there are others
TRAINING_PIECE = 20_000         # characters: long documents are cut, so that the texts of all rounds are of one size
PLANTED, LEAST_SIMILARITY, LEAST_WORDS = 300, 0.8, 60


def contests(texts: Sequence[str], sizes: Sizes, repeats: int) -> Iterator[Contest]:
    """In the order in which they are held."""
    fast = take(texts, sizes.fast)
    short = [text for text in fast if len(text) <= 1e6 * sizes.slow / LEAST_DOCUMENTS] or fast
    slow = take(random.Random(SAMPLE_SEED).sample(short, len(short)), sizes.slow)
    for case, (ours, theirs) in FILTERS.items():
        yield Contest(FILTERS_STEP, case, {"cram": partial(_cram_filters, ours, fast), SAME: partial(_cram_filters, ours, slow),
                                        "datatrove": partial(_datatrove, theirs, slow)}, "datatrove")
    near = NearDedup()
    pairs = planted_pairs(fast, near)
    yield Contest("near-duplicate signatures", f"{near.bands * near.rows} values, {near.shingle_words}-word shingles",
                  {"cram": partial(_cram_signatures, fast, near, pairs), SAME: partial(_cram_signatures, slow, near, pairs),
                   "datasketch, tuned": partial(_datasketch, slow, near, pairs)}, "datasketch, tuned")
    yield Contest("near-duplicate signatures", "signatures, bands and who shares one",
                  {"cram": partial(_cram_clusters, fast, near), SAME: partial(_cram_clusters, slow, near),
                   "datasketch, as documented": partial(_datasketch_lsh, slow, near)}, "datasketch, as documented")
    for kind in ("bpe", "wordpiece"):
        yield _encoding(kind, texts, sizes, repeats)


def required(module: str, package: str) -> Any:
    """An optional library; Unavailable, with the remedy, where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise Unavailable(f"{package} is not installed; pip install 'cram-lm[test]' brings it") from None


# ---- filters


def all_rule_sets(texts: list[str], c4: Edits, rule_sets: Sequence[list]) -> list[np.ndarray]:
    """C4's edits, all statistics, and the verdicts of the rule sets."""
    changed, removed = edits.edit(texts, c4, edits.Account())
    first, verdicts = 0, []
    for block in cut(changed):
        last = first + len(block)
        found = statistics.measure(Block(texts[first:last]), block) | {"removed_words": removed[first:last]}
        verdicts += [decide(found, rules) for rules in rule_sets]
        first = last
    return verdicts


def _all(texts: list[str]) -> Callable[[list[str]], Any]:
    sections = [load(f"filters/{name}").data for name in RULE_SETS]
    rule_sets = [[(rule, value) for rule, value in active_rules(section.filters) if rule.name != "max_contaminated_ngrams"]
                 for section in sections]
    return partial(all_rule_sets, c4=sections[RULE_SETS.index("c4")].edits, rule_sets=rule_sets)


def _c4(texts: list[str]) -> Callable[[list[str]], Any]:
    c4 = load("filters/c4").data.edits

    def function(texts: list[str]) -> None:
        for block in cut(edits.edit(texts, c4, edits.Account())[0]):
            statistics_words.measure_words(block), statistics_words.measure_sentences(block)
    return function


def _statistics(*functions: Callable[[Block], Any]) -> Callable[[list[str]], Callable]:
    def function(texts: list[str]) -> None:
        for block in cut(texts):
            for each in functions:
                each(block)
    return lambda texts: function


FILTERS_STEP = "filters: Gopher's repetition and quality, C4, FineWeb"
# Our way, and the filters of datatrove that it stands for.
FILTERS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "all four": (_all, ("GopherRepetitionFilter", "GopherQualityFilter", "C4QualityFilter", "FineWebQualityFilter")),
    "repetition": (_statistics(statistics_lines.measure_line_repetition, statistics_ngrams.measure_ngrams),
                   ("GopherRepetitionFilter",)),
    "quality": (_statistics(statistics_words.measure_word_quality, statistics_lines.measure_line_quality),
                ("GopherQualityFilter",)),
    "C4": (_c4, ("C4QualityFilter",)),
    "FineWeb": (_statistics(statistics_lines.measure_web_lines), ("FineWebQualityFilter",))}


def _cram_filters(make: Callable, texts: list[str]) -> Entry:
    return Entry.of(make(texts), texts)


def _datatrove(names: Sequence[str], texts: list[str]) -> Entry:
    """Its filters one after the other, each on every document as it came."""
    filters = [getattr(required("datatrove.pipeline.filters", "datatrove"), name)() for name in names]
    document = required("datatrove.data", "datatrove").Document

    def function(texts: list[str]) -> None:
        for number, text in enumerate(texts):
            for each in filters:
                each.filter(document(text=text, id=str(number)))
    return Entry.of(function, texts)


# ---- near-duplicate signatures


def planted_pairs(texts: Sequence[str], near: NearDedup) -> tuple[list[str], list[str], np.ndarray]:
    """(documents, the same with a few words exchanged, their Jaccard similarities), all of at least 0.8."""
    rng, pool = random.Random(SAMPLE_SEED), running_words(texts)
    left = [text for text in texts if len(text.split()) >= LEAST_WORDS][:PLANTED]
    right = [edited(text, rng.uniform(0.002, 0.03), pool, rng) for text in left]
    similar = minhash.jaccard(left, right, near)
    chosen = np.flatnonzero(similar >= LEAST_SIMILARITY)
    return [left[index] for index in chosen], [right[index] for index in chosen], similar[chosen]


def _recall(sign: Callable[[list[str]], np.ndarray], pairs: tuple, near: NearDedup) -> dict[str, Any]:
    """How many pairs agree in one band at least. sign: gives the values of documents, [documents, bands, ...]."""
    left, right, similar = pairs
    if not left:
        return {"pairs": 0}
    same = (sign(left) == sign(right)).reshape(len(left), near.bands, -1).all(axis=2)
    return {"pairs": len(left), "recall": float(same.any(axis=1).mean()),
            "expected_recall": float(minhash.candidate_probability(similar, near).mean())}


def _cram_signatures(texts: list[str], near: NearDedup, pairs: tuple) -> Entry:
    def function(texts: list[str]) -> np.ndarray:
        return np.concatenate([np.zeros((0, near.bands), np.uint64), *(minhash.bands(block, near) for block in cut(texts))])

    return Entry.of(function, texts, **_recall(function, pairs, near))


def _datasketch(texts: list[str], near: NearDedup, pairs: tuple) -> Entry:
    """Its fastest way: one set of permutations for all documents, xxhash, a batch of shingles at a time."""
    MinHash = required("datasketch", "datasketch").MinHash
    empty = MinHash(num_perm=near.bands * near.rows, hashfunc=xxhash.xxh32_intdigest)

    def signature(text: str) -> np.ndarray:
        made = empty.copy()
        made.update_batch(_shingles(text, near))
        return made.hashvalues

    def function(texts: list[str]) -> np.ndarray:
        return np.array([signature(text) for text in texts]).reshape(len(texts), near.bands, near.rows)

    return Entry.of(function, texts, **_recall(function, pairs, near))


def _shingles(text: str, near: NearDedup) -> set[bytes]:
    words = re.findall(r"[^\W_]+", text.lower())
    return {" ".join(words[start:start + near.shingle_words]).encode()
            for start in range(max(1, len(words) - near.shingle_words + 1))}


def _cram_clusters(texts: list[str], near: NearDedup) -> Entry:
    def function(texts: list[str]) -> np.ndarray:
        bands = np.concatenate([minhash.bands(block, near) for block in cut(texts)])
        return near_clusters(lambda band: iter([bands[:, band]]), np.ones(len(texts), bool), near.bands)

    return Entry.of(function, texts)


def _datasketch_lsh(texts: list[str], near: NearDedup) -> Entry:
    """As its documentation shows: a MinHash of its own for each document, its default hash, an LSH index asked and filled."""
    datasketch = required("datasketch", "datasketch")

    def function(texts: list[str]) -> list[list[int]]:
        index, found = datasketch.MinHashLSH(num_perm=near.bands * near.rows, params=(near.bands, near.rows)), []
        for number, text in enumerate(texts):
            made = datasketch.MinHash(num_perm=near.bands * near.rows)
            made.update_batch(_shingles(text, near))
            found.append(index.query(made))
            index.insert(number, made)
        return found

    return Entry.of(function, texts)


# ---- encoding


def _encoding(kind: str, texts: Sequence[str], sizes: Sizes, repeats: int) -> Contest:
    """Every round encodes text that no memo has seen: one more for the warm-up."""
    pieces = [text[begin:begin + TRAINING_PIECE] for text in texts for begin in range(0, len(text), TRAINING_PIECE)]
    training = take(pieces, min(sizes.training, megabytes(pieces) / 2))
    rest, rounds = pieces[len(training):], []
    size = min(sizes.fast, 0.99 * megabytes(rest) / (repeats + 1))
    for _ in range(repeats + 1):
        rounds.append(take(rest, size))
        rest = rest[len(rounds[-1]):]
    tokenizer = train_vocabulary(Tokenizer(type=kind, vocab_size=sizes.tokens), [training])
    tokenizer.encode_special_tokens = True
    short = [take(each, sizes.slow) for each in rounds]
    return Contest("encoding", kind, {
        "cram, memo warm": partial(_warm, tokenizer, kind, training, rounds),
        "cram, memo cold": partial(_cold, tokenizer, kind, rounds),
        "tokenizers": partial(_rounds, lambda: partial(tokenizer.encode_batch_fast, add_special_tokens=False), short,
                              tokenizer.get_vocab_size())}, "tokenizers")


def _rounds(make: Callable[[], Callable], rounds: Sequence[list[str]], vocabulary: int) -> Entry:
    """Each call takes the texts of the next round. make: gives the function that encodes them."""
    waiting = iter(rounds)

    def ready() -> Callable[[], object]:
        return partial(make(), next(waiting))

    return Entry(ready, sum(map(megabytes, rounds)) / len(rounds), {"vocabulary": vocabulary})


def _warm(tokenizer: Any, kind: str, training: list[str], rounds: Sequence[list[str]]) -> Entry:
    encoder = Encoder(tokenizer, kind)
    encoder.encode(training)
    _check(encoder, tokenizer, training)
    return _rounds(lambda: encoder.encode, rounds, tokenizer.get_vocab_size())


def _cold(tokenizer: Any, kind: str, rounds: Sequence[list[str]]) -> Entry:
    return _rounds(lambda: Encoder(tokenizer, kind).encode, rounds, tokenizer.get_vocab_size())


def _check(encoder: Encoder, tokenizer: Any, texts: Sequence[str]) -> None:
    texts = texts[:200]
    true = [one.ids for one in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    ids, counts = encoder.encode(texts)
    if counts.tolist() != [len(each) for each in true] or ids.tolist() != [token for each in true for token in each]:
        raise Unavailable("wrong, not timed: the ids differ from the library's")
