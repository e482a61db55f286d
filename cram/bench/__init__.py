"""``cram bench``: measure on this machine, and write what was found down beside the command that found it.

    cram bench attention     ways to attend, forward and backward, over document lengths
    cram bench loss          ways to compute the loss of the last layer
    cram bench step          a whole training step with each attention back end
    cram bench data          preparing text, beside datatrove, datasketch and tokenizers; --whole: end to end
    cram bench filters       what filters and deduplication are worth: the same budget on raw and on clean text
    cram bench defaults      what our defaults are worth: each beside cramming's value, at the same budget
    cram bench overhead      what the training loop itself costs a step
    cram bench techniques    every technique: where it is from, where it is written, what it costs and saves here
    cram bench faults        real runs, killed and harmed: what survives, beside an uninterrupted run
    cram bench kernels       what the compiler makes of our kernels for cards that are not here
    cram bench render FILE   the table and the plot of a measurement again, from its JSON
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Optional

from cram.errors import CramError

WHAT = ("attention", "loss", "step", "data", "filters", "defaults", "overhead", "techniques", "faults", "kernels", "render")
RUNS = ("defaults", "overhead", "techniques")       # benches whose cases are whole runs
# Options that some benches alone understand.
ONLY = {"check": ("kernels",), "files": ("data", "filters", *RUNS), "whole": ("data",), "megabytes": ("data", "filters"),
        "runs": ("filters", "defaults", "faults"), "budget": ("filters", "defaults"), "faults": ("faults",),
        "kills": ("faults",)}
ONE_THREAD = {"threads": 1}
CORPUS_BYTES = 500_000_000      # text read at most, to draw samples from
LOSS_VIEW = {"title": "Loss of the last layer, forward and backward", "panel": "{p:,} positions, width {d}, vocabulary {v:,}",
             "x": "p", "line": "way", "kind": "bars", "baseline": "plain", "y": [["ms", "ms"], ["peak_mib", "MiB"]],
             "columns": [["way", "way", ""], ["median, ms", "ms", ".3f"], ["fastest, ms", "min", ".3f"],
                         ["slowest, ms", "max", ".3f"], ["peak memory, MiB", "peak_mib", ".1f"],
                         ["error of the loss", "error_loss", ".1e"], ["of dx", "error_dx", ".1e"],
                         ["of dweight", "error_dweight", ".1e"]]}


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram bench`` with these arguments; returns the exit code. CramError for a wrong one."""
    parser.add_argument("what", choices=WHAT, metavar="what", help=", ".join(WHAT))
    parser.add_argument("file", nargs="?", help="render: a measurement's JSON")
    parser.add_argument("--out", type=Path, default=Path("reports/bench"), help="folder for results (default: reports/bench)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA when there is a card")
    parser.add_argument("--quick", action="store_true", help="a few small cases, to see that all of it works")
    parser.add_argument("--repeats", type=_positive, help="rounds, in each of which every competitor is timed; "
                        "filters, defaults: seeds; faults: times that each is tried")
    parser.add_argument("--check", action="store_true", help="kernels: compare with the table that is there, write nothing")
    parser.add_argument("--files", nargs="+", metavar="PATTERN", help="text to work on, jsonl, txt or parquet "
                        "(default: docstrings of installed packages); filters: clean text")
    parser.add_argument("--whole", action="store_true", help="data: the stages end to end, with their memory")
    parser.add_argument("--megabytes", nargs="+", type=_amount,
                        help="data --whole: sizes of the corpora; filters: of the clean text")
    parser.add_argument("--runs", type=Path, help="filters, defaults, faults: folder where runs are kept, and, but for faults, "
                        "found again (default: none)")
    parser.add_argument("--faults", type=lambda text: text.split(","), metavar="A,B", help="faults: these alone")
    parser.add_argument("--kills", type=_positive, help="faults: also so many kill -9 at random moments, over all kinds of "
                        "budget")
    parser.add_argument("--budget", help="filters, defaults: budget of every run (default: '400 steps', '1.2e12 flops')")
    options = parser.parse_args(arguments)
    if (options.what == "render") != (options.file is not None):
        raise CramError(f"cram bench {options.what} takes no file, got '{options.file}'; see 'cram bench --help'"
                        if options.file else "cram bench render needs one file, such as reports/bench/attention_cpu.json")
    for name, benches in ONLY.items():
        if getattr(options, name) and options.what not in benches:
            raise CramError(f"--{name} is for cram bench {', '.join(benches)}, not for {options.what}; see 'cram bench --help'")
    if options.megabytes and options.what == "data" and not options.whole:
        raise CramError("cram bench data --megabytes needs --whole; see 'cram bench --help'")
    if options.what == "filters" and len(options.megabytes or []) > 1:
        raise CramError("cram bench filters takes one size of --megabytes; see 'cram bench --help'")
    if options.what == "render":
        path = Path(options.file)
    elif options.what == "kernels":
        from cram.bench import kernels
        return kernels.main(options.out, options.check) or 0
    else:
        path = _measure(options, shlex.join(["cram", "bench", *arguments]), say)
    from cram.bench import write
    made = write.render(path)
    if path.stem.startswith("techniques_"):
        from cram.bench import techniques_page
        made.append(techniques_page.write(path))
    say(f"{options.what}: {path}, {', '.join(each.name for each in made)}")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)


def _amount(text: str) -> float:
    try:
        if (amount := float(text)) > 0:
            return amount
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected megabytes above 0, got '{text}'")


class _Bench(NamedTuple):
    """cases(device, quick, repeats, say) yields rows; conclude(rows): notes that only the rows can tell."""

    view: dict
    notes: list[str]
    repeats: dict[str, int]
    cases: Callable[..., Iterator[list[dict]]]
    conclude: Callable[[list[dict]], list[str]] = lambda rows: []
    quick_repeats: int = 3
    name: Optional[str] = None          # of the record, where it is not that of the bench
    facts: Optional[dict] = None        # of the environment, where they differ from what is usual
    tables: Callable[[list[dict]], list[tuple]] = lambda rows: []       # [heading, header, body] from all rows together


def _measure(options: argparse.Namespace, command: str, say: Callable[[str], None]) -> Path:
    """Measure and save after every case, so that an interruption loses only the case it falls into."""
    import torch

    from cram.bench import measure, write

    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise CramError("--device cuda: torch sees no CUDA card here; use --device cpu or check the driver")
    device = "cuda" if available and options.device != "cpu" and options.what not in ("data", "faults") else "cpu"
    make = (_fault_bench if options.what == "faults" else _text_bench if options.what in ("data", "filters") else
            _run_bench if options.what in RUNS else _timing_bench)
    bench = make(options)
    repeats = options.repeats or (bench.quick_repeats if options.quick else bench.repeats[device])
    environment = measure.environment(device) | (bench.facts or {})
    record = {"schema": write.SCHEMA, "what": bench.name or options.what, "command": command, "complete": False,
              "repeats": repeats, "environment": environment, "notes": bench.notes, "view": bench.view, "rows": []}
    for rows in bench.cases(device, options.quick, repeats, say):
        record["rows"] += rows
        record["notes"] = [*bench.notes, *bench.conclude(record["rows"])]
        record["tables"] = bench.tables(record["rows"])
        write.save(record, options.out)
    return write.save(record | {"complete": True}, options.out)


def _timing_bench(options: argparse.Namespace) -> _Bench:
    return _Bench(*_bench(options.what))


def _bench(what: str) -> tuple[dict, list[str], dict[str, int], Callable[..., Iterator[list[dict]]]]:
    """View, notes, usual repeats and the measurement of a bench, imported only now."""
    if what == "attention":
        from cram.bench import attention as bench
    elif what == "step":
        from cram.bench import step as bench
    else:
        return LOSS_VIEW, [], {"cuda": 20, "cpu": 5}, _loss_cases
    return bench.VIEW, bench.NOTES, bench.REPEATS, bench.measure


def _loss_cases(device: str, quick: bool, repeats: int, say: Callable[[str], None]) -> Iterator[list[dict]]:
    """The rows of ``cram.bench.loss``, size after size, in the units of the table."""
    from cram.bench import loss

    for size in loss.SIZES[device][:1 if quick else None]:
        yield [row if "error" in row else
               row | {"ms": 1e3 * row["seconds"], "min": 1e3 * row["fastest"], "max": 1e3 * row["slowest"],
                      "peak_mib": row["peak_bytes"] / 2**20} for row in loss.measure(device, [size], repeats)]
        say("loss: {0:,} positions, width {1}, vocabulary {2:,}".format(*size))


def _text_bench(options: argparse.Namespace) -> _Bench:
    """The benches that work on text, which is read here. CramError for text that is missing."""
    from cram.bench import corpora, data, filters, whole

    needed = 3_000_000 if options.quick else CORPUS_BYTES if options.files else int(data.Sizes().corpus * 1e6)
    texts, told = corpora.read_documents(options.files or [], needed)
    told = [f"Text: {told}, in a random order."]
    if options.what == "filters":
        plan = _plan(options, filters)
        return _Bench(filters.VIEW, [*filters.NOTES, plan.told(), *told], {"cpu": 3, "cuda": 3},
                      lambda device, quick, repeats, say: filters.measure(texts, plan, repeats, device, options.runs, say),
                      filters.conclude, 2, facts=ONE_THREAD)
    if options.whole:
        settings = whole.QUICK if options.quick else whole.SETTINGS
        sizes = options.megabytes or ((0.5, 1.0) if options.quick else whole.SIZES)
        return _Bench(whole.VIEW, [*whole.NOTES, *told, f"Settings: {' '.join(settings)}."], {"cpu": 1},
                      lambda device, quick, repeats, say: whole.measure(texts, sizes, settings, repeats, say),
                      whole.conclude, 1, "data-whole", ONE_THREAD)
    sizes = data.QUICK if options.quick else data.Sizes()
    return _Bench(data.VIEW, [*data.NOTES, *told, data.libraries()], data.REPEATS,
                  lambda device, quick, repeats, say: data.measure(texts, sizes, repeats, say), facts=ONE_THREAD)


def _fault_bench(options: argparse.Namespace) -> _Bench:
    from cram.bench import faults

    chosen = faults.choose(options.faults, options.quick)
    return _Bench(faults.VIEW, faults.NOTES, {"cpu": 3}, lambda device, quick, repeats, say: faults.measure(
        chosen, options.kills or 0, repeats, options.runs, say), faults.conclude, 1, facts=ONE_THREAD)


def _run_bench(options: argparse.Namespace) -> _Bench:
    """The benches that train: their runs read the text themselves, as every run does."""
    from cram.bench import defaults, overhead, runs, techniques

    if options.what == "defaults":
        text = runs.text(options.files, ("networkx",) if options.quick else ())
        plan = defaults.Plan(budget=options.budget or defaults.Plan.budget, overrides=(*defaults.SMALLER, *text))
        if options.quick:
            plan = defaults.Plan(options.budget or "8 steps", defaults.QUICK_SWITCHES, (*defaults.QUICK, *text))
        return _Bench(defaults.VIEW, [*defaults.NOTES, plan.told()], {"cpu": 3, "cuda": 3},
                      lambda device, quick, repeats, say: defaults.measure(plan, repeats, device, options.runs, say),
                      quick_repeats=2, facts=ONE_THREAD, tables=defaults.tables)
    bench = overhead if options.what == "overhead" else techniques
    text = runs.text(options.files, ("networkx",))              # what is read matters little here
    return _Bench(bench.VIEW, bench.NOTES, bench.REPEATS, lambda device, quick, repeats, say:
                  bench.measure(text, repeats, device, quick, say), quick_repeats=1, facts=ONE_THREAD)


def _plan(options: argparse.Namespace, filters: Any) -> Any:
    """What cram bench filters is to do, as the options say."""
    asked: dict[str, Any] = {"budget": options.budget} if options.budget else {}
    if options.megabytes:
        asked["megabytes"] = options.megabytes[0]
    if options.quick:
        return filters.Plan(**{"budget": "8 steps", "megabytes": 0.4, "held_out": 0.05, "overrides": filters.QUICK} | asked)
    return filters.Plan(**asked)
