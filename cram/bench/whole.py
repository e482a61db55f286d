"""The whole preparation end to end: text files in, packed tokens out, by the command that a user would give.

``cram data`` runs in a process of its own, over corpora of several sizes, with one worker and with two. Seconds are those
that each stage notes in its ``stage.json``; memory is that of the process and its children together (memory.py). A
stage is linear when its time a megabyte stays the same.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Sequence

from cram.bench.corpora import GROWTH, describe, grow, megabytes
from cram.bench.measure import attempt
from cram.bench.memory import TreeMemory
from cram.errors import CramError

STAGES = ("measure", "text", "tokenizer", "data")
TOGETHER = "all stages"
SIZES = (10.0, 50.0)
WORKERS = (1, 2)
SETTINGS = ("filters/fineweb", "tokenizer.vocab_size=32768")
QUICK = ("filters/fineweb", "tokenizer.vocab_size=512", "data.part_bytes=200000", "data.filters.min_sentences=null",
         "data.filters.min_words=null", "data.filters.min_punctuated_lines=null", "data.filters.curly_bracket=false")
VIEW = {"title": "Preparing text, end to end", "panel": "workers: {workers}", "x": "megabytes", "line": "stage",
        "kind": "lines", "baseline": "", "y": [["ms_per_mb", "ms a megabyte"], ["peak_mib", "peak memory, MiB"]],
        "columns": [["text, MB", "megabytes", ",.1f"], ["stage", "stage", ""], ["seconds", "seconds", ".2f"],
                    ["CPU-seconds", "cpu_seconds", ".2f"],
                    ["MB/s", "mb_s", ".2f"], ["ms a MB", "ms_per_mb", ".1f"], ["of the smallest corpus", "relative", ".2f"],
                    ["peak memory, MiB", "peak_mib", ",.0f"], ["largest process, MiB", "largest_mib", ",.0f"],
                    ["documents", "documents", ","], ["kept", "kept", ","]]}
NOTES = ["Seconds: by the clock, from each stage's stage.json; all stages: their sum. The tokenizer is trained on all cores.",
         "CPU-seconds: of the process and its children, its start included. A second worker has nothing to do where the text "
         "is one part (data.part_bytes: 16 MB).",
         "Memory: proportional set sizes (smaps_rollup) of the process and its children together, looked at every 100 ms.",
         "of the smallest corpus: time a megabyte over that of the smallest corpus with as many workers; linear is 1.",
         f"Corpora beyond the files are grown from them: {describe(GROWTH)} (cram/bench/corpora.py)."]


def measure(texts: Sequence[str], sizes: Sequence[float], settings: Sequence[str], repeats: int,
            say: Callable[[str], None]) -> Iterator[list[dict]]:
    """The rows of one corpus after the other, smallest first. sizes: megabytes."""
    smallest: dict[tuple[int, str], float] = {}
    with tempfile.TemporaryDirectory(prefix="cram-bench-") as folder:
        for size in sorted(sizes):
            corpus = Path(folder) / "corpus.jsonl"
            actual = write_corpus(corpus, grow(texts, size))
            runs: dict[int, list[Any]] = {workers: [] for workers in WORKERS}
            for _ in range(repeats):
                for workers in WORKERS:
                    runs[workers].append(attempt(prepare, corpus, Path(folder) / "runs", workers, settings))
            rows = [row for workers, results in runs.items() for row in _rows(actual, workers, results, smallest)]
            for row in rows:
                if "error" in row or row["stage"] == TOGETHER:
                    say(f"data: {actual:,.1f} MB, {row['workers']} worker(s): " + (row.get("error") or
                        f"{row['seconds']:.1f} s, {row['mb_s']:.2f} MB/s, {row['peak_mib']:,.0f} MiB at most"))
            yield rows


def write_corpus(path: Path, texts: Iterator[str]) -> float:
    """Write one jsonl file; returns megabytes of text."""
    size = 0.0
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            size += megabytes([text])
    return size


def prepare(corpus: Path, out: Path, workers: int, settings: Sequence[str]) -> dict[str, Any]:
    """Run ``cram data`` from nothing: seconds by stage, memory, documents. CramError when it fails."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "cram", "data", "demo_gpt", *settings, "name=bench", f"out={out}", "data.source=files",
               f"data.files=[{corpus}]", f"data.workers={workers}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
                                "PYTHONPATH": os.pathsep.join(filter(None, [_import_path(), os.environ.get("PYTHONPATH")]))}
    lines: list[str] = []
    cpu_before = _cpu_seconds()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        with TreeMemory(process.pid) as memory:
            for line in process.stdout:
                lines.append(line.strip())
                stage = line.partition(":")[0]
                memory.part = stage if stage in STAGES else memory.part
            process.wait()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise CramError(f"cram data ended with {process.returncode}: {lines[-1] if lines else 'it said nothing'}")
    links = out / "bench"
    manifest = json.loads((links / "text" / "manifest.json").read_text())
    return {"seconds": {stage: json.loads((links / stage / "stage.json").read_text())["seconds"] for stage in STAGES},
            "cpu_seconds": _cpu_seconds() - cpu_before, "peaks": memory.peaks, "peak": memory.peak, "largest": memory.largest,
            "documents": manifest["funnel"][0]["documents"], "kept": manifest["splits"]["train"]["documents"]}


def _cpu_seconds() -> float:
    """Of all children that have ended and their children."""
    import resource  # not there on Windows

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _import_path() -> str:
    """Where this cram was imported from, so that the child runs the same code."""
    return str(Path(__file__).parents[2])


def _rows(size: float, workers: int, results: list[tuple[Optional[dict], Optional[str]]], smallest: dict) -> Iterator[dict]:
    common = {"megabytes": round(size, 1), "workers": workers}
    error = next((error for _, error in results if error), None)
    if error:
        yield common | {"stage": TOGETHER, "error": error}
        return
    runs = [run for run, _ in results]
    for stage in (*STAGES, TOGETHER):
        together = stage == TOGETHER
        seconds = statistics.median(sum(run["seconds"].values()) if together else run["seconds"][stage] for run in runs)
        per_mb = seconds / size
        peaks = [run["peak"] if together else run["peaks"].get(stage) for run in runs]
        yield common | {
            "stage": stage, "seconds": seconds, "mb_s": 1 / per_mb, "ms_per_mb": 1e3 * per_mb,
            "relative": per_mb / smallest.setdefault((workers, stage), per_mb),
            "peak_mib": statistics.median(peaks) / 2**20 if None not in peaks else None,       # a short stage may be missed
            **(_whole(runs) if together else {})}


def _whole(runs: list[dict]) -> dict[str, Any]:
    """What is known of a whole run alone."""
    return {"cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
            "largest_mib": max(run["largest"] for run in runs) / 2**20,
            "documents": runs[0]["documents"], "kept": runs[0]["kept"]}


def conclude(rows: Sequence[dict]) -> list[str]:
    """How time grows from the smallest to the largest corpus: the exponent of size."""
    found = []
    for workers in WORKERS:
        total = [row for row in rows if row["workers"] == workers and row["stage"] == TOGETHER and "error" not in row]
        if len(total) > 1:
            low, high = total[0], total[-1]
            exponent = math.log(high["seconds"] / low["seconds"]) / math.log(high["megabytes"] / low["megabytes"])
            found.append(f"Workers {workers}: from {low['megabytes']:,} to {high['megabytes']:,} MB time grows as "
                         f"size^{exponent:.2f}; peak memory from {low['peak_mib']:,.0f} to {high['peak_mib']:,.0f} MiB.")
    return found
