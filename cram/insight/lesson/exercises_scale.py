"""Exercises of lesson 8: scaling."""

from __future__ import annotations

import math

from cram.errors import CramError
from cram.insight.lesson.judge import Asked, Verdict, number


def chinchilla_loss(parameters: float, tokens: float) -> float:
    """Hoffmann et al. 2022, equation 10, with the figures of section D.3; nats a token."""
    return 1.69 + 406.4 / parameters ** 0.34 + 410.7 / tokens ** 0.28


def rule_of_thumb(asked: Asked) -> Verdict:
    """8.1: parameters, in millions, for 1e19 FLOPs at 20 tokens a parameter."""
    return number(asked, math.sqrt(1e19 / (6 * 20)) / 1e6, "C = 6 N (20 N), so N is the root of C / 120")


def predicted_loss(asked: Asked) -> Verdict:
    """8.2: the law at the size of Chinchilla."""
    return number(asked, chinchilla_loss(70e9, 1.4e12), "E + A / N^a + B / D^b", 0.005)


def tokens_to_match(asked: Asked) -> Verdict:
    """8.3: tokens with which the law of the lesson's own grid lets 1x32 reach the loss that 1x64 had at the largest budget."""
    from cram.insight.plan.expected import fit_of, read_fit

    record = read_fit(asked.made("scaling") / "tiny.json")
    floor, a, b, alpha, beta, gamma = vars(fit_of(record).law).values()     # an older record has no gamma: 1
    sizes = {row["size"]: row["n"] for row in record["rows"]}
    if not {"1x32", "1x64"} <= set(sizes):
        raise CramError(f"{asked.runs / 'scaling'}: holds the sizes {', '.join(sizes)}; run the command of the lesson")
    n, loss = sizes["1x32"], max((row["tokens"], row["loss"]) for row in record["rows"] if row["size"] == "1x64")[1]
    left = max(loss - floor, 0.0) ** (1 / gamma) - a / n ** alpha      # what the term of the tokens may still be
    how = ("set L(N, D) of the fit to that loss, with N of 1x32 (n in the record), and solve for D; never, where E and the "
           "term of N alone are more")
    if left <= 0 or asked.word() == "never":
        return Verdict(left <= 0 and asked.word() == "never", how)
    return number(asked, (b / left) ** (1 / beta), how, 0.05)


CHECKS = {("8", "1"): rule_of_thumb, ("8", "2"): predicted_loss, ("8", "3"): tokens_to_match}
