"""The ``cram`` command: ``cram <verb> [config] [key=value ...]``.

A wrong input ends in one line on standard error and exit code 2; Ctrl-C in 130; a run stopped by a signal in 143.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import importlib
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import NoReturn, Optional, Sequence

from cram import __version__, artifacts
from cram.config import is_shipped, load
from cram.errors import CramError
from cram.explain import differences, explain, show
from cram.interrupt import Interrupted
from cram.pipeline import STAGES
from cram.stages import Runner

NAMES = tuple(stage.name for stage in STAGES)
SHARED = "pretrain"  # the stage that several processes work on together
VERBS = {
    "run": "bring every stage up to date: from raw text to the report",
    "measure": "read, normalise and measure the sources",
    "text": "filter, deduplicate and split what was measured",
    "tokenizer": "train the vocabulary; cram tokenizer evaluate: what it is like, beside others",
    "data": "pack tokens into memory-mapped shards; cram data inspect: a page on what was kept and dropped, and why",
    "pretrain": "spend the budget; the same command resumes an interrupted run",
    "evaluate": "score the model on held-out text and evaluate.tasks; of a finished run: cram evaluate runs/demo tasks=blimp",
    "quantize": "fewer bits a weight, and what that costs; of a finished run: cram quantize runs/demo int4",
    "report": "write the page about the run",
    "status": "show which results are there and why a stage would run",
    "config": "print every key with its value and meaning; --diff A B compares two configurations",
}
TOOLS = {  # a module with a command of its own; of a stage with the same name when the first word is a run's folder
    "ledger": ("cram.ledger_command", "verify the ledger of a run and show its account: cram ledger runs/demo"),
    "evaluate": ("cram.evaluate.command", "score a run on benchmarks: cram evaluate runs/demo tasks=blimp,glue.mrpc"),
    "generate": ("cram.after.generate_command", "continue a text: cram generate runs/demo_gpt \"The first\""),
    "fill": ("cram.after.fill_command", "fill in blanks: cram fill runs/demo \"Returns the [MASK] of the array.\""),
    "export": ("cram.after.export_command", "write the model as stock Hugging Face classes load it: cram export runs/demo out"),
    "quantize": ("cram.after.quantize_command", "fewer bits a weight, and what that costs: cram quantize runs/demo_gpt int4"),
    "harness": ("cram.after.harness_command", "lm-evaluation-harness on a run: cram harness runs/demo_gpt --tasks blimp"),
    "ablate": ("cram.insight.ablate.command", "answer a question by runs under equal budgets: cram ablate positions --tiny"),
    "plan": ("cram.insight.plan.command", "what a budget will buy, before it is spent: cram plan bert_day --gpu H100"),
    "scale": ("cram.insight.scale.command", "fit the loss over sizes and budgets, and recommend a size: cram scale --tiny"),
    "profile": ("cram.insight.profile.command", "where the time of a step goes, module by module: cram profile demo"),
    "compare": ("cram.insight.compare.command", "runs side by side: cram compare runs/demo runs/mine"),
    "submit": ("cram.insight.league.submit", "write the self-checking card of a run: cram submit runs/demo"),
    "league": ("cram.insight.league.command", "verify cards and rank them by budget: cram league cards"),
    "doctor": ("cram.insight.doctor.command", "whether this machine is ready, and how long each preset takes on it"),
    "lesson": ("cram.insight.lesson.command", "the course: cram lesson, cram lesson 1"),
    "race": ("cram.race.command", "the best model for the seconds, beside other trainers: cram race causal --tiny"),
    "bench": ("cram.bench", "measure on this machine: cram bench "
              "attention|data|defaults|faults|filters|loss|overhead|step|techniques|kernels"),
}
USAGE = "cram <verb> [config] [key=value ...]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CramError(f"{message}; 'cram {self.prog.split()[-1]} --help' shows what is possible")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns the exit code."""
    from data_prep.errors import DataError

    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except (CramError, DataError) as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output left, as in `cram config | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = f"{error.filename or 'input or output'}: {error.strerror or error}; check the path and its permissions"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            held = f"that holds {error.filename} " if error.filename else ""
            message = f"the disk {held}is full ({os.strerror(error.errno)}): make room and run the same command again"
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(f"{USAGE}\n\nA budget of compute and raw text go in; a language model and its scores come out.\n")
        print("\n".join(f"  {verb:<10} {meaning}" for verb, meaning in VERBS.items()))
        print("\nof finished runs, and beside them:\n")
        print("\n".join(f"  {tool:<10} {meaning}" for tool, (_, meaning) in TOOLS.items() if tool not in VERBS))
        print("\n'cram config' lists the keys; 'cram <verb> --help' the options. The default configuration is 'demo'.")
        return 0
    if arguments[0] == "--version":
        print(f"cram {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if broken := [text for text in arguments if any("\ud800" <= character <= "\udfff" for character in text)]:
        raise CramError(f"{broken[0]!r} is not valid UTF-8; write the command in UTF-8")
    if (near := difflib.get_close_matches(" ".join(arguments[:2]), [" ".join(look) for look in LOOKS], n=1, cutoff=0.8)) \
            and verb in VERBS and tuple(arguments[:2]) not in LOOKS:
        raise CramError(f"unknown verb '{verb} {rest[0]}'; did you mean 'cram {near[0]}'?")
    if verb in TOOLS and (verb not in VERBS or rest and _is_run(rest)):
        module, meaning = TOOLS[verb]
        return importlib.import_module(module).command(
            _Parser(prog=f"cram {verb}", description=meaning, allow_abbrev=False), rest, _tell)
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, [*VERBS, *TOOLS], n=1)
        hint = f"did you mean 'cram {near[0]}'?" if near else f"possible: {', '.join({**VERBS, **TOOLS})}"
        raise CramError(f"unknown verb '{verb}'; {hint}")
    hint = f"with a finished run there are other options: cram {verb} RUN --help" if verb in TOOLS else None
    parser = _Parser(prog=f"cram {verb}", description=VERBS[verb], epilog=hint, allow_abbrev=False)
    if (verb, *rest[:1]) in LOOKS:
        return LOOKS[verb, rest[0]](_Parser(prog=f"cram {verb} {rest[0]}", allow_abbrev=False), rest[1:])
    parser.add_argument("settings", nargs="*", metavar="[config ...] [key=value ...]",
                        help="YAML files or names of shipped configurations, later ones over earlier, then keys to override")
    if verb == "config":
        parser.add_argument("--diff", action="store_true", help="compare two configurations")
    elif verb != "status":
        parser.add_argument("--force", choices=NAMES, metavar="STAGE",
                            help="run this stage and all that follow, fresh or not; alone: "
                            + ("every stage" if verb == "run" else f"{verb}"))
        parser.add_argument("--dry-run", action="store_true", help="say what would run and why; write nothing")
    # '--a.b=c' is an override too; '--force=stage' is not
    rest = [text.lstrip("-") if text.startswith("--") and "." in text.partition("=")[0] else text for text in rest]
    options = parser.parse_intermixed_args(_complete_force(rest, NAMES[0] if verb == "run" else verb))
    if verb == "config":
        return _config(options)
    return _stages(verb, options)


def _is_run(arguments: list[str]) -> bool:
    """Whether the arguments are a tool's, about a run's folder or a model of the hub, rather than a stage's with a
    configuration."""
    first = arguments[0]
    path = "/" in first and "=" not in first and not first.endswith((".yaml", ".yml")) and not is_shipped(first)
    return path or first == "--list" or first.startswith("hf:") or Path(first).is_dir() or any(
        text.startswith("tasks=") for text in arguments)


def _inspect(parser: _Parser, arguments: list[str]) -> int:
    """``cram data inspect [config ...] [key=value ...]``"""
    from cram.inspect import inspect

    parser.description = "a page on what the data stages of a run kept and dropped, and why; the same for TensorBoard"
    parser.add_argument("settings", nargs="*", metavar="[config ...] [key=value ...]", help="as for cram data")
    settings = parser.parse_args(arguments).settings
    config = _load(settings)
    folders = _fresh(config, settings, "data", ("text",))
    inspect(config.name, config.seed, folders, Path(config.out) / config.name / "inspect", _tell)
    return 0


def _evaluate_tokenizer(parser: _Parser, arguments: list[str]) -> int:
    """``cram tokenizer evaluate [config ...] [key=value ...] [--texts FILE ...] [--references FILE ...]``"""
    from data_prep.tokenizer_report import evaluate, to_markdown

    parser.description = "bytes per token by domain beside other tokenizers, and what the vocabulary is used for"
    parser.add_argument("settings", nargs="*", metavar="[config ...] [key=value ...]", help="as for cram tokenizer")
    parser.add_argument("--texts", nargs="+", type=Path, default=[], metavar="FILE",
                        help="more texts to compare on: .txt or .jsonl")
    parser.add_argument("--references", nargs="+", type=Path, default=[], metavar="FILE",
                        help="tokenizer.json files to compare with, such as GPT-2's")
    options = parser.parse_intermixed_args(arguments)
    folders = _fresh(_load(options.settings), options.settings, "tokenizer", ("text", "tokenizer"))
    texts = {path.name: path for path in options.texts}
    print(to_markdown(evaluate(folders["tokenizer"], folders["text"], texts, options.references)))
    return 0


def _fresh(config, settings: Sequence[str], target: str, needed: Sequence[str]) -> dict[str, Path]:
    """Folders of the results that are there for this very configuration; CramError when one of ``needed`` is not."""
    plans = {plan.stage.name: plan for plan in Runner(STAGES, config, _tell).plan(target)}
    for name in needed:
        if plans[name].state != "fresh":
            raise CramError(f"{name} is not there for this configuration ({plans[name].reason}); "
                            f"run: {shlex.join(['cram', name, *settings])}")
    return {name: plan.folder for name, plan in plans.items() if plan.state == "fresh"}


LOOKS = {("data", "inspect"): _inspect, ("tokenizer", "evaluate"): _evaluate_tokenizer}


def _complete_force(arguments: list[str], default: str) -> list[str]:
    """'--force' alone names the default stage, so that the word after it is not taken for one."""
    following = [*arguments[1:], ""]
    return [f"--force={default}" if text == "--force" and after not in NAMES else text
            for text, after in zip(arguments, following)]


def _split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """(configuration names, overrides)."""
    return [text for text in settings if "=" not in text], [text for text in settings if "=" in text]


def _load(settings: Sequence[str]):
    names, overrides = _split(settings)
    return load(names or "demo", overrides)


def _config(options) -> int:
    if not options.diff:
        print(explain(_load(options.settings)))
        return 0
    names, overrides = _split(options.settings)
    if len(names) != 2:
        raise CramError("cram config --diff needs two configurations, such as: cram config --diff demo demo_gpt")
    for key, left, right in differences(*(load(name, overrides) for name in names)):
        print(f"{key}: {show(left)} -> {show(right)}")
    return 0


def _stages(verb: str, options) -> int:
    runner = Runner(STAGES, _load(options.settings), _tell)
    target = None if verb in ("run", "status") else verb
    if verb != "status":
        _refuse_hardware(runner.plan(target, options.force), runner.config, options.dry_run)
    launcher = ["torchrun", "--nproc-per-node", str(_processes()), "-m"] if _processes() > 1 else []
    again = shlex.join([*launcher, "cram", "run" if verb == "status" else verb, *options.settings])
    if verb == "status" or options.dry_run:
        for plan in runner.plan(target, None if verb == "status" else options.force):
            state, note = plan.state, plan.reason or str(plan.folder)
            if plan.folder is not None and (process := artifacts.writer(plan.folder)):
                state, note = "running", f"process {process}"
            elif plan.state == "interrupted":
                note = f"resume with: {again}"
            print(f"{plan.stage.name:<10} {'would run' if state == 'run' else state:<12} {note}")
        return 0
    if int(os.environ.get("RANK", "0")) > 0 and SHARED in [stage.name for stage in runner.chain(target)]:
        runner.follow(SHARED, options.force)  # another process of torchrun's, the first, makes the rest
        return 0
    try:
        runner.run(target, options.force)
    except Interrupted:
        print(f"resume with: {again}")
        raise
    if verb in ("run", "report"):
        print(f"results: {runner.links}, page: {runner.links / 'report' / 'report.html'}")
    return 0


def _refuse_hardware(plans, config, dry_run: bool) -> None:
    """Before hours of data preparation: raise CramError when training is due and asks for what is not here. A dry run may
    be started without torchrun."""
    if all(plan.stage.name != SHARED or plan.state == "fresh" for plan in plans):
        return
    train = config.train
    if train.replay is not None:
        from cram.budget import Budget
        from cram.record import Replay
        Replay.read(train.replay, Budget.parse(config.budget))
    if not dry_run and (train.parallel != "none" or _processes() > 1):
        from cram.parallel import refuse_launch
        refuse_launch(train)
    if config.optimizer.state_bits == 8 and importlib.util.find_spec("bitsandbytes") is None:
        from cram.adamw import NO_BITSANDBYTES
        raise CramError(NO_BITSANDBYTES)
    if config.model.attention not in ("auto", "sdpa") or train.device == "cuda" or train.precision != "auto" or train.fp8:
        from cram import fp8
        from cram.device import choose_device
        from cram.model import refuse_attention

        kind = choose_device(train).kind
        refuse_attention(config.model, kind)
        if train.fp8 and (reason := fp8.why_not(kind)):
            raise CramError(f"train.fp8=true: {reason}; use train.fp8=false")


def _processes() -> int:
    """How many torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _tell(line: str) -> None:
    """Print a line; when whoever read our output has left (as in `cram run | head`), go on in silence."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
