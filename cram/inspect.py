"""``cram data inspect``: look at what a run's data stages kept and dropped, and why. Changes no result.

Reads the results of the stages text, tokenizer and data (the last two where they are there) and writes
index.html (the page), inspect.json (its numbers) and tensorboard/ (the same for TensorBoard).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Callable, Mapping

from cram.inspect_board import write_board
from cram.inspect_page import page
from data_prep.files import replace_durably


def inspect(name: str, seed: int, folders: Mapping[str, Path], out: Path, say: Callable[[str], None]) -> None:
    """Write what there is to see into ``out``. name: of the run, for the title; seed: of the samples drawn.

    folders: result of each stage: "text", and "tokenizer" and "data" where they are made from it. Raises DataError when
    a file in them is missing or damaged.
    """
    from data_prep.inspection import inspect_text

    found = inspect_text(folders["text"], folders.get("tokenizer"), folders.get("data"), seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    replace_durably(out / "inspect.json", (json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())
    write_board(found, out / "tensorboard")
    replace_durably(out / "index.html", page(found, name).encode())
    read, kept = found["funnel"][0], found["funnel"][-1]
    say(f"inspect: {read['documents']:,} documents read, {kept['documents']:,} kept; page: {out / 'index.html'}, "
        f"tensorboard --logdir {out / 'tensorboard'}")
