"""``cram race RACE``: our recipes beside what a user would otherwise pick, judged by one measure."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Callable, Sequence

from cram.errors import CramError
from cram.race import referee
from cram.race.adapters import find as find_adapter
from cram.race.course import prepare
from cram.race.race_file import Race, adapt, find, read, shipped
from cram.race.store import Store

EXAMPLE = "cram race causal --checkout nanogpt=../nanoGPT --tiny"


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram race`` with these arguments; returns the exit code: 1 when no competitor brought a result."""
    parser.epilog = f"for example: {EXAMPLE}. Checkouts are given, never fetched; nothing of theirs is changed."
    parser.add_argument("race", nargs="?", help=f"a race's YAML file, or one that is shipped: {', '.join(shipped())}")
    parser.add_argument("text", nargs="*", metavar="data.KEY=VALUE",
                        help="data.* and tokenizer.* keys: the text that all share")
    parser.add_argument("--checkout", action="append", default=[], metavar="NAME=PATH", help="where a competitor's code lies")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH",
                        help="the interpreter of a competitor with an environment of its own (default: ours)")
    parser.add_argument("--seeds", type=int, help="runs of each competitor")
    parser.add_argument("--budget", metavar="TIME", help="of every run, such as 10m")
    parser.add_argument("--threads", type=int, help="CPU threads, and cores, of every competitor")
    parser.add_argument("--tiny", action="store_true", help="20 seconds and two seeds, to see that all of it works")
    parser.add_argument("--out", type=Path, help="folder for everything (default: runs/races/<name>)")
    parser.add_argument("--dry-run", action="store_true", help="say who would run what, for how long; start nothing")
    parser.add_argument("--retry", action="store_true", help="run again what failed before")
    parser.add_argument("--speed", action="store_true", help="instead: tokens/s at the same architecture and batch")
    parser.add_argument("--render", type=Path, metavar="JSON", help="make the page of this race.json again; run nothing")
    options = parser.parse_intermixed_args(arguments)
    if options.render is not None:
        if len(arguments) > 2:
            raise CramError("--render JSON stands alone: the record holds all that its page says")
        return render(options.render, say)
    if options.race is None:
        raise CramError(f"name a race, such as: {EXAMPLE}; shipped are {', '.join(shipped())}")
    path = find(options.race)
    race = adapt(read(path), budget=options.budget, seeds=options.seeds, threads=options.threads, tiny=options.tiny,
                 text=options.text)
    checkouts = {name: Path(value) for name, value in _pairs(race, options.checkout, "--checkout").items()}
    for name, folder in checkouts.items():
        if not folder.is_dir():
            source = find_adapter(race.entries[name].adapter).SOURCE
            raise CramError(f"--checkout {name}={folder}: no such folder; git clone {source}")
    pythons = {name: str(Path(value).absolute()) if Path(value).exists() else value
               for name, value in _pairs(race, options.python, "--python").items()}
    out = (options.out or Path("runs/races") / (race.name + "-tiny" * options.tiny)).resolve()
    if options.dry_run:
        return dry_run(race, checkouts, say)
    refuse_device(race)
    course = prepare(race, out / "course", say)
    able, refused = referee.enter(race, course, out / "work", checkouts, pythons, say)
    for name, reason in refused.items():
        say(f"{name}: does not take part: {reason}")
    if race.ours in refused:
        raise CramError(f"{race.ours}, with which all are compared, cannot run: {refused[race.ours]}")
    again = shlex.join(["cram", "race", *repeatable(arguments)])
    store = Store(out, options.retry)
    if options.speed:
        from cram.race.speed import measure_speed
        return measure_speed(race, able, refused, store, out, again, say)
    results = referee.hold(race, able, store, say)
    from cram.race import record
    from cram.race.page import write_page
    for line in write_page(record.make(race, course, able, refused, results, store, out, again), out):
        say(line)
    return 0 if any(result["failure"] is None for result in results) else 1


def render(path: Path, say: Callable[[str], None]) -> int:
    """The page of a record that is there already."""
    from cram.race.page import write_page
    from cram.race.record import read as read_record
    for line in write_page(read_record(path), path.resolve().parent):
        say(line)
    return 0


def repeatable(arguments: Sequence[str]) -> list[str]:
    """The arguments for somebody else: checkouts lie beside the reader under their names, results where they like."""
    found, names = [], iter(arguments)
    for argument in names:
        option, equals, value = argument.partition("=")
        if option in ("--out", "--checkout", "--python"):
            value = value if equals else next(names, "")
            name = value.partition("=")[0]
            found += {"--out": [], "--checkout": ["--checkout", f"{name}={name}"],
                      "--python": ["--python", f"{name}=PYTHON-OF-{name}"]}[option]
        elif option != "--retry":
            found.append(argument)
    return found


def refuse_device(race: Race) -> None:
    """CramError when the race is for a card and there is none."""
    if race.device == "cuda":
        import torch
        if not torch.cuda.is_available():
            raise CramError(f"{race.name} is a race on a CUDA card, and there is none here; take one for the processor, as: "
                            + EXAMPLE)


def dry_run(race: Race, checkouts: dict[str, Path], say: Callable[[str], None]) -> int:
    """Say what would be done."""
    runs, seconds = 0, 0.0
    for name, entry in race.entries.items():
        adapter = find_adapter(entry.adapter)
        if adapter.SOURCE is not None and name not in checkouts:
            say(f"{name}: does not take part: no checkout given; git clone {adapter.SOURCE}, then --checkout {name}=PATH")
            continue
        if reason := adapter.refuse(race.device, checkouts.get(name)):
            say(f"{name}: does not take part: {reason}")
            continue
        shares = race.shares(name)
        say(f"{name}: {race.seeds} x " + " and ".join(f"{share * race.budget:.0f} s" for share in shares)
            + (f", before that {len(entry.choices)} settings at {entry.share * race.budget:.0f} s" if entry.choices else ""))
        runs += race.seeds * len(shares) + len(entry.choices)
        seconds += race.budget * (race.seeds * sum(shares) + len(entry.choices) * entry.share)
    say(f"{runs} runs on {race.device}, {race.threads} threads; at least {seconds / 60:.0f} minutes, more where a run has to "
        "be repeated to fill its budget; preparing text, calibration and scoring come on top")
    return 0


def _pairs(race: Race, given: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE of an option. CramError for a name that does not race."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value:
            raise CramError(f"{option} {text}: expected NAME=PATH, such as {option} nanogpt=../nanoGPT")
        if name not in race.entries:
            raise CramError(f"{option} {text}: {name} does not race; the race has {', '.join(race.entries)}")
        found[name] = value
    return found
