"""Statistics of lines and paragraphs: Gopher's (Rae et al. 2021, section A1.1 and table A1) and FineWeb's (Penedo et al.
2024, section 3.6). The definitions are those of datatrove, the library that made FineWeb.

A line is blank when it has only spaces, empty when it has nothing; a paragraph is a run of lines that are not empty.
"""

from __future__ import annotations

import numpy as np

from data_prep.blocks import Block, Spans
from data_prep.characters import TERMINAL
from data_prep.spans import begins, chars_in, ends_in, repeats, salts, share, stripped_spans

SHORT_LINE = 30             # characters (FineWeb)


def measure_line_quality(block: Block) -> dict[str, np.ndarray]:
    """bullet_lines, ellipsis_lines: share of lines that begin with "-" or "•", that end in "..." or "…"; spaces aside."""
    starts, ends = stripped_spans(block)
    lines = block.lines
    bullets = begins(block.text, starts, b"-") | begins(block.text, starts, "•".encode())
    ellipses = ends_in(block.text, starts, ends, b"...") | ends_in(block.text, starts, ends, "…".encode())
    return {"bullet_lines": share(lines.per_document(bullets), lines.counts),
            "ellipsis_lines": share(lines.per_document(ellipses), lines.counts)}


def measure_line_repetition(block: Block) -> dict[str, np.ndarray]:
    """duplicate_lines, duplicate_paragraphs: share that equals an earlier one, empty lines aside;
    duplicate_line_chars, duplicate_paragraph_chars: their characters among all of the document.
    """
    lines = block.lines
    full = lines.ends > lines.starts
    statistics = {}
    for name, spans in (("line", _chosen(lines, full, full)), ("paragraph", _paragraphs(lines, full))):
        again = _repeated(block, spans)
        statistics[f"duplicate_{name}s"] = share(spans.per_document(again), spans.counts)
        statistics[f"duplicate_{name}_chars"] = share(spans.per_document(again * chars_in(block, spans)), block.chars)
    return statistics


def measure_web_lines(block: Block) -> dict[str, np.ndarray]:
    """FineWeb's, blank lines aside: punctuated_lines (share that ends in terminal punctuation), short_lines (share of at most
    30 characters), duplicated_line_chars (characters of repeated lines among all but newlines), newline_ratio (newlines
    a word). repeated_lines: share that equals an earlier one, outer spaces aside.
    """
    starts, ends = stripped_spans(block)
    written = ends > starts
    lines = _chosen(block.lines, written, written)
    chars = chars_in(block, lines)
    newlines = block.lines.counts - 1
    inner = lines._replace(starts=starts[written], ends=ends[written])
    again = _repeated(block, lines)
    return {"punctuated_lines": share(lines.per_document(block.classes[lines.ends - 1] & TERMINAL > 0), lines.counts),
            "short_lines": share(lines.per_document(chars <= SHORT_LINE), lines.counts),
            "duplicated_line_chars": share(lines.per_document(again * chars), block.chars - newlines),
            "newline_ratio": share(newlines, block.words.counts),
            "repeated_lines": share(inner.per_document(_repeated(block, inner)), inner.counts)}


def _paragraphs(lines: Spans, full: np.ndarray) -> Spans:
    begin = np.zeros(len(full), bool)
    begin[lines.first[:-1]] = True                                 # a new document begins
    begin = full & (begin | ~np.append(False, full[:-1])[:len(full)])
    after = np.append(full[1:] & ~begin[1:], False)[:len(full)]
    return _chosen(lines, begin, full & ~after)


def _chosen(spans: Spans, begin: np.ndarray, end: np.ndarray) -> Spans:
    """Spans from each beginning to the next end (bool [n])."""
    return Spans(spans.starts[begin], spans.ends[end], np.append(0, np.cumsum(begin))[spans.first])


def _repeated(block: Block, spans: Spans) -> np.ndarray:
    """bool [n]: equals an earlier span of its document."""
    return repeats(block.exact(spans.starts, spans.ends) + salts(spans))
