"""Which documents are kept: one list of small named rules over statistics.

A rule is named as its key in ``data.filters``, which holds its threshold (null or false: off). To add
one: measure what it needs in statistics.py, add a line here and a key to the schema.
``max_tokens_per_char`` needs tokens and is applied where they are made (pack.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from data_prep.funnel import Funnel
from data_prep.statistics import measure


@dataclass(frozen=True)
class Rule:
    """keeps(statistic [documents], threshold) -> bool [documents], true where the document stays."""

    name: str
    statistic: str
    keeps: Callable[[np.ndarray, Any], np.ndarray]


RULES = [
    Rule("min_chars", "chars", np.greater_equal),
    Rule("max_chars", "chars", np.less_equal),
    Rule("min_alpha_fraction", "alpha_fraction", np.greater_equal),
    Rule("max_word_length", "longest_word", np.less_equal),                    # C4: Raffel et al. 2020, section 2.2
    Rule("max_repeated_line_fraction", "repeated_lines", np.less_equal),       # Gopher: Rae et al. 2021, table A1
    Rule("placeholder_text", "placeholder", lambda found, on: ~found),         # C4, section 2.2
]


def active_rules(filters: Any) -> list[tuple[Rule, Any]]:
    """(rule, threshold) of the rules that are on, in order."""
    thresholds = [(rule, getattr(filters, rule.name)) for rule in RULES]
    return [(rule, value) for rule, value in thresholds if value is not None and value is not False]


def passing(texts: list[str], filters: Any, funnel: Funnel) -> np.ndarray:
    """bool [documents]: which pass every rule. A document is counted under the first rule that drops it."""
    alive = np.ones(len(texts), bool)
    statistics = measure(texts)
    for rule, threshold in active_rules(filters):
        dropped = alive & ~rule.keeps(statistics[rule.statistic], threshold)
        funnel.drop(rule.name, [texts[index] for index in np.flatnonzero(dropped)])
        alive &= ~dropped
    return alive
