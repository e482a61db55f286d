"""The course: one text, one tokenizer, one held-out split, made by our own stages before anybody's clock starts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np
import yaml

from cram.config import load, to_dict
from cram.errors import CramError
from cram.masking import Corruption, hide_once
from cram.race.race_file import Race
from data_prep.files import replace_durably
from data_prep.shards import Shards

PROTECTED = 5       # ids below are [PAD] [UNK] [CLS] [SEP] [MASK]
MASK_SEED = 0


@dataclass(frozen=True)
class Course:
    """What all share. data, tokenizer, text: folders of the stages; settings: a configuration with these very data and
    tokenizer sections; out: where our own runs find the stages again; mirror: of benchmarks, or None."""

    kind: str
    out: Path
    text: Path
    tokenizer: Path
    data: Path
    settings: Path
    heldout_bytes: int
    mask_rate: float
    mirror: Any = None

    @cached_property
    def held_out(self) -> Shards:
        return Shards(self.data, "validation")

    @cached_property
    def training(self) -> Shards:
        return Shards(self.data, "train")

    @property
    def vocab_size(self) -> int:
        return self.held_out.vocab_size

    @property
    def special(self) -> dict[str, int]:
        return self.held_out.special

    @cached_property
    def documents(self) -> int:
        """The first held-out documents that have ``heldout_bytes`` at most; at least one."""
        return max(1, int(np.searchsorted(np.cumsum(self.held_out.document_bytes), self.heldout_bytes, side="right")))

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the documents that are scored: the same number for every competitor."""
        return int(np.sum(self.held_out.document_bytes[:self.documents]))

    @cached_property
    def stream_N(self) -> np.ndarray:
        """int64 [N]: [CLS] document [SEP] of all that is scored."""
        return self.held_out.read(0, int(self.held_out.document_starts[self.documents])).astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """sha256 of the held-out text, document by document."""
        found = hashlib.sha256()
        with open(self.data / "validation.jsonl", encoding="utf-8") as file:
            for line in islice(file, self.documents):
                found.update(json.loads(line)["text"].encode() + b"\0")
        return found.hexdigest()

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs int64 [N], positions int64 [K] ascending, labels int64 [K]: what is asked of every competitor.

        Causal: every token but [CLS], at the position before it. Masked: ``mask_rate`` of the tokens that are not special,
        corrupted 80/10/10 (Devlin et al. 2019) by a generator of its own: the same tokens, hidden the same way, for all.
        """
        if self.kind == "causal":
            positions_K = np.flatnonzero(self.stream_N[1:] != self.special["cls"])
            return self.stream_N, positions_K, self.stream_N[1:][positions_K]
        count = max(1, round(self.mask_rate * int(np.sum(self.stream_N >= PROTECTED))))
        return hide_once(self.stream_N, count, np.random.default_rng(MASK_SEED),
                         Corruption(self.special["mask"], PROTECTED, self.vocab_size))

    def facts(self) -> dict[str, Any]:
        """For the record: how much text, and which."""
        return {"training_tokens": self.training.n_tokens, "training_bytes": int(np.sum(self.training.document_bytes)),
                "vocab_size": self.vocab_size, "heldout_documents": self.documents, "heldout_bytes": self.bytes,
                "heldout_tokens": len(self.stream_N), "heldout_sha256": self.digest,
                "settings": yaml.safe_load(self.settings.read_text())}


def prepare(race: Race, folder: Path, say: Callable[[str], None]) -> Course:
    """Bring text, tokenizer and shards up to date in ``folder``. CramError when no text is held out, or a causal race has a
    tokenizer that loses text: its bits would not be of the bytes."""
    from cram.pipeline import STAGES
    from cram.stages import Runner

    names, overrides = split(race.text)
    base = load(names or "demo", [*overrides, f"out={folder}", "name=course"])
    Runner(STAGES, base, say).run("data")
    links = folder / "course"
    settings = folder / "text.yaml"
    sections = {name: section for name, section in to_dict(base).items() if name in ("data", "tokenizer")}
    replace_durably(settings, yaml.safe_dump(sections, sort_keys=False).encode())
    course = Course(race.kind, folder, *((links / name).resolve() for name in ("text", "tokenizer", "data")), settings,
                    race.heldout_bytes, race.mask_rate, base.evaluate.mirror or base.data.mirror)
    if course.held_out.n_documents == 0:
        raise CramError("the text holds no held-out document; raise data.validation_fraction or bring more text")
    if race.kind == "causal" and not course.held_out.lossless:
        raise CramError("bits per byte need a tokenizer that loses no text; use tokenizer.type=bpe")
    return course


def split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """(configuration names, overrides)."""
    return [each for each in settings if "=" not in each], [each for each in settings if "=" in each]
