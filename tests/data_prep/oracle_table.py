"""How often our rules and datatrove's agree on the same documents, rule by rule, as a Markdown table.

    PYTHONPATH=. python tests/data_prep/oracle_table.py [--per-file N] [--edge-cases N] [FILES...]

FILES are jsonl, jsonl.xz, parquet or txt files with a column ``text`` (as data.files); without any, docstrings of installed
packages. Two comparisons: our statistics over datatrove's own words (spaCy's), where the definitions must agree, and
over whitespace words, as in production, where what differs is the notion of a word.
"""

from __future__ import annotations

import argparse
import functools
import random
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Optional

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.utils.word_tokenizers import load_word_tokenizer

from cram.schema import Data, Filters
from data_prep.blocks import cut
from data_prep.filters import active_rules, decide
from data_prep.normalise import normalise
from data_prep.sources import open_source
from data_prep.statistics import measure

QUALITY_OFF = dict(min_doc_words=None, max_doc_words=None, min_avg_word_length=None, max_avg_word_length=None,
                   max_symbol_word_ratio=None, max_bullet_lines_ratio=None, max_ellipsis_lines_ratio=None,
                   max_non_alpha_words_ratio=None, min_stop_words=None)
REPETITION_OFF = dict(dup_line_frac=None, dup_para_frac=None, dup_line_char_frac=None, dup_para_char_frac=None,
                      top_n_grams=(), dup_n_grams=())
WEB_OFF = dict(line_punct_thr=0, short_line_thr=1, char_duplicates_ratio=1, new_line_ratio=float("inf"))
C4_OFF = dict(remove_citations=False, filter_no_terminal_punct=False, min_num_sentences=-1, min_words_per_line=-1,
              max_word_length=-1, filter_lorem_ipsum=False, filter_javascript=False, filter_curly_bracket=False,
              filter_policy=False)


class Case(NamedTuple):
    """One of our rules and a datatrove filter with every other rule off. reason: what the filter answers, if it has two."""

    rule: str
    threshold: Any
    filter: Any
    reason: Optional[str] = None


def cases() -> list[Case]:
    """Every rule that datatrove has too, with the thresholds of FineWeb."""
    def quality(rule, threshold, key, reason=None):
        return Case(rule, threshold, GopherQualityFilter(**{**QUALITY_OFF, key: threshold}), reason)

    def repetition(rule, threshold, **on):
        return Case(rule, threshold, GopherRepetitionFilter(**{**REPETITION_OFF, **on}))

    def web(rule, threshold, key):
        return Case(rule, threshold, FineWebQualityFilter(**{**WEB_OFF, key: threshold}))

    def c4(rule, threshold, **on):
        return Case(rule, threshold, C4QualityFilter(**{**C4_OFF, **on}))

    return [
        quality("min_words", 50, "min_doc_words"), quality("max_words", 100_000, "max_doc_words"),
        quality("min_mean_word_length", 3, "min_avg_word_length"), quality("max_mean_word_length", 10, "max_avg_word_length"),
        quality("max_hash_ratio", 0.1, "max_symbol_word_ratio", "gopher_too_many_hashes"),
        quality("max_ellipsis_ratio", 0.1, "max_symbol_word_ratio", "gopher_too_many_ellipsis"),
        quality("max_bullet_lines", 0.9, "max_bullet_lines_ratio"),
        quality("max_ellipsis_lines", 0.3, "max_ellipsis_lines_ratio"),
        quality("min_alpha_words", 0.8, "max_non_alpha_words_ratio"), quality("min_stop_words", 2, "min_stop_words"),
        repetition("max_duplicate_lines", 0.3, dup_line_frac=0.3),
        repetition("max_duplicate_paragraphs", 0.3, dup_para_frac=0.3),
        repetition("max_duplicate_line_chars", 0.2, dup_line_char_frac=0.2),
        repetition("max_duplicate_paragraph_chars", 0.2, dup_para_char_frac=0.2),
        *(repetition(f"max_top_{n}gram_chars", most, top_n_grams=((n, most),))
          for n, most in ((2, 0.2), (3, 0.18), (4, 0.16))),
        *(repetition(f"max_duplicate_{n}gram_chars", most, dup_n_grams=((n, most),))
          for n, most in ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))),
        c4("placeholder_text", True, filter_lorem_ipsum=True), c4("curly_bracket", True, filter_curly_bracket=True),
        c4("min_sentences", 5, min_num_sentences=5, min_words_per_line=1),     # it counts a blank line as a sentence
        web("min_punctuated_lines", 0.12, "line_punct_thr"), web("max_short_lines", 0.67, "short_line_thr"),
        web("max_duplicated_line_chars", 0.01, "char_duplicates_ratio"), web("max_newline_ratio", 0.3, "new_line_ratio"),
    ]


@functools.lru_cache(maxsize=None)
def spacy_spans(text: str) -> tuple[tuple[int, int], ...]:
    """The words of datatrove's English tokenizer, as characters from and to; each stripped, empty ones aside."""
    tokenizer = load_word_tokenizer("eng").tokenizer
    tokenizer.max_length = len(text) + 10
    with tokenizer.memory_zone():
        tokens = [(token.idx, token.text) for token in tokenizer.make_doc(text)]
    return tuple((start + len(word) - len(word.lstrip()), start + len(word.rstrip())) for start, word in tokens if word.strip())


def spacy_words(text: str, language: str = "eng") -> list[str]:
    """What datatrove's split_into_words returns, from the same spans: each document is split once."""
    return [text[start:end] for start, end in spacy_spans(text)]


def datatrove_verdicts(texts: list[str]) -> dict[str, np.ndarray]:
    """bool [documents] for each rule, true where datatrove drops the document."""
    return {case.rule: np.array([drops(case, text) for text in texts]) for case in cases()}


def drops(case: Case, text: str) -> bool:
    result = case.filter.filter(Document(text=text, id=""))
    dropped, reason = (False, None) if result is True else (True, result[1] if isinstance(result, tuple) else None)
    return dropped and case.reason in (None, reason)


def our_verdicts(texts: list[str], splitter: Optional[Callable] = None) -> dict[str, np.ndarray]:
    """bool [documents] for each rule, true where our rule drops the document."""
    blocks = [measure(block) for block in cut(texts, splitter)]
    statistics = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    verdicts = {}
    for case in cases():
        filters = all_off()
        setattr(filters, case.rule, case.threshold)
        verdicts[case.rule] = decide(statistics, active_rules(filters)) >= 0
    verdicts["max_ellipsis_ratio"] &= ~verdicts["max_hash_ratio"]           # datatrove asks for the other first
    return verdicts


def all_off() -> Filters:
    """The section with every rule off."""
    lists = {field.name: [] for field in fields(Filters) if field.name in ("order", "languages")}
    numbers = {field.name: None for field in fields(Filters)}
    return Filters(**{**numbers, "min_language_probability": 0.65, **lists})


def split_once(patch: Callable[[str, Callable], None]) -> None:
    """Let datatrove's filters take the remembered words; ``patch(dotted name, function)`` replaces a function."""
    for module in ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter"):
        patch(f"datatrove.pipeline.filters.{module}.split_into_words", spacy_words)


def documents(files: list[str], per_file: int) -> list[str]:
    """Normalised documents with at least one word, no two alike."""
    chosen: dict[str, None] = {}
    for name in files or [None]:
        data = Data(source="files", files=[name]) if name else Data(packages=["numpy", "datatrove", "hypothesis", "nltk"])
        texts = _some(_texts(data), per_file)
        chosen |= dict.fromkeys(text for text in map(normalise, texts) if text)
    return list(chosen)


def _texts(data: Data) -> Iterator[str]:
    for batch in open_source(data).batches:
        yield from batch.column("text").to_pylist()


def _some(texts: Iterable[str], count: int) -> list[str]:
    """The first ``count`` documents; of long ones, 20,000 characters."""
    found = []
    for text in texts:
        found.append(text[:20_000])
        if len(found) == count:
            break
    return found


def edge_cases(count: int, seed: int = 0) -> list[str]:
    """Made-up documents near the thresholds: repetitive, bulleted, with ellipses, short lines, symbols and other scripts."""
    rng = random.Random(seed)
    words = "the be to of and that have with model data train token layer weight loss step 12 3.5 # — é naïve 世界 мир".split()
    tails = [".", ".", "!", "?", "...", "…", "", ",", " ...", '."', "。", " {", ".)"]
    heads = ["", "", "- ", "• ", "  - ", "# ", "   "]
    texts = []
    for _ in range(count):
        vocabulary = rng.sample(words, rng.randint(2, len(words)))
        pool = [rng.choice(heads) + " ".join(rng.choices(vocabulary, k=rng.randint(1, 14))).capitalize() + rng.choice(tails)
                for _ in range(rng.randint(1, 12))] + rng.sample(["", " ", "Lorem ipsum dolor.", "Mr. A. Smith, e.g. here."], 2)
        lines = rng.choices(pool, k=rng.randint(1, 30))
        texts.append(rng.choice(["\n", "\n", "\n\n"]).join(lines))
    return [text for text in map(normalise, texts) if text]


def table(texts: list[str], theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray]) -> str:
    """Markdown: for each rule the documents datatrove drops, we drop, only one of them drops, and the agreement."""
    rows = [f"| rule ({len(texts):,} documents) | datatrove drops | cram drops | only datatrove | only cram | agreement |",
            "|---|---|---|---|---|---|"]
    for rule, their in theirs.items():
        our = ours[rule]
        rows.append(f"| `{rule}` | {their.sum():,} | {our.sum():,} | {(their & ~our).sum():,} | {(our & ~their).sum():,} "
                    f"| {np.mean(their == our):.2%} |")
    return "\n".join(rows)


def differences(texts: list[str], theirs: dict[str, np.ndarray], ours: dict[str, np.ndarray], most: int = 3) -> str:
    """A few documents where the verdicts differ."""
    lines = []
    for rule, their in theirs.items():
        for index in np.flatnonzero(their != ours[rule])[:most]:
            lines.append(f"- `{rule}`, dropped by {'datatrove' if their[index] else 'cram'} alone: {texts[index][:300]!r}")
    return "\n".join(lines)


def _patch(name: str, function: Callable) -> None:
    import importlib

    module, _, attribute = name.rpartition(".")
    setattr(importlib.import_module(module), attribute, function)


def main() -> None:
    """Print both tables, and examples of what differs over datatrove's words."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--per-file", type=int, default=2000, help="documents of each file, the first ones")
    parser.add_argument("--edge-cases", type=int, default=500, help="made-up documents")
    arguments = parser.parse_args()
    split_once(_patch)
    texts = documents([str(file) for file in arguments.files], arguments.per_file) + edge_cases(arguments.edge_cases)
    texts = [text for text in texts if spacy_spans(text)]
    theirs, same = datatrove_verdicts(texts), our_verdicts(texts, spacy_spans)
    print(f"## Over datatrove's words\n\n{table(texts, theirs, same)}\n\n{differences(texts, theirs, same)}\n")
    print(f"## Over whitespace words\n\n{table(texts, theirs, our_verdicts(texts))}")


if __name__ == "__main__":
    main()
