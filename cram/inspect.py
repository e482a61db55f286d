"""``cram data inspect``: look at what a run's data stages kept and dropped, and why. Changes no result.

Reads ``runs/<name>/{text,tokenizer,data}`` (the last two where they are there) and writes ``runs/<name>/inspect/``:
index.html (the page), inspect.json (its numbers) and tensorboard/ (the same for TensorBoard).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

from cram.errors import CramError
from cram.inspect_board import write_board
from cram.inspect_page import page
from data_prep.files import replace_durably


def inspect(config: Any, links: Path, say: Callable[[str], None]) -> None:
    """Inspect the run whose results are linked from ``links``. Raises CramError where its text is not there.

    config: the whole configuration; its name and seed are used.
    """
    from data_prep.inspection import inspect_text
    from data_prep.inspection_funnel import packed_from

    text, tokenizer, data = (links / stage for stage in ("text", "tokenizer", "data"))
    if not (text / "manifest.json").is_file():
        raise CramError(f"{text}: no text to inspect yet; run: cram text")
    there = {folder: folder if (folder / "manifest.json").is_file() else None for folder in (tokenizer, data)}
    if there[data] and not packed_from(data, text):
        say(f"inspect: {data} was packed from other text and is left out; bring it up to date with: cram data")
        there[data] = None
    found = inspect_text(text, there[tokenizer], there[data], seed=config.seed)
    out = links / "inspect"
    out.mkdir(exist_ok=True)
    replace_durably(out / "inspect.json", (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    write_board(found, out / "tensorboard")
    replace_durably(out / "index.html", page(found, config.name).encode())
    read, kept = found["funnel"][0], found["funnel"][-1]
    say(f"inspect: {read['documents']:,} documents read, {kept['documents']:,} kept; page: {out / 'index.html'}, "
        f"tensorboard --logdir {out / 'tensorboard'}")
