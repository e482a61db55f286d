"""``cram ablate [FILE|NAME] [key=value ...]``: answer a question by runs under equal budgets.

Without a name it lists the questions. ``cram ablate render FILE.json`` makes a page again from its record, ``cram ablate --log
DIR`` one page of all records in a folder, with what was decided (``decisions.yaml``).
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Callable

from cram import artifacts
from cram.errors import CramError
from cram.insight.ablate import question as questions
from cram.insight.ablate.cost import estimate, planned
from cram.insight.ablate.question import Question, plain_dict
from cram.interrupt import Interrupted

Say = Callable[[str], None]
OUT = Path("runs/ablations")


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Say) -> int:
    """Run ``cram ablate`` with these arguments; returns the exit code. CramError for a question that cannot be asked."""
    parser.add_argument("question", nargs="?", help="a shipped question, a .yaml file, or all; without: list them")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of every arm")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--tiny", action="store_true", help="a minute on a CPU: whether it works, not what it answers")
    size.add_argument("--card", action="store_true", help="an hour on one CUDA GPU")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for runs and pages (default: {OUT}); with --log: the "
                                                                 "page, .md or .html (default: log.md in its folder)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds, in place of the file's")
    parser.add_argument("--budget", metavar="B", help="budget of a run, in place of the file's")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side; not with budgets of time")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run and what it costs; make nothing")
    parser.add_argument("--log", type=Path, metavar="DIR", help="one page of every record in this folder: hypothesis, table, "
                                                                 "verdict, kept or not; runs nothing")
    options = parser.parse_intermixed_args(arguments)
    if options.log is not None:
        return _log(options, say)
    options.out = options.out or OUT
    chosen = "tiny" if options.tiny else "card" if options.card else ""
    if options.question is None:
        return _list(chosen, say)
    if options.question == "render":
        return _render(options.settings, say)
    if options.question == "all":
        return _all(chosen, options, say)
    question = questions.read(questions.locate(options.question), chosen, options.budget, options.seeds, options.settings)
    _refuse_jobs(question, options.jobs)
    _refuse_card(question, options.dry_run)
    return _ablate(question, options, _again(options.question, chosen, options), say)


def _again(name: str, size: str, options: argparse.Namespace) -> str:
    """The command that gives the same runs; where they lie and how many run at a time is not of the question."""
    asked = [f"--{size}"] * bool(size)
    asked += ["--seeds", str(options.seeds)] if options.seeds is not None else []
    asked += ["--budget", options.budget] if options.budget is not None else []
    return shlex.join(["cram", "ablate", name, *options.settings, *asked])


def _all(size: str, options: argparse.Namespace, say: Say) -> int:
    """Every shipped question in turn; all files are read before the first run. Those that must run alone do."""
    asked = [questions.read(path, size, options.budget, options.seeds, options.settings) for path in questions.shipped()]
    jobs, codes = options.jobs, []
    for question in asked:
        _refuse_card(question, options.dry_run)
    for number, question in enumerate(asked, start=1):
        say(f"\n{number} of {len(asked)}: {question.name}")
        options.jobs = 1 if _alone(question) else jobs
        _refuse_jobs(question, options.jobs)
        codes.append(_ablate(question, options, _again(question.name, size, options), say))
    say(f"{len(asked)} questions: {codes.count(0)} answered, {len(codes) - codes.count(0)} without a baseline that finished")
    return max(codes)


def _list(size: str, say: Say) -> int:
    for path in questions.shipped():
        asked = questions.read(path, size)
        say(f"{asked.name:<17} {asked.question}")
        say(f"{'':<17} {len(asked.arms)} arms, {asked.seeds} seeds: {planned(asked)}")
    say("cram ablate NAME --dry-run: what it costs here; --tiny: a minute on a CPU; --card: an hour on a GPU")
    return 0


def _render(files: list[str], say: Say) -> int:
    from cram.insight.ablate.record import render

    if not files:
        raise CramError("cram ablate render needs a record, such as: cram ablate render runs/ablations/optimizer/ablation.json")
    for file in files:
        for path in render(Path(file)):
            say(str(path))
    return 0


def _log(options: argparse.Namespace, say: Say) -> int:
    from cram.insight.ablate.log import write

    if options.question or options.settings or options.tiny or options.card or options.seeds or options.budget \
            or options.dry_run or options.jobs != 1:
        raise CramError("--log takes a folder of records and --out FILE, nothing else: it runs nothing")
    path, topics = write(options.log, options.out)
    say(f"log: {path}; questions: {len(topics)}, trials: {sum(len(topic.trials) for topic in topics)}, changes kept: "
        f"{sum(topic.changed for topic in topics)}, not decided: {sum(topic.decision is None for topic in topics)}")
    return 0


def _alone(question: Question) -> bool:
    """Whether its runs must not slow each other."""
    return question.budget.kind == "time" or not question.metric.learns


def _refuse_jobs(question: Question, jobs: int) -> None:
    if jobs < 1:
        raise CramError(f"--jobs {jobs}: at least 1")
    if jobs > 1 and _alone(question):
        what = f"budget {question.budget.text}" if question.budget.kind == "time" else f"metric {question.metric.name}"
        raise CramError(f"--jobs {jobs} with {what}: runs side by side would slow each other; use --jobs 1")
    if jobs > 1 and question.baseline.config.train.threads is None:
        raise CramError(f"--jobs {jobs}: every run would take all cores; add train.threads=1")


def _refuse_card(question: Question, dry_run: bool) -> None:
    """CramError for runs that are made for a card where there is none: on a CPU they would take days."""
    from cram.device import device_kind

    if question.size == "card" and not dry_run and device_kind(question.baseline.config.train) != "cuda":
        raise CramError("--card: torch sees no CUDA card here (cram doctor says why); leave it out, or look with --dry-run")


def _ablate(question: Question, options: argparse.Namespace, again: str, say: Say) -> int:
    from cram.insight.ablate.corpus import corpus_settings, make_corpus
    from cram.insight.ablate.trials import is_there, trials

    out, folder = options.out, options.out / question.label
    extra = corpus_settings(out / "corpora" / question.label, question.corpus) if question.corpus else ()
    made = trials(question, out, extra)
    say(question.question)
    say(f"arms: {', '.join(arm.name for arm in question.arms)} (baseline: {question.baseline.name}); {question.seeds} "
        f"seed{'s' * (question.seeds > 1)}; {question.budget.text} a run; by {question.metric.label}")
    there = {trial.links for trial in made if is_there(trial)}
    coming = [trial for trial in made if trial.links not in there]
    if there:
        say(f"{len(there)} of {len(made)} runs are there already")
    if coming:
        estimate(question, coming, options.jobs, say)
    _tell_replaced(question, folder, say)
    if options.dry_run:
        for trial in made:
            say(f"{trial.told}: {trial.budget}, {'there' if trial.links in there else 'would run'}")
        return 0
    artifacts.prepare_folders(out, folder)
    with artifacts.lock(folder):
        if question.corpus:
            make_corpus(question, out / "corpora" / question.label, say)
        try:
            rows = _measure(question, made, options.jobs, again, folder, say)
        except (Interrupted, KeyboardInterrupt):
            say(f"go on with: {again} --out {shlex.quote(str(out))}{f' --jobs {options.jobs}' if options.jobs > 1 else ''}")
            raise
    base = [row for row in rows if row["arm"] == question.baseline.name and "value" in row]
    return 0 if base else 1


def _tell_replaced(question: Question, folder: Path, say: Say) -> None:
    """Say which record makes way: one of another budget or other settings. Its runs stay, and so a repetition is quick."""
    from cram.insight.ablate.record import read

    path, now = folder / "ablation.json", plain_dict(question)
    if not path.is_file():
        return
    try:
        before = read(path)
    except CramError as error:
        return say(f"replaced: {error}")
    other = [f"{key} {before.get(key)!r}, now {now[key]!r}" for key in ("budget", "configs", "common")
             if before.get(key) != now[key]]
    if other:
        say(f"warning: {path} holds another trial ({'; '.join(other)}), and this one takes its place; --out DIR keeps both")


def _measure(question: Question, made, jobs: int, again: str, folder: Path, say: Say) -> list[dict]:
    """Make the runs, keep the record and the page up to date with every seed, and tell the answer."""
    from cram.bench.measure import environment
    from cram.device import device_kind
    from cram.insight.ablate.board import write_board
    from cram.insight.ablate.page import cost_line, verdict_line, verdict_table
    from cram.insight.ablate.answer import answers
    from cram.insight.ablate.record import agreed, make_record, save
    from cram.insight.ablate.trials import run_all
    from cram.report_page import to_markdown

    facts, rows = environment(device_kind(question.baseline.config.train)), []
    for trial, row in run_all(made, question.metric, jobs, say):
        rows.append(row)
        last = len(rows) == len(made)
        if last or made[len(rows)].seed != trial.seed:
            record = make_record(question, agreed(rows), len(made), again, facts)
            save(record, folder)
    write_board(record, folder / "runs", folder / "tensorboard")
    found = answers(record)
    say("")
    say(to_markdown([("table", *verdict_table(found, question.metric, record))]).rstrip().replace("\\", ""))
    say(verdict_line(found, question.metric, record))
    say(cost_line(record))
    say(f"page: {folder / 'ablation.html'}; curves: tensorboard --logdir {shlex.quote(str(folder / 'tensorboard'))}")
    return record["rows"]
