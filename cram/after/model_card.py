"""The model card of a run: what a stranger should know of the model before using it, in the form that the hub reads.

Every number comes from a file of the run; what the run does not record is said to be unknown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Optional

import yaml

from cram import __version__
from cram.audit import Summary, read_ledger
from cram.evaluate.averages import averages
from cram.evaluate.benchmark_page import benchmark_table, scored
from cram.evaluate.subject import Subject
from cram.evaluate.table import COLUMNS
from cram.explain import differences, show
from cram.schema import Config
from cram.telemetry import read_metrics
from data_prep.errors import DataError

LOCAL = ("name", "out", "data.files", "data.mirror", "data.validation_files", "data.decontaminate", "evaluate.mirror", "evaluate.tasks",
         "distill.teacher", "train.replay")  # keys that say where things lie on the machine of the run
LOAD = {True: """```python
from transformers import pipeline

generate = pipeline("text-generation", "{name}")
print(generate({text!r}, max_new_tokens=40)[0]["generated_text"])
```""", False: """```python
from transformers import pipeline

fill = pipeline("fill-mask", "{name}")
print(fill({text!r})[0]["sequence"])
```"""}


def model_card(subject: Subject, stock: str, dtype: str, name: str = ".") -> str:
    """Markdown with the hub's YAML header. stock: the class of transformers; dtype: of the weights; name: of the folder in
    the example, seen from itself."""
    run, config, causal = subject.folder, subject.config, subject.kind != "masked"
    text, data = (_read(run / stage / "manifest.json") for stage in ("text", "data"))
    ledger_path = run / "pretrain" / "ledger.jsonl"
    ledger = read_ledger(ledger_path) if ledger_path.exists() else None
    source, scores = text.get("source", {}), _read(run / "evaluate" / "scores.json")
    later = _read(run / "benchmarks" / "benchmarks.json")  # of cram evaluate
    benchmarks = scores.get("benchmarks", {}) | (later["results"] if later.get("identity") == subject.identity else {})
    example = (config.evaluate.prompts or ["The"])[0] if causal else (config.evaluate.blanks or ["The [MASK]."])[0]
    hybrid = " It was trained as a hybrid of both kinds; this is its causal half." if subject.kind == "hybrid" else ""
    parts = [
        _header(config, source, causal), f"# {subject.name}",
        f"A {'causal' if causal else 'masked'} language model pretrained from scratch with cram {__version__} within a fixed "
        f"budget, {config.budget}. {subject.model.parameter_count():,} parameters; stored as `{stock}` in {dtype}, which "
        f"transformers 5 and newer load without code of its own.{hybrid}",
        "## How to use it", LOAD[causal].format(name=name, text=example), _reads(subject, causal),
        "## Scores", *_scores(scores), *_benchmarks(benchmarks),
        "## Training text", *_data(source, data),
        "## What it cost", *_cost(ledger, config, _device(run / "pretrain" / "metrics.jsonl")),
        "## Limitations", _limitations(subject, causal),
        "## Configuration", "What differs from cram's defaults; `config.json` of the run has everything.",
        _table(["key", "value"], [[f"`{key}`", f"`{show(value)}`"] for key, value, _ in differences(config, Config())
                                  if key not in LOCAL]),
        "## Provenance", _table(["what", "value"], _provenance(subject, data, ledger)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(config: Config, source: dict, causal: bool) -> str:
    """The metadata block of a model card (huggingface.co/docs/hub/model-cards). The licence of a model is its maker's to
    choose, so none is claimed; the languages are those that the text was filtered for, if it was."""
    header: dict[str, Any] = {"license": "other", "license_name": "not-chosen", "library_name": "transformers",
                              "pipeline_tag": "text-generation" if causal else "fill-mask",
                              "tags": ["cram", "pretrained-from-scratch", config.objective.type + "-language-model"]}
    if config.data.filters.languages:
        header["language"] = list(config.data.filters.languages)
    if source.get("dataset"):
        header["datasets"] = [source["dataset"]]
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---"


def _reads(subject: Subject, causal: bool) -> str:
    begins = "`[CLS] text`, and writes `[SEP]` when it is done" if causal else (
        "`[CLS] text [SEP]`; each `[MASK]` stands for one token and takes the space before it")
    return (f"It reads {begins}; the tokenizer in this folder adds these tokens. Sequences of up to {subject.row} tokens were "
            "trained on. Special tokens written in a text, such as `[SEP]`, are read as such, not as text.")


def _scores(scores: dict) -> list[str]:
    if "held_out" not in scores:
        return ["Not evaluated."]
    rows = [("this model", scores["held_out"]), *scores.get("baselines", {}).items()]
    used = [name for name in COLUMNS if any(row.get(name) is not None for _, row in rows)]
    table = _table(["held-out text", *(COLUMNS[name] for name in used)],
                   [[title, *(_number(row.get(name)) for name in used)] for title, row in rows])
    pairs = scores.get("minimal_pairs", {})
    return [table, f"Minimal pairs (BLiMP): {100 * pairs['accuracy']:.1f}% of {pairs['pairs']:,} right (95% interval "
                   f"{100 * pairs['low']:.1f} to {100 * pairs['high']:.1f}; chance is 50)." if "accuracy" in pairs else ""]


def _benchmarks(results: dict[str, dict]) -> list[str]:
    """As in the report, without the scores of others."""
    if not scored(results):
        return []
    header, rows = benchmark_table(results)
    keep = [index for index, title in enumerate(header) if title != "others"]
    return [_table([header[index] for index in keep], [[row[index] for index in keep] for row in rows]), *averages(results)]


def _data(source: dict, data: dict) -> list[str]:
    if not data:
        return ["Not recorded in this run."]
    rows = [[key, _plain(value)] for key, value in source.items() if key not in ("licence", "files")]
    if source.get("files"):
        rows.append(["files", f"{len(source['files'])}"])
    licence = source.get("licence")
    stated = ("What the text is licensed under was not stated." if not licence else "Licences, as the sources state them: "
              + ("; ".join(f"{name}: {value or 'not stated'}" for name, value in licence.items())
                 if isinstance(licence, dict) else str(licence)) + ".")
    splits = [[name, *(f"{split[unit]:,}" for unit in ("documents", "bytes", "tokens"))]
              for name, split in data["splits"].items()]
    return [_table(["source", ""], rows), stated, _table(["split", "documents", "bytes", "tokens"], splits)]


def _device(metrics: Path) -> str:
    """What the run ran on, as its last plan says."""
    plans = [row["device"] for row in read_metrics(metrics) if row["kind"] == "plan"] if metrics.exists() else []
    return plans[-1] if plans else "not recorded"


def _cost(ledger: Optional[Summary], config: Config, device: str) -> list[str]:
    if ledger is None:
        return ["Not recorded in this run."]
    opened = [row for row in ledger.rows if row["kind"] == "open"]
    rows = [["budget", ledger.budget], ["device time (all processes together)", f"{ledger.seconds / 3600:.3f} hours"],
            ["tokens seen", f"{ledger.own('tokens'):,}"], ["steps", f"{ledger.own('steps'):,}"],
            ["FLOPs", f"{ledger.own('flops'):.3g}"],
            ["energy", "not measured" if ledger.energy_joules is None else f"{ledger.energy_joules / 3.6e6:.3f} kWh"],
            ["device", device], ["processes", str(max(row.get("world_size", 1) for row in opened))]]
    if config.telemetry.usd_per_hour is not None:
        rows.append(["cost", f"{ledger.seconds / 3600 * config.telemetry.usd_per_hour:.2f} USD"])
    if (teacher := ledger.teacher) is not None:
        rows.append(["of it, the teacher's",
                     f"{teacher.seconds / 3600:.3f} hours, {teacher.tokens:,} tokens (run {teacher.run_id})"])
    return [_table(["what", ""], rows), "Preparing the text, training the tokenizer and evaluation are not part of the budget."]


def _limitations(subject: Subject, causal: bool) -> str:
    deeds = ("It may write what is false, and repeats what its training text says, bias and all."
             if causal else "What it fills in is what its training text makes likely, bias and all, not what is true.")
    return "\n".join(f"- {line}" for line in (
        f"It is small and was trained for one fixed budget ({subject.config.budget}): far less than models in use.", deeds,
        "It was not tuned to follow instructions, nor to be safe or polite; do not put it before people without that.",
        f"Nothing is known of it beyond {subject.row} tokens, nor on kinds of text and languages other than those above.",
        "Its scores are from one training run: another seed gives other ones."))


def _provenance(subject: Subject, data: dict, ledger: Optional[Summary]) -> list[list[str]]:
    rows = [["weights of the run", f"xxh3-128 `{subject.identity['weights']}`"]]
    if data:
        rows.append(["tokenizer", f"{data['vocab_size']:,} tokens, sha256 `{data['tokenizer_sha256']}`"])
    if ledger is not None:
        rows += [["run", f"`{ledger.run_id}`"], ["ledger, verified", f"`{ledger.head}`"]]
    return rows


def _table(header: list[str], rows: list[list[str]]) -> str:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *cells])


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in value.items()) if isinstance(value, dict) else show(value)


def _number(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.4f}"


def _read(path: Path) -> dict:
    """A JSON file of the run, or nothing when the run has none. DataError when it is not JSON."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); run the stage that writes it again with --force") from error
