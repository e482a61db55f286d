"""The eight stages, with the configuration keys that decide each one's result.

Stage functions are imported when they run, so that looking at a configuration never loads torch.
"""

from __future__ import annotations

import glob
import importlib.metadata
from pathlib import Path

from cram.config import KEYS, keys_under
from cram.stages import Stage


def _measure(config, inputs, out, key, say):
    from data_prep.measure import measure_corpus
    measure_corpus(config.data, out, key, say)


def _text(config, inputs, out, key, say):
    from data_prep.text import prepare_text
    prepare_text(config.data, inputs["measure"], out, say)


def _tokenizer(config, inputs, out, key, say):
    from data_prep.tokenizer import train_tokenizer
    train_tokenizer(config.tokenizer, inputs["text"], out, say)


def _data(config, inputs, out, key, say):
    from data_prep.pack import pack
    pack(config.data, row_tokens(config)["row_tokens"], inputs["text"], inputs["tokenizer"], out, say)


def _pretrain(config, inputs, out, key, say):
    from cram.train import pretrain
    pretrain(config, inputs["data"], inputs["tokenizer"], out, key, say)


def _evaluate(config, inputs, out, key, say):
    from cram.evaluate.stage import evaluate
    evaluate(config, inputs["text"], inputs["data"], inputs["tokenizer"], inputs["pretrain"], out, say)


def _quantize(config, inputs, out, key, say):
    from cram.after.quantize import quantize_run
    quantize_run(config, inputs["data"], inputs["tokenizer"], inputs["pretrain"], out, say)


def _report(config, inputs, out, key, say):
    from cram.report import write_report
    write_report(config, inputs, out, say)


def measure_facts(config) -> dict:
    """What the text depends on outside the configuration: package versions, or size and time of local files."""
    from data_prep.decontaminate import find

    data = config.data
    files = [path for name in data.decontaminate for path in find(name, data.mirror)] + _matching(data.validation_files)
    files += [Path(data.filters.bad_words)] if data.filters.bad_words is not None else []
    if data.source == "files":
        files += _matching(data.files)
    elif data.source == "hub" and data.mirror is not None and data.dataset is not None:
        files += [*(Path(data.mirror) / data.dataset).rglob("*"), *Path(data.mirror).glob(f"{data.dataset}.*")]
    packages = [*data.packages] if data.source == "installed-docs" else []
    packages += ["py3langid"] * data.identify_language + ["ftfy"] * data.edits.mojibake
    versions = {name: _version(name) for name in packages}
    return {**versions, **{str(path): f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
                           for path in sorted({*files}) if path.is_file()}}


def _matching(patterns: list[str]) -> list[Path]:
    return [Path(name) for pattern in patterns for name in glob.glob(pattern, recursive=True)]


def tokenizers_version(config) -> dict:
    """The library that trains decides what comes out."""
    return {"tokenizers": _version("tokenizers")}


def row_tokens(config) -> dict:
    """The row that documents are fitted into; a stream fits rows of any length."""
    return {"row_tokens": config.train.sequence_length if config.data.packing == "best-fit" else None}


def teacher_ledger(config) -> dict:
    """The teacher that a run learns from, by the last row of its ledger."""
    if config.distill.teacher is None:
        return {}
    head = Path(config.distill.teacher) / "ledger.head"
    return {"distill.teacher": head.read_text() if head.is_file() else "missing"}


def _version(package: str) -> str:
    """Version of the distribution that provides an import name, or 'not installed'."""
    package = package.partition(".")[0]
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(package, [])
        return importlib.metadata.version(names[0]) if names else "not installed"


def _except(*names: str) -> tuple[str, ...]:
    """Every configuration key outside these keys and sections."""
    return tuple(key for key in KEYS if not any(key == name or key.startswith(name + ".") for name in names))


# What decides about the documents that were measured; all other keys of the data section are about measuring.
_DECIDING = ("data.filters", "data.exact_dedup", "data.near_dedup.mode", "data.near_dedup.verify", "data.validation_fraction",
             "data.validation_max_bytes", "data.licence")
_PACKING = ("data.packing", "data.filters.max_tokens_per_char")
_RUNNING = ("data.engine", "data.workers")      # where the work is done: without effect on what comes out
_TOLD = ("data.source", "data.validation_files", "data.validation_fraction", "data.validation_max_bytes")   # in messages alone
_MIRROR = ("data.mirror",)                      # what is read from it is among the facts
_BESIDE_TRAINING = ("name", "out", "data", "tokenizer", "evaluate", "quantize", "telemetry", "train.checkpoint_every",
                    "train.checkpoint_every_steps", "train.keep_checkpoints")


def _data_keys(*without: str) -> tuple[str, ...]:
    return tuple(key for key in KEYS if key.startswith("data.") and not any(key == name or key.startswith(name + ".")
                                                                           for name in without))


STAGES = (
    Stage("measure", 1, inputs=(), function=_measure, facts=measure_facts, resumable=True,
          free=(*_RUNNING, *_MIRROR, "data.filters.languages"),
          keys=(*_data_keys(*_DECIDING, *_PACKING, *_RUNNING, *_MIRROR), "data.filters.bad_words")),
    Stage("text", 2, inputs=("measure",), function=_text,
          free=("data.source", "data.near_dedup", "data.decontaminate", "data.validation_files"),
          keys=tuple(key for key in keys_under(_DECIDING) if key not in _PACKING)),
    Stage("tokenizer", 2, inputs=("text",), function=_tokenizer, facts=tokenizers_version, keys=("tokenizer",)),
    Stage("data", 3, inputs=("text", "tokenizer"), function=_data, facts=row_tokens, resumable=True, keys=_PACKING,
          free=(*_RUNNING, *_TOLD, "train.sequence_length")),
    Stage("pretrain", 2, inputs=("tokenizer", "data"), function=_pretrain, facts=teacher_ledger, resumable=True, precious=True,
          keys=_except(*_BESIDE_TRAINING), free=_BESIDE_TRAINING),
    Stage("evaluate", 2, inputs=("text", "tokenizer", "data", "pretrain"), function=_evaluate,
          keys=("seed", "objective.type", "train.sequence_length", "evaluate", "data.mirror"),
          free=("train.device", "train.precision", "train.threads")),
    Stage("quantize", 1, inputs=("tokenizer", "data", "pretrain"), function=_quantize,
          keys=("seed", "objective.type", "train.sequence_length", "evaluate.mask_rate", "quantize"),
          free=("name", "train.device", "train.precision", "train.threads")),
    Stage("report", 3, inputs=("text", "tokenizer", "data", "pretrain", "evaluate", "quantize"), function=_report,
          keys=tuple(KEYS)),
)
