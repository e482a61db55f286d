"""``cram bench``: measure speed on this machine, and write what was found down beside the command that found it.

    cram bench attention     ways to attend, forward and backward, over document lengths
    cram bench loss          ways to compute the loss of the last layer
    cram bench step          a whole training step with each attention back end
    cram bench kernels       what the compiler makes of our kernels for cards that are not here
    cram bench render FILE   the table and the plot of a measurement again, from its JSON
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Callable, Iterator

from cram.errors import CramError

WHAT = ("attention", "loss", "step", "kernels", "render")
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
    parser.add_argument("--repeats", type=_positive, help="rounds, in each of which every competitor is timed")
    parser.add_argument("--check", action="store_true", help="kernels: compare with the table that is there, write nothing")
    options = parser.parse_args(arguments)
    if (options.what == "render") != (options.file is not None):
        raise CramError(f"cram bench {options.what} takes no file, got '{options.file}'; see 'cram bench --help'" if options.file else
                        "cram bench render needs one file, such as reports/bench/attention_cpu.json")
    if options.check and options.what != "kernels":
        raise CramError(f"--check is for cram bench kernels, not for {options.what}; see 'cram bench --help'")
    if options.what == "render":
        path = Path(options.file)
    elif options.what == "kernels":
        from cram.bench import kernels
        return kernels.main(options.out, options.check) or 0
    else:
        path = _measure(options, shlex.join(["cram", "bench", *arguments]), say)
    from cram.bench import write
    say(f"{options.what}: {path}, {', '.join(made.name for made in write.render(path))}")
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got '{text}'")
    return int(text)


def _measure(options: argparse.Namespace, command: str, say: Callable[[str], None]) -> Path:
    """Measure and save after every case, so that an interruption loses only the case it falls into."""
    import torch

    from cram.bench import measure, write

    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise CramError("--device cuda: torch sees no CUDA card here; use --device cpu or check the driver")
    device = "cuda" if available and options.device != "cpu" else "cpu"
    view, notes, default, cases = _bench(options.what)
    repeats = options.repeats or (3 if options.quick else default[device])
    record = {"schema": write.SCHEMA, "what": options.what, "command": command, "complete": False, "repeats": repeats,
              "environment": measure.environment(device), "notes": notes, "view": view, "rows": []}
    for rows in cases(device, options.quick, repeats, say):
        record["rows"] += rows
        write.save(record, options.out)
    return write.save(record | {"complete": True}, options.out)


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
