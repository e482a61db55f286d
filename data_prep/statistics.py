"""What a document is like: numbers only, no decisions (those are in filters.py).

All documents of a block are measured at once; every statistic is an array [documents]. Shares and ratios are float32,
counts int32, findings bool; what has no words or lines has the share 0. Characters are Unicode code points, words are
``block.words``: runs of non-space characters, unless the block was given another splitter.

Gopher (Rae et al. 2021, section A1.1) judges documents as they came; C4 (Raffel et al. 2020, section 2.2) and FineWeb
(Penedo et al. 2024, section 3.6) what is left when lines were removed. This is also the order of FineWeb's pipeline.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from data_prep.bad_words import BadWords
from data_prep.blocks import Block
from data_prep.characters import ALPHA, MARK, SPACE, START
from data_prep.spans import occurrences, share
from data_prep.statistics_lines import measure_line_quality, measure_line_repetition, measure_web_lines
from data_prep.statistics_ngrams import measure_ngrams
from data_prep.statistics_words import measure_sentences, measure_word_quality, measure_words


def measure(block: Block, edited: Optional[Block] = None, bad_words: Optional[BadWords] = None) -> dict[str, np.ndarray]:
    """Statistics of the documents of a block, arrays [documents].

    edited: the same documents after data.edits (None: nothing was edited). Only Gopher's statistics see ``block``.
    bad_words: adds the statistic ``bad_words``, true where a document has one.
    """
    edited = block if edited is None else edited
    statistics = {**_characters(edited), **measure_words(edited), **measure_sentences(edited),
                  **measure_word_quality(block), **measure_line_quality(block),
                  **measure_line_repetition(block), **measure_ngrams(block),
                  **measure_web_lines(edited)}
    if bad_words is not None:
        statistics["bad_words"] = bad_words.found(edited)
    return statistics


def _characters(block: Block) -> dict[str, np.ndarray]:
    """chars; alpha_fraction: letters and marks among non-space characters; replacement_fraction: U+FFFD among characters;
    placeholder: "lorem ipsum" in any case; curly_bracket: "{"."""
    starts = block.classes & START > 0
    solid = block.count(starts & (block.classes & SPACE == 0))
    alphabetic = block.count(starts & (block.classes & (ALPHA | MARK) > 0))
    return {"chars": block.chars.astype(np.int32), "alpha_fraction": share(alphabetic, solid),
            "replacement_fraction": share(occurrences(block, "\N{REPLACEMENT CHARACTER}".encode()), block.chars),
            "placeholder": occurrences(block, b"lorem ipsum", folded=True) > 0,
            "curly_bracket": occurrences(block, b"{") > 0}
