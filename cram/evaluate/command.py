"""``cram evaluate RUN tasks=...``: benchmarks on a finished run, or on a Hugging Face model, whenever one likes.

Results go to ``RUN/benchmarks/`` (``--out`` elsewhere): ``benchmarks.json``, ``benchmarks.md``, ``benchmarks.html``. What was
scored before is kept in ``artifacts/scores`` beside the runs, so more tasks can be added, and a killed evaluation goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Callable

from cram.config import KEYS, assign, load_with_places, lookup
from cram.drawing import INK
from cram.errors import CramError
from cram.evaluate.benchmark_page import benchmark_lines, benchmark_table, draw, remarks, scored
from cram.evaluate.results import score_tasks
from cram.evaluate.subject import Subject, open_subject
from cram.evaluate.tasks import choose_tasks, list_tasks
from cram.report_page import to_html, to_markdown
from cram.schema import Config
from data_prep.files import replace_durably

ALLOWED = ("evaluate.tasks", "evaluate.mirror", "evaluate.finetune.", "train.device", "train.threads", "data.mirror")  # what may be set: training is over


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram evaluate`` with these arguments; returns the exit code. CramError for a wrong one, or when nothing could be
    scored."""
    parser.add_argument("run", nargs="?", help="a run's folder (runs/demo), a Hugging Face model's, or hf:<name on the hub>")
    parser.add_argument("settings", nargs="*", metavar="tasks=A,B [key=value ...]",
                        help="tasks: names or groups; keys: evaluate.mirror, evaluate.finetune.epochs ...")
    parser.add_argument("--out", type=Path, help="folder for the results (default: benchmarks/ in the run's)")
    parser.add_argument("--list", action="store_true", help="name all benchmarks")
    options = parser.parse_intermixed_args(arguments)
    if options.list:
        print("\n".join(list_tasks()))
        return 0
    settings = [f"evaluate.tasks=[{text.removeprefix('tasks=')}]" if text.startswith("tasks=") else text
                for text in options.settings]
    device = next((text.partition("=")[2] for text in settings if text.startswith("train.device=")), "auto")
    subject = open_subject(options.run, device=device, say=say)
    config = override(subject.config or Config(), settings)
    if not config.evaluate.tasks:
        raise CramError(f"no benchmarks named; try: cram evaluate {options.run} tasks=blimp, or cram evaluate --list")
    if config.train.threads:
        import torch
        torch.set_num_threads(config.train.threads)
    ours = subject.config is not None
    out = options.out or (subject.folder / "benchmarks" if ours else Path(f"benchmarks-{subject.name.replace('/', '-')}"))
    store = (subject.folder.parent / "artifacts" if ours else out) / "scores"
    text_dir = subject.folder / "text" if (subject.folder / "text" / "manifest.json").exists() else None
    results = score_tasks(subject, choose_tasks(config.evaluate.tasks), config, store, say, text_dir)
    if not scored(results):
        raise CramError("none of the benchmarks could be scored, for the reasons above")
    results = earlier(subject, out) | results
    write(subject, results, out)
    for line in [*benchmark_lines(results), *remarks(results), f"page: {out / 'benchmarks.html'}"]:
        say(line)
    return 0


def earlier(subject: Subject, out: Path) -> dict[str, dict]:
    """What ``out`` already holds of the very same model."""
    try:
        found = json.loads((out / "benchmarks.json").read_text(encoding="utf-8"))
        return scored(found["results"]) if found["identity"] == subject.identity else {}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise CramError(f"{out / 'benchmarks.json'}: not benchmark results ({error}); remove the file") from None


def write(subject: Subject, results: dict[str, dict], out: Path) -> None:
    """``benchmarks.json``, ``.md``, ``.html`` and ``.svg`` in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    drawing = draw(results)
    blocks = [("title", f"{subject.name}: benchmarks"), ("table", *benchmark_table(results)),
              ("figure", "benchmarks", drawing, "scores with their interval, chance, and what others reached"),
              *(("text", remark) for remark in remarks(results))]
    files = {"benchmarks.json": json.dumps({"model": subject.name, "kind": subject.kind, "identity": subject.identity,
                                            "results": results}, indent=1, ensure_ascii=False) + "\n",
             "benchmarks.md": to_markdown(blocks), "benchmarks.html": to_html(blocks, f"{subject.name}: benchmarks"),
             "benchmarks.svg": drawing.replace(INK, "#888888")}
    for name, content in files.items():
        replace_durably(out / name, content.encode())


def override(config: Config, settings: list[str]) -> Config:
    """A copy of ``config`` with ``key=value`` settings on top. CramError for a wrong one, or one that has no say here."""
    checked, places = load_with_places((), settings)
    config = copy.deepcopy(config)
    for key in places:
        if not key.startswith(ALLOWED):
            raise CramError(f"'{key}' is nothing that can be set for an evaluation; possible: tasks, "
                            f"{', '.join(key for key in KEYS if key.startswith(ALLOWED))}")
        assign(config, key, lookup(checked, key))
    return config
