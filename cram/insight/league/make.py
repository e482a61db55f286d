"""Make the card of a finished run. What is not finished, evaluated and whole gets none."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

import numpy as np

from cram import __version__, artifacts
from cram.errors import CramError
from cram.insight.league.card import VERSION, bare, check_words, evenly
from cram.insight.league.pack import pack
from cram.insight.league.source import source_files
from cram.insight.run import Run, open_run
from data_prep.files import file_hash

STAGES = ("tokenizer", "data", "pretrain", "evaluate")
PLAN = ("device", "processes", "parameters", "micro_batch_tokens", "precision", "flops_per_token")  # what checks rest on
MOST_FILES = 600  # of packed data whose hashes a card lists; beyond that their digest alone


def make_card(folder: Path, author: str = "", name: Optional[str] = None) -> dict[str, Any]:
    """The body of the card of the run in ``folder``, unsigned. Raises CramError, with the remedy, for a run that is
    unfinished, unevaluated, overspent, or whose files are not those that its stages wrote."""
    run = open_run(folder)
    check_words({"name": name or run.name, "author": author, "made": "now", "run_id": run.ledger.run_id,
                 "budget": run.ledger.budget})
    records = {stage: _record(run, stage) for stage in STAGES}
    _refuse(run, records)
    pretrain, newest = folder / "pretrain", f"checkpoints/step-{run.ledger.own('steps'):08d}/state.pt"
    weights = pretrain / newest
    progress = np.fromfile(pretrain / "progress.f64", dtype=np.float64)
    manifest = json.loads((folder / "data" / "manifest.json").read_text(encoding="utf-8"))
    rows = [bare(row) for row in run.ledger.rows]
    files = source_files()
    return {
        "cram_card": VERSION, "name": name or run.name, "author": author,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "run_id": run.ledger.run_id, "budget": run.ledger.budget, "stages": records,
        "config": json.loads((pretrain / "config.json").read_text(encoding="utf-8")),
        "ledger": {"rows": len(rows), "head": run.ledger.head, "sha256": _sha256(pretrain / "ledger.jsonl"),
                   "packed": pack(rows)},
        "metrics": {"rows": len(run.metrics), "sha256": _sha256(pretrain / "metrics.jsonl"),
                    "packed": pack(thin(run.metrics))},
        "progress": {"steps": len(progress), "last": float(progress[-1]) if len(progress) else 0.0,
                     "sha256": _sha256(pretrain / "progress.f64")},
        "scores": run.scores,
        "data": {"vocab_size": manifest["vocab_size"], "tokenizer_sha256": manifest["tokenizer_sha256"],
                 "lossless": manifest["lossless"],
                 "splits": {split: {key: entry[key] for key in ("tokens", "documents", "bytes")}
                            for split, entry in manifest["splits"].items()}},
        "hardware": {"device": run.plan["device"], "processes": run.plan["processes"], "machine": platform.machine(),
                     "cores": os.cpu_count()},
        "versions": {"cram": __version__, "python": platform.python_version(), "system": platform.system(),
                     **{package: importlib.metadata.version(package) for package in ("torch", "numpy", "tokenizers")}},
        "code": {"sha256": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(), "files": files},
        "weights": {"step": run.ledger.own("steps"), "sha256": _sha256(weights),
                    "xxh3_128": records["pretrain"]["files"][newest]["xxh3_128"], "package": None},
    }


def thin(rows: list[dict]) -> list[dict]:
    """Rows of metrics without samples of text, and no more than card.MOST_ROWS of a kind; in their order."""
    kept: set[int] = set()
    for kind in {row["kind"] for row in rows} - {"sample"}:
        places = [place for place, row in enumerate(rows) if row["kind"] == kind]
        kept.update(places[number] for number in evenly(len(places)))
    return [rows[place] for place in sorted(kept)]


def _record(run: Run, stage: str) -> dict[str, Any]:
    """What ``stage.json`` says: identity, digest, files. CramError where a file is not the one that was written."""
    folder = run.folder / stage
    record = artifacts.read_record(folder)
    if record is None:
        raise CramError(f"{folder}: not the complete result of a stage; bring the run up to date with cram run and its keys")
    for name, entry in record["files"].items():
        path = folder / name
        if stage == "data" and name.startswith("train-"):
            whole = path.is_file() and path.stat().st_size == entry["bytes"]  # may be many gigabytes
        else:
            whole = path.is_file() and file_hash(path) == entry["xxh3_128"]
        if not whole:
            raise CramError(f"{path}: is not the file that the {stage} stage wrote; restore it, or make the run again")
    listed = len(record["files"]) <= MOST_FILES
    return {"identity": record["identity"], "digest": record["digest"], "files": record["files"] if listed else None}


def _refuse(run: Run, records: dict[str, dict]) -> None:
    """Raise CramError for a run that no league would take."""
    ledger, folder = run.ledger, run.folder
    if not run.finished:
        raise CramError(f"{folder}: this run is not finished ({ledger.fraction:.0%} of {ledger.budget} spent); the command "
                        "that began it goes on with it")
    if run.scores is None:
        raise CramError(f"{folder}: not evaluated yet; bring the run up to date with cram evaluate and its keys")
    if ledger.fraction > 1 + 1e-9:
        raise CramError(f"{folder}: overspent: {ledger.fraction:.2%} of {ledger.budget}; no league takes that")
    for stage in STAGES[1:]:
        for name, digest in records[stage]["identity"]["inputs"].items():
            if name in records and records[name]["digest"] != digest:
                raise CramError(f"{folder / stage}: was made from another {name} than the one beside it; bring the run up to "
                                "date with cram run and its keys")
    if missing := [name for name in PLAN if name not in run.plan]:
        raise CramError(f"{folder}: its plan does not tell {', '.join(missing)}: made by an older cram; make the run again")
    if not (folder / "pretrain" / "progress.f64").is_file():
        raise CramError(f"{folder / 'pretrain'}: progress.f64 is missing; restore it")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
