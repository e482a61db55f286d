"""``cram generate RUN "text"``: continue texts with a trained model."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Callable, Iterator

from cram.errors import CramError

BATCH = 32  # prompts read at a time


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram generate`` with these arguments; returns the exit code. CramError for a wrong one.

    One text is told as it comes; several are told whole, one after another. Tokens a second go to standard error.
    """
    parser.description = "continue texts with a causal or hybrid model"
    parser.add_argument("run", help="a finished run, such as runs/demo_gpt, or what cram quantize saved")
    parser.add_argument("prompts", nargs="+", metavar="text", help="what to continue; '-': standard input, one text a line")
    parser.add_argument("--tokens", type=int, default=60, help="most tokens to add (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (default: %(default)s)")
    parser.add_argument("--top-k", type=int, help="draw from this many of the likeliest tokens")
    parser.add_argument("--top-p", type=float, default=0.9,
                        help="draw from the likeliest tokens that hold this much probability (default: %(default)s)")
    parser.add_argument("--min-p", type=float, help="draw from tokens at least this share as probable as the likeliest")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: %(default)s)")
    parser.add_argument("--count", type=int, default=1, help="texts a prompt, each with the next seed (default: %(default)s)")
    parser.add_argument("--stop", action="append", default=[], metavar="STRING", help="end a text before this string")
    parser.add_argument("--kv-bits", type=int, choices=(4,), help="keep keys and values in 4 bits")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA when there is a card")
    options = parser.parse_args(arguments)
    if options.count < 1:
        raise CramError(f"--count {options.count}: give 1 or more")
    if not 0 <= options.seed < 2**62:
        raise CramError(f"--seed {options.seed}: give a whole number from 0 to 2^62")
    from cram.after.generate import generate, to_stderr
    from cram.evaluate.subject import open_subject

    subject = open_subject(options.run, device=options.device, say=to_stderr)
    jobs = [(prompt, options.seed + number) for prompt in read_prompts(options.prompts) for number in range(options.count)]
    one, told = len(jobs) == 1, []

    def tell(_: int, piece: str) -> None:
        print(piece if told else jobs[0][0] + piece, end="", flush=True)
        told.append(piece)

    made, begin = 0, time.perf_counter()
    for batch in batches(jobs):
        prompts, seeds = zip(*batch)
        results = generate(subject, prompts, tokens=options.tokens, temperature=options.temperature, top_k=options.top_k,
                           top_p=options.top_p, min_p=options.min_p, seed=seeds, stop=options.stop, kv_bits=options.kv_bits,
                           on_text=tell if one else None)
        made += sum(len(result.tokens) for result in results)
        for prompt, result in zip(prompts, results):
            say("" if told else prompt if one else f"{prompt}{result.text}\n")
    to_stderr(f"{made} tokens, {made / (time.perf_counter() - begin):,.0f} a second")
    return 0


def read_prompts(prompts: list[str]) -> list[str]:
    """The prompts; those of standard input, a line each, in place of '-'."""
    read = [line.rstrip("\n") for line in sys.stdin] if "-" in prompts else []
    found = [each for prompt in prompts for each in (read if prompt == "-" else [prompt])]
    if not found:
        raise CramError("no text to continue: standard input is empty")
    return found


def batches(jobs: list[Any]) -> Iterator[list[Any]]:
    """Runs of at most ``BATCH`` jobs."""
    for begin in range(0, len(jobs), BATCH):
        yield jobs[begin:begin + BATCH]
