"""Who is evaluated: a model with its tokenizer, ours or somebody else's, behind the few things that scoring asks of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Literal, Optional, Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from cram.audit import read_ledger
from cram.budget import Budget
from cram.checkpoint import load_model
from cram.config import from_dict
from cram.errors import CramError
from cram.ops import Documents
from cram.schema import Config
from data_prep.files import file_hash
from data_prep.tokenizer import load_tokenizer

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}


class Scorable(Protocol):
    """What a model must offer: hidden states of a packed stream, and the head on chosen positions (``cram.model``)."""

    vocab_size: int
    causal: bool
    training: bool

    def __call__(self, ids_N: Tensor, documents: Documents, causal: Optional[bool] = None) -> Tensor: ...
    def logits(self, x_PD: Tensor) -> Tensor: ...
    def train(self, mode: bool = True) -> Any: ...
    def eval(self) -> Any: ...


@dataclass
class Subject:
    """A model as evaluation sees it.

    tokenizer: used without its post-processor. special: token ids by name; cls opens a sequence, sep ends a document, mask
    only where there is one. kind: hybrid models are built causal and score both ways. row: tokens of the longest sequence
    that it was made for. identity: what a score depends on, to find it again: the hash of the weights above all.
    config: of the run, None for a model of others. folder: the run's, or the model's.
    """

    name: str
    model: Any
    tokenizer: Tokenizer
    special: dict[str, int]
    kind: Literal["masked", "causal", "hybrid"]
    row: int
    device: str
    identity: dict[str, Any]
    folder: Path
    config: Optional[Config] = None
    notes: dict[str, Any] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens. CramError for half characters (lone surrogates)."""
        if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
            raise CramError(f"{text!r} is not valid Unicode text; write it in UTF-8")
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def choose(device: str = "auto") -> str:
    """\"cuda\" where there is a card and nobody asks for the CPU, else \"cpu\". CramError when a card is asked for that is not
    there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise CramError("there is no CUDA device here; use auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def open_subject(where: str | Path, *, device: str = "auto", say: Callable[[str], None] = print) -> Subject:
    """A finished run (``runs/demo``), a folder that ``cram quantize --save`` wrote, a Hugging Face model's, or
    ``hf:<name on the hub>``.

    Raises CramError when there is no such thing, or its parts do not fit together.
    """
    name, folder = str(where), Path(where)
    if name.startswith("hf:") or not (folder / "pretrain").exists() and _is_hugging_face(folder):
        from cram.after.imported import open_imported  # only this needs transformers
        return open_imported(name.removeprefix("hf:"), device=choose(device))
    if (folder / "quantized.json").is_file():
        from cram.after.quantized import open_quantized
        return open_quantized(folder, device=choose(device))
    if not folder.is_dir():
        raise CramError(f"{folder}: no such folder; give a run's, such as runs/demo, or a Hugging Face model's")
    if (folder / "pretrain").is_symlink() and not (folder / "pretrain").exists():
        raise CramError(f"{folder}: its links lead nowhere, as after a copy; copy a run with: cp -rL")
    if not (folder / "pretrain" / "config.json").exists():
        raise CramError(f"{folder}: no finished run there (pretrain/config.json is missing); give a run's folder, such as "
                        "runs/demo")
    return open_run(folder.name, folder / "pretrain", folder / "tokenizer", device=choose(device), say=say)


def open_run(name: str, pretrain_dir: Path, tokenizer_dir: Path, *, device: str,
             say: Callable[[str], None] = print) -> Subject:
    """A run by the folders of its stages."""
    path = pretrain_dir / "config.json"
    try:
        config = from_dict(_read_json(path)) if path.exists() else None  # without one load_model says what to do
    except CramError as error:
        raise CramError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    model, tokenizer = load_model(pretrain_dir, device, say), load_tokenizer(tokenizer_dir)
    if model.vocab_size != tokenizer.get_vocab_size():
        raise CramError(f"{pretrain_dir}: the model has {model.vocab_size} tokens, the tokenizer in {tokenizer_dir} "
                        f"{tokenizer.get_vocab_size()}; run the pretrain stage again")
    special = {short: tokenizer.token_to_id(token) for short, token in SPECIAL.items()}
    newest = sorted((pretrain_dir / "checkpoints").glob("step-*[0-9]/manifest.json"))[-1]
    identity = {"weights": json.loads(newest.read_text())["xxh3_128"],
                "tokenizer": file_hash(tokenizer_dir / "tokenizer.json")}
    notes = {}
    if (spent := _unfinished(pretrain_dir)) is not None:
        notes["unfinished"] = spent
        say(f"{pretrain_dir}: this run is NOT finished, {spent} spent; its newest checkpoint is taken")
    return Subject(name, model, tokenizer, special, config.objective.type, config.train.sequence_length, device, identity,
                   pretrain_dir.parent, config, notes)


def _is_hugging_face(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and "model_type" in _read_json(path)


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise CramError(f"{path}: not JSON ({error}); restore it") from error


def _unfinished(pretrain_dir: Path) -> Optional[str]:
    """'62 of 400 steps' of a run that has not spent its budget; None when it has, or has no ledger."""
    path = pretrain_dir / "ledger.jsonl"
    ledger = read_ledger(path) if path.exists() else None
    if ledger is None or ledger.reason == "finished":
        return None
    return f"{Budget.parse(ledger.budget).show(ledger.spent)} of {ledger.budget}"
