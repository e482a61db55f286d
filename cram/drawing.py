"""Drawings for pages: matplotlib figures as SVG text that follows the page's colours and is the same bytes every time."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Iterator

INK = "#010203"     # drawn where the page's text colour belongs
BLUE, ORANGE, GREEN, RED, VIOLET, BROWN = COLOURS = ("#4c8bd6", "#e0802f", "#5fa55a", "#c9545c", "#8d6fc0", "#8c6d4f")


class Drawing:
    """A figure to draw on, and its ``svg`` once the block is left."""

    def __init__(self, figure):
        self.figure, self.svg = figure, ""


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Drawing]:
    """``with drawing(6.2, 4) as made: made.figure.subplots()...``, then ``made.svg``. Sizes in inches; 6.2 fills a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = {name: INK for name in ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")}
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cram", "font.family": "sans-serif", "font.size": 11,
                                "axes.spines.top": False, "axes.spines.right": False, **ink}):
        made = Drawing(Figure(figsize=(width, height), layout="constrained"))
        FigureCanvasSVG(made.figure)
        yield made
        buffer = io.StringIO()
        made.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    made.svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
