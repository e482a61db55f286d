"""Text made for a question about text: training text as asked for, and clean held-out text that is the same for every arm.

``clean``: documents of the baseline's source without near-duplicates. ``web``: pages as dirty as the web's made from them
(cram/bench/web_text.py). Some of the documents are held out first, so that no arm trains on what it is scored on; arms that
filter, drop or repeat text, each with a tokenizer of its own, then compare in bits per byte of the same text.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Callable

from cram.bench.corpora import distinct, megabytes, take
from cram.bench.filters import Plan, write_corpora
from cram.config import load
from cram.errors import CramError
from cram.insight.ablate.arms import corpus_settings
from cram.insight.ablate.question import Question
from data_prep.files import replace_durably
from data_prep.normalise import normalise
from data_prep.sources import open_source
from data_prep.sources.batches import limited

__all__ = ["corpus_settings", "make_corpus"]
HELD_OUT = 0.06     # share of the text
MOST_HELD_OUT = 1.0  # MB


def make_corpus(question: Question, folder: Path, say: Callable[[str], None]) -> None:
    """Write ``<corpus>.jsonl`` and ``held_out.jsonl`` into ``folder``, unless they are there with the same content: their time
    is part of what a run was made from. CramError when the source holds too little."""
    config = load(list(question.configs), question.common)
    read = (text for batch in limited(open_source(config.data).batches, config.data.max_bytes)
            for text in batch.column("text").to_pylist())
    texts = [text for text in map(normalise, read) if len(text) >= (config.data.filters.min_chars or 1)]
    random.Random(0).shuffle(texts)
    held_out = min(MOST_HELD_OUT, HELD_OUT * megabytes(texts))
    if question.corpus == "web":
        _, _, kinds = write_corpora(texts, Plan(megabytes=1e9, held_out=held_out), folder)
        say("text: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()))
        return
    documents = distinct(texts)
    parts = {"held_out": take(documents, held_out), "clean": [*documents]}
    if not parts["clean"]:
        raise CramError(f"the text of {question.path} holds {megabytes(texts):.2f} MB: too little; name more data.packages")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in part).encode()
        path = folder / f"{name}.jsonl"
        if not path.exists() or path.read_bytes() != content:
            replace_durably(path, content)
    say(f"text: {len(parts['clean']):,} documents, {len(parts['held_out']):,} held out")
