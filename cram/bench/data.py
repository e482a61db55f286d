"""Preparing text, step by step, beside the libraries that others use: megabytes a second of one core.

Time is the processor's (``time.process_time``), so that neighbours on the machine count little, and everything runs on
one core. Slow competitors get a smaller random sample of the same documents. What is compared with what:

* filters: all statistics, C4's edits and the rule sets gopher, c4 and fineweb, against datatrove's four filters, each
  run on every document; and each of the four alone; our speed is also told for exactly their sample;
* near-duplicate signatures: 112 values of 5-word shingles, against datasketch; and how many planted pairs each finds;
* encoding, against the library's ``encode_batch_fast``: its ids must be equal, or the row is an error.

What has no competitor is measured alone (data_alone.py).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import torch

from cram.bench.corpora import megabytes
from cram.bench.measure import HostTimer, Ready, attempt, race

VIEW = {"title": "Preparing text on one core", "panel": "{step}", "x": "case", "line": "tool", "kind": "bars", "baseline": "",
        "y": [["mb_s", "MB/s of one core"]],
        "columns": [["what", "case", ""], ["by", "tool", ""], ["MB/s", "mb_s", ".3g"], ["quartiles", "mb_s_p25", ".3g"],
                    ["to", "mb_s_p75", ".3g"], ["times the competitor", "times", ".1f"],
                    ["text a round, MB", "megabytes", ".2f"], ["documents", "documents", ","],
                    ["pairs found", "recall", ".3f"], ["expected", "expected_recall", ".3f"], ["tokens", "vocabulary", ","]]}
NOTES = ["MB/s: megabytes (10^6 bytes) of UTF-8 text over CPU-seconds of the process, all on one core.",
         "times the competitor: over the speed of the other tool on the same line of work.",
         "datatrove's filters end at the first rule that drops a document; ours measure everything of every document.",
         "pairs found: share of planted pairs with a Jaccard similarity of at least 0.8 that share a band of the signature; "
         "expected: mean of 1 - (1 - J^8)^14 over these pairs."]
REPEATS = {"cpu": 7}
THREAD_LIMITS = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Sizes:
    """Megabytes of text: what fast and slow tools get in a round; what the vocabulary is trained on. tokens: its size."""

    fast: float = 8.0
    slow: float = 0.3
    training: float = 20.0
    tokens: int = 32768

    @property
    def corpus(self) -> float:
        """Enough for what is trained on and what is encoded, which must be other text."""
        return self.training + 12 * self.fast


QUICK = Sizes(fast=0.2, slow=0.02, training=0.5, tokens=1024)


@dataclass(frozen=True)
class Entry:
    """One competitor, ready to be timed. megabytes: text in a call; facts: what stands in its row beside the speed."""

    ready: Ready
    megabytes: float
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, function: Callable[[Any], object], texts: Sequence[str], **facts) -> Entry:
        """``function(texts)``, with nothing to get ready."""
        return cls(lambda: lambda: function(texts), megabytes(texts), {"documents": len(texts)} | facts)


@dataclass(frozen=True)
class Contest:
    """Tools that do the same work. An entry is made when its turn has come, and may fail: that is a row, too."""

    step: str
    case: str
    entries: Mapping[str, Callable[[], Entry]]
    against: str = ""               # the tool that speeds are compared with


def measure(texts: Sequence[str], sizes: Sizes, repeats: int, say: Callable[[str], None]) -> Iterator[list[dict]]:
    """Rows, contest after contest. texts: normalised documents in a random order."""
    from cram.bench import data_alone, data_contests

    with one_core():
        for contest in itertools.chain(data_contests.contests(texts, sizes, repeats), data_alone.contests(texts, sizes)):
            rows = hold(contest, repeats)
            say(f"data: {contest.step}, {contest.case}: " + "; ".join(
                f"{row['tool']} {row['mb_s']:.3g} MB/s" if "mb_s" in row else f"{row['tool']} failed" for row in rows))
            yield rows


def libraries() -> str:
    """The versions that decide the speed."""
    names = ("numpy", "pyarrow", "tokenizers", "datatrove", "spacy", "datasketch", "py3langid")
    return "Libraries: " + ", ".join(f"{name} {_version(name) or 'not installed'}" for name in names) + "."


def hold(contest: Contest, repeats: int) -> list[dict]:
    """The rows of a contest: tools take turns, medians and quartiles over the rounds."""
    made = {tool: attempt(make) for tool, make in contest.entries.items()}
    entries = {tool: entry for tool, (entry, error) in made.items() if error is None}
    timer = HostTimer("cpu", time.process_time)
    timings = race({tool: entry.ready for tool, entry in entries.items()}, timer, repeats, warm_up=1)
    rows = []
    for tool, (entry, error) in made.items():
        timing = timings.get(tool, error)
        row = {"step": contest.step, "case": contest.case, "tool": tool}
        if isinstance(timing, str):
            rows.append(row | {"error": timing})
            continue
        rows.append(row | entry.facts | {
            "megabytes": entry.megabytes, "cpu_seconds": timing.median, "mb_s": entry.megabytes / timing.median,
            "mb_s_p25": entry.megabytes / timing.p75, "mb_s_p75": entry.megabytes / timing.p25})
    reference = next((row["mb_s"] for row in rows if row["tool"] == contest.against and "mb_s" in row), None)
    return [row | {"times": row["mb_s"] / reference} if reference and row["tool"] != contest.against and "mb_s" in row else row
            for row in rows]


def _version(package: str) -> Optional[str]:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Everything in this process on one core, as far as the system can be asked; afterwards as before."""
    environment = {name: os.environ.get(name) for name in THREAD_LIMITS}
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    os.environ.update(THREAD_LIMITS)
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
