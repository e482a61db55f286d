"""Which documents are kept: one list of small named rules over statistics.

A rule is named as its key in ``data.filters``, which holds its threshold (null, false or []: off). At the threshold a
document stays. To add a rule: measure what it needs in statistics.py, add a line here and a key to the schema.
``max_tokens_per_char`` needs tokens and is applied where they are made (pack.py).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

import numpy as np

from data_prep.errors import DataError


@dataclass(frozen=True)
class Rule:
    """keeps(statistic [documents], threshold) -> bool [documents], true where the document stays."""

    name: str
    statistic: str
    keeps: Callable[[np.ndarray, Any], np.ndarray]


def _least(name: str) -> Rule:
    """min_x: the statistic x must be at least the threshold."""
    return Rule(name, name.removeprefix("min_"), np.greater_equal)


def _most(name: str) -> Rule:
    """max_x: the statistic x may be at most the threshold."""
    return Rule(name, name.removeprefix("max_"), np.less_equal)


def _absent(found: np.ndarray, on: Any) -> np.ndarray:
    return ~found


RULES = [
    _least("min_chars"),
    _most("max_chars"),
    _least("min_alpha_fraction"),
    # C4: Raffel et al. 2020, section 2.2 (the longest word: Google's code for it, c4_utils.py)
    Rule("max_word_length", "longest_word", np.less_equal),
    Rule("max_repeated_line_fraction", "repeated_lines", np.less_equal),       # after Gopher, table A1
    Rule("placeholder_text", "placeholder", _absent),
    Rule("curly_bracket", "curly_bracket", _absent),
    _least("min_sentences"),
    Rule("bad_words", "bad_words", _absent),
    _most("max_replacement_fraction"),
    # Language: FineWeb, Penedo et al. 2024, section 3.1
    Rule("languages", "language", np.isin),
    Rule("min_language_probability", "language_probability", np.greater_equal),
    _most("max_url_words"),                                                    # NeMo Curator, UrlsFilter
    _most("max_removed_words"),                                                # RefinedWeb: Penedo et al. 2023, appendix G.2
    # Gopher quality: Rae et al. 2021, section A1.1
    _least("min_words"),
    _most("max_words"),
    _least("min_mean_word_length"),
    _most("max_mean_word_length"),
    _most("max_hash_ratio"),
    _most("max_ellipsis_ratio"),
    _most("max_bullet_lines"),
    _most("max_ellipsis_lines"),
    _least("min_alpha_words"),
    _least("min_stop_words"),
    # Gopher repetition: Rae et al. 2021, table A1
    _most("max_duplicate_lines"),
    _most("max_duplicate_paragraphs"),
    _most("max_duplicate_line_chars"),
    _most("max_duplicate_paragraph_chars"),
    *(_most(f"max_top_{n}gram_chars") for n in range(2, 5)),
    *(_most(f"max_duplicate_{n}gram_chars") for n in range(5, 11)),
    # FineWeb: Penedo et al. 2024, section 3.6
    _least("min_punctuated_lines"),
    _most("max_short_lines"),
    _most("max_duplicated_line_chars"),
    _most("max_newline_ratio"),
    _most("max_contaminated_ngrams"),                                          # GPT-3: Brown et al. 2020, appendix C
]


def active_rules(filters: Any) -> list[tuple[Rule, Any]]:
    """(rule, threshold) of the rules that are on: those of ``filters.order`` first, then the others as listed.

    The probability of a language is asked for only when ``filters.languages`` is set. DataError for an unknown or
    repeated name in ``filters.order``.
    """
    rules = {rule.name: rule for rule in RULES}
    check_order(filters.order)
    names = dict.fromkeys([*filters.order, *rules])
    thresholds = {name: getattr(filters, name) for name in names}
    if not filters.languages:
        thresholds["min_language_probability"] = None
    off = (None, [])
    return [(rules[name], value) for name, value in thresholds.items() if value not in off and value is not False]


def decide(statistics: Mapping[str, np.ndarray], rules: Sequence[tuple[Rule, Any]]) -> np.ndarray:
    """int16 [documents]: the first of ``rules`` (from ``active_rules``) that drops the document, as its index; -1: kept."""
    fate = np.full(len(next(iter(statistics.values()))), -1, np.int16)
    for index, (rule, threshold) in enumerate(rules):
        fate[(fate < 0) & ~rule.keeps(statistics[rule.statistic], threshold)] = index
    return fate


def check_order(order: Sequence[str]) -> None:
    """DataError when ``data.filters.order`` names something that is no rule, or a rule twice."""
    known = [rule.name for rule in RULES]
    for place, name in enumerate(order):
        if name not in known:
            near = " or ".join(difflib.get_close_matches(name, known, n=2))
            advice = f"did you mean {near}?" if near else f"rules: {', '.join(known)}"
            raise DataError(f"data.filters.order: {name!r} is no rule; {advice}")
        if name in order[:place]:
            raise DataError(f"data.filters.order names {name!r} twice; leave one of them out")
