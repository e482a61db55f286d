"""The six stages, with the configuration keys that decide each one's result.

Stage functions are imported when they run, so that looking at a configuration never loads torch.
"""

from __future__ import annotations

import glob
import importlib.metadata
from pathlib import Path

from cram.config import KEYS
from cram.stages import Stage


def _text(config, inputs, out, key, say):
    from data_prep.text import prepare_text
    prepare_text(config.data, out, say)


def _tokenizer(config, inputs, out, key, say):
    from data_prep.tokenizer import train_tokenizer
    train_tokenizer(config.tokenizer, inputs["text"], out, say)


def _data(config, inputs, out, key, say):
    from data_prep.pack import pack
    pack(config.data, inputs["text"], inputs["tokenizer"], out, say)


def _pretrain(config, inputs, out, key, say):
    from cram.train import pretrain
    pretrain(config, inputs["data"], inputs["tokenizer"], out, key, say)


def _evaluate(config, inputs, out, key, say):
    from cram.evaluate.stage import evaluate
    evaluate(config, inputs["data"], inputs["tokenizer"], inputs["pretrain"], out, say)


def _report(config, inputs, out, key, say):
    from cram.report import write_report
    write_report(config, inputs["text"], inputs["tokenizer"], inputs["data"], inputs["pretrain"], inputs["evaluate"], out,
                 say)


def text_facts(config) -> dict:
    """What the text depends on outside the configuration: package versions, or size and time of local files."""
    data = config.data
    if data.source == "installed-docs":
        return {name: _version(name) for name in data.packages}
    if data.source == "files":
        files = [Path(name) for pattern in data.files for name in glob.glob(pattern, recursive=True)]
    elif data.mirror is not None and data.dataset is not None:
        files = [*(Path(data.mirror) / data.dataset).rglob("*")]
    else:
        files = []
    return {str(path): f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}" for path in sorted(files) if path.is_file()}


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


_PACKED = ("data.shard_tokens", "data.filters.max_tokens_per_char")
_BESIDE_TRAINING = ("name", "out", "data", "tokenizer", "evaluate", "telemetry", "train.checkpoint_every",
                    "train.checkpoint_every_steps", "train.keep_checkpoints")

STAGES = (
    Stage("text", 1, inputs=(), function=_text, facts=text_facts,
          keys=tuple(key for key in KEYS if key.startswith("data.") and key not in _PACKED)),
    Stage("tokenizer", 1, inputs=("text",), function=_tokenizer, keys=("tokenizer",)),
    Stage("data", 1, inputs=("text", "tokenizer"), function=_data, keys=_PACKED),
    Stage("pretrain", 1, inputs=("tokenizer", "data"), function=_pretrain, resumable=True,
          keys=_except(*_BESIDE_TRAINING), free=_BESIDE_TRAINING),
    Stage("evaluate", 1, inputs=("tokenizer", "data", "pretrain"), function=_evaluate,
          keys=("seed", "objective.type", "train.sequence_length", "evaluate", "data.mirror"),
          free=("train.device", "train.precision", "train.threads")),
    Stage("report", 1, inputs=("text", "tokenizer", "data", "pretrain", "evaluate"), function=_report, keys=tuple(KEYS)),
)
