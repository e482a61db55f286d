"""``cram export RUN FOLDER``: see export.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable

from cram.after.export import DTYPES, export


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram export`` with these arguments; returns the exit code. CramError for a wrong one."""
    parser.add_argument("run", type=Path, help="folder of a finished run, such as runs/demo")
    parser.add_argument("out", type=Path, help="folder to write; it must not be there")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored weights (default: float32)")
    parser.add_argument("--force", action="store_true", help="replace an export that is there")
    options = parser.parse_args(arguments)
    chosen = export(options.run, options.out, say, dtype=options.dtype, force=options.force)
    auto, task = (("AutoModelForCausalLM", "text-generation") if chosen.causal else ("AutoModelForMaskedLM", "fill-mask"))
    say(f"load it with transformers.{auto}.from_pretrained({str(options.out)!r}), or pipeline({task!r}, {str(options.out)!r})")
    return 0
