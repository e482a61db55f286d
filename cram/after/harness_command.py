"""``cram harness RUN ...``: lm-evaluation-harness's own command line (``lm-eval run``) with a run of ours as the model."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import Callable

from cram.errors import CramError

OURS = ("--model", "-M", "--model_args", "-a")


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Everything after the run's folder goes to ``lm-eval run``. Raises CramError when the harness is missing or refuses."""
    parser.add_argument("run", help="a finished run (runs/demo_gpt), a folder with a Hugging Face model, or hf:NAME")
    parser.add_argument("harness", nargs=argparse.REMAINDER, metavar="...",
                        help="options of lm-evaluation-harness: --tasks, --num_fewshot, --limit, --output_path ...")
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("lm_eval") is None:
        raise CramError("cram harness needs lm-evaluation-harness: pip install 'cram-lm[eval]'")
    if given := [word for word in options.harness if word.partition("=")[0] in OURS]:
        raise CramError(f"{given[0]}: the model is the run itself; leave {given[0].partition('=')[0]} away")
    if not any(word.partition("=")[0] in ("--tasks", "-t", "--config", "-C") for word in options.harness):
        raise CramError("no --tasks; give some, as in: cram harness runs/demo_gpt --tasks blimp (lm-eval ls tasks lists them)")
    if set(options.run) & set(",= "):
        raise CramError(f"{options.run}: the harness cannot read a path with commas, spaces or equals signs; rename the folder")
    import cram.after.harness  # noqa: F401  registers the model
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv  # the harness reads its options from there alone
    sys.argv = ["lm-eval", "run", "--model", "cram", "--model_args", f"run={options.run}", *options.harness]
    try:
        cli_evaluate()
    except CramError:
        raise
    except (ValueError, OSError) as error:  # among the latter: the hub cannot be reached
        raise CramError(f"lm-evaluation-harness: {error}") from error
    finally:
        sys.argv = before
    return 0
