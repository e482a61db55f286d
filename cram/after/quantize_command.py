"""``cram quantize RUN [SCHEME ...]``: fewer bits a weight, and what that costs."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Callable

from cram.errors import CramError


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram quantize`` with these arguments; returns the exit code. CramError for a wrong one."""
    parser.description = "a run in fewer bits, beside itself: size, held-out loss, tokens a second"
    parser.add_argument("run", type=Path, help="a finished run, such as runs/demo_gpt")
    parser.add_argument("schemes", nargs="*", metavar="scheme",
                        help="int8, int4, int3, gptq4, gptq3, kv4 (default: as configured)")
    parser.add_argument("--group", type=int, help="weights of a row that share a scale (default: as configured)")
    parser.add_argument("--tokens", type=int, help="held-out tokens scored (default: as configured)")
    parser.add_argument("--calibration-tokens", type=int, help="held-out tokens that GPTQ looks at (default: as configured)")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the model of the one scheme given; cram generate and "
                        "cram fill read it")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA when there is a card")
    options = parser.parse_args(arguments)
    from cram.after.quantize import CACHE_SCHEME, measure, quantize_lines
    from cram.after.quantized import save_quantized
    from cram.evaluate.subject import open_subject
    from data_prep.shards import Shards

    subject = open_subject(options.run, device=options.device, say=say)
    if subject.config is None:
        raise CramError(f"{options.run} is not a run of cram's; cram quantize needs its held-out text as well")
    if "scheme" in subject.notes:
        raise CramError(f"{options.run} is quantized already; quantize the run that it was made from")
    full = options.save is not None and options.save.is_dir() and any(options.save.iterdir())
    if full and not (options.save / "quantized.json").exists():
        raise CramError(f"{options.save}: is not empty and holds no quantized model; name another folder")
    wanted = copy.deepcopy(subject.config.quantize)
    given = {"schemes": options.schemes or None, "group": options.group, "tokens": options.tokens,
             "calibration_tokens": options.calibration_tokens}
    for name, value in given.items():
        if value is not None:
            setattr(wanted, name, value)
    if min(wanted.group, wanted.tokens, wanted.calibration_tokens) < 1:
        raise CramError("--group, --tokens and --calibration-tokens are whole numbers from 1")
    if options.save and (len(wanted.schemes) != 1 or wanted.schemes == [CACHE_SCHEME]):
        raise CramError(f"--save keeps one model: name one scheme for the weights, not {' '.join(wanted.schemes) or 'none'}")
    result, quantized = measure(subject, Shards(options.run / "data", "validation"), wanted,
                                subject.config.evaluate.mask_rate, say)
    for line in quantize_lines(result):
        say(line)
    if len(result["rows"]) == 1 and result["skipped"]:
        raise CramError("none of the schemes could be tried, for the reasons above; nothing was saved")
    if options.save:
        save_quantized(quantized, options.save, options.run / "tokenizer")
        say(f"saved: {options.save}; try: cram " + (f'fill {options.save} "the [MASK]"' if subject.kind == "masked" else
                                                    f'generate {options.save} "The"'))
    return 0
