"""``cram plan [config ...] [key=value ...]``: what a budget buys, before it is spent.

    cram plan demo                              measured here, in seconds
    cram plan bert_day --gpu H100               from a card's data sheet
    cram plan demo budget='2000 steps' --json   for programs
    cram plan --check                           plan, run and compare, for three sizes
"""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Callable, Optional

from cram.config import load
from cram.errors import CramError

SECONDS = 5.0


def command(parser: argparse.ArgumentParser, arguments: list[str], say: Callable[[str], None]) -> int:
    """Run ``cram plan`` with these arguments; returns the exit code. CramError for a wrong one, or a model that does not
    fit."""
    parser.add_argument("settings", nargs="*", metavar="[config ...] [key=value ...]", help="as for cram run")
    parser.add_argument("--gpu", metavar="NAME", help="plan for this card by its data sheet, not for this machine: H100, RTX "
                                                      "4090 ...")
    parser.add_argument("--usd-per-hour", type=_price, metavar="X", help="price of the device (else telemetry.usd_per_hour, "
                                                                         "the card's)")
    parser.add_argument("--measure", type=_seconds, metavar="SECONDS", help="how long steps are measured "
                                                                            f"(default {SECONDS:g})")
    parser.add_argument("--fit", type=Path, metavar="FILE", help="JSON of cram scale to expect the loss by")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check", action="store_true", help="plan, run and compare three sizes, three times; writes a record")
    parser.add_argument("--out", type=Path, metavar="DIR", help="--check: folder of the record (default: bench)")
    options = parser.parse_intermixed_args(arguments)
    if options.gpu is not None and (options.measure or options.check):
        raise CramError("--gpu plans by a data sheet, --measure and --check by measuring here; give one of them")
    if options.check:
        from cram.insight.plan.check import check
        return check(options.settings, options.measure or 2 * SECONDS, options.out or Path("bench"),
                     shlex.join(["cram", "plan", *arguments]), say)
    if options.out:
        raise CramError("--out is for cram plan --check")
    config = load([text for text in options.settings if "=" not in text] or "demo",
                  [text for text in options.settings if "=" in text])
    report(config, options, say)
    return 0


def report(config, options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Make the plan and print it."""
    from cram.insight.plan import tell
    from cram.insight.plan.cards import MFU, find_card
    from cram.insight.plan.costs import of_card
    from cram.insight.plan.expected import expected_loss, read_fit
    from cram.insight.plan.plan import add_range, make_plan, to_record
    from cram.insight.plan.text import find_text
    from cram.insight.plan.walk import outline_of

    card = find_card(options.gpu) if options.gpu is not None else None
    if options.fit is not None:
        read_fit(options.fit)   # refused before seconds are spent on measuring
    text = find_text(config)
    outline = outline_of(config, text.vocab_size)
    if card:
        costs = of_card(config, outline, card)
    else:
        from cram.insight.plan.measuring import measure
        costs = measure(config, options.measure or SECONDS, (lambda line: None) if options.json else say)
    plan = make_plan(config, outline, costs, text)
    if card:
        add_range(plan, config, outline, costs, text, MFU[0] / MFU[1], MFU[2] / MFU[1])
    expected = expected_loss(config, plan.inner_parameters, plan.tokens, options.fit)
    usd, source = _usd(options.usd_per_hour, config.telemetry.usd_per_hour, card)
    kwh = costs.watts * plan.seconds / 3.6e6 if costs.watts else None
    if options.json:
        say(json.dumps(to_record(plan, energy_kwh=kwh, usd_per_hour=usd, usd=usd and plan.seconds / 3600 * usd,
                                 expected_loss=vars(expected), text=vars(text), remarks=costs.remarks)))
        return
    for line in tell.lines(plan, tell.rows(plan, costs, text, expected, card, usd, source, kwh), costs):
        say(line)


def _usd(asked: Optional[float], configured: Optional[float], card) -> tuple[Optional[float], str]:
    """(price an hour, whence)."""
    if asked is not None:
        return asked, f"at ${asked:g} an hour, as given"
    if configured is not None:
        return configured, f"at ${configured:g} an hour, telemetry.usd_per_hour"
    if card is not None and card.usd_per_hour is not None:
        return card.usd_per_hour, f"at ${card.usd_per_hour:g} an hour, {card.price_source}; others differ: --usd-per-hour"
    return None, "give --usd-per-hour"


def _price(text: str) -> float:
    return _number(text, "a price in dollars from 0 on", lambda value: value >= 0)


def _seconds(text: str) -> float:
    return _number(text, "seconds between 0.1 and 600", lambda value: 0.1 <= value <= 600)


def _number(text: str, wanted: str, test: Callable[[float], bool]) -> float:
    try:
        if test(value := float(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected {wanted}, got '{text}'")
