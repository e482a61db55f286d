"""``cram fill RUN "text with [MASK]"``: the likeliest words for blanks."""

from __future__ import annotations

import argparse
from typing import Callable

from cram.errors import CramError


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram fill`` with these arguments; returns the exit code. CramError for a wrong one."""
    parser.description = "fill in blanks with a masked or hybrid model; every [MASK] stands for one token"
    parser.add_argument("run", help="a finished run, such as runs/demo, or what cram quantize saved")
    parser.add_argument("sentences", nargs="+", metavar="text", help="a sentence with one [MASK] or several")
    parser.add_argument("--top", type=int, default=5, help="guesses a blank (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: CUDA when there is a card")
    options = parser.parse_args(arguments)
    from cram.after.generate import to_stderr
    from cram.evaluate.subject import SPECIAL, open_subject
    from cram.evaluate.samples import BLANK, encode_blanks, fill_blanks

    subject = open_subject(options.run, device=options.device, say=to_stderr)
    if subject.kind == "causal":
        raise CramError(f"{subject.name} is a causal model: it continues text and does not fill blanks; use cram generate")
    if any(subject.special.get(name) != subject.tokenizer.token_to_id(token) for name, token in SPECIAL.items()):
        raise CramError(f"{subject.name} writes its special tokens otherwise than {' '.join(SPECIAL.values())}; use "
                        "transformers.pipeline('fill-mask') for it")
    if not 1 <= options.top <= subject.model.vocab_size:
        raise CramError(f"--top {options.top}: give a number from 1 to the {subject.model.vocab_size} tokens there are")
    for sentence in options.sentences:
        if (length := len(encode_blanks(subject.tokenizer, sentence, "cram fill"))) > subject.row:
            to_stderr(f"{length} tokens: {subject.name} was trained on {subject.row} at most, so expect worse guesses")
        filled = fill_blanks(subject.model, subject.tokenizer, sentence, top=options.top, device=subject.device)
        best, *pieces = sentence.split(BLANK)
        for (guess, *_), piece in zip(filled, pieces):  # a guess may bring the space before it along
            best = (best.removesuffix(" ") if guess["token"].startswith(" ") else best) + guess["token"] + piece
        say(best)
        for number, blank in enumerate(filled, start=1):
            guesses = ", ".join(f"{guess['token'].strip() or repr(guess['token'])} {guess['probability']:.1%}"
                                for guess in blank)
            say(f"  {BLANK if len(filled) == 1 else f'{BLANK} {number}'}  {guesses}")
    return 0
