"""Finished runs for comparisons: through the stages of ``cram run``, quiet, found again where they are there."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Sequence

from cram.audit import Summary, read_ledger
from cram.config import load
from cram.telemetry import read_metrics

# Nothing but training and the held-out score, on one thread.
PLAIN = ("data.workers=1", "evaluate.minimal_pairs=0", "evaluate.prompts=[The]", "evaluate.sample_tokens=1", "train.threads=1",
         "telemetry.energy=false")


class Finished(NamedTuple):
    """What a run left. scores: of the evaluate stage; links: folder with its stages' results."""

    scores: dict
    ledger: Summary
    links: Path

    @property
    def seconds(self) -> float:
        """Its tokens at the median speed of its rows of metrics: what it took, had no neighbour held it up for a moment."""
        rows = read_metrics(self.links / "pretrain" / "metrics.jsonl")
        return self.ledger.tokens / statistics.median(row["tokens_per_second"] for row in rows if row["kind"] == "train")


def bring(settings: Sequence[str], stage: str, links: Optional[Path] = None, force: Optional[str] = None) -> Path:
    """Bring a stage of a run up to date; its links. settings: configurations and ``key=value``, as for ``cram run``.
    links: the folder for them, if not the one that ``name`` gives; force: a stage to be made anew."""
    from cram.pipeline import STAGES
    from cram.stages import Runner

    config = load([each for each in settings if "=" not in each], [each for each in settings if "=" in each])
    runner = Runner(STAGES, config, lambda line: None)
    runner.links = links or runner.links
    runner.run(stage, force)
    return runner.links


def finish(settings: Sequence[str], links: Optional[Path] = None) -> Finished:
    """Bring a run up to its evaluation; links: as for ``bring``."""
    links = bring(settings, "evaluate", links)
    return Finished(json.loads((links / "evaluate" / "scores.json").read_text()),
                    read_ledger(links / "pretrain" / "ledger.jsonl"), links)


def text(files: Optional[Sequence[str]], packages: Sequence[str] = ()) -> tuple[str, ...]:
    """The settings for text from files, else from the docstrings of these packages (none named: the demo's)."""
    if files:
        return ("data.source=files", f"data.files=[{', '.join(map(json.dumps, files))}]")
    return (f"data.packages=[{', '.join(packages)}]",) if packages else ()


@contextlib.contextmanager
def workplace(folder: Optional[Path]) -> Iterator[Path]:
    """The folder where runs are kept, or one that is removed in the end."""
    work = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="cram-bench-"))
    try:
        yield work
    finally:
        if folder is None:
            shutil.rmtree(work, ignore_errors=True)
