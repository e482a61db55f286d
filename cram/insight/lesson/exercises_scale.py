"""Exercises of lesson 8: scaling."""

from __future__ import annotations

import math

from cram.insight.lesson.judge import Asked, Verdict, number, yes_no


def chinchilla_loss(parameters: float, tokens: float) -> float:
    """Hoffmann et al. 2022, equation 10, with the figures of section D.3; nats a token."""
    return 1.69 + 406.4 / parameters ** 0.34 + 410.7 / tokens ** 0.28


def rule_of_thumb(asked: Asked) -> Verdict:
    """8.1: parameters, in millions, for 1e19 FLOPs at 20 tokens a parameter."""
    return number(asked, math.sqrt(1e19 / (6 * 20)) / 1e6, "C = 6 N (20 N), so N is the root of C / 120")


def predicted_loss(asked: Asked) -> Verdict:
    """8.2: the law at the size of Chinchilla."""
    return number(asked, chinchilla_loss(70e9, 1.4e12), "E + A / N^a + B / D^b", 0.005)


def smaller_and_longer(asked: Asked) -> Verdict:
    """8.3: half the parameters, twice the tokens."""
    return yes_no(asked, chinchilla_loss(35e9, 2.8e12) < chinchilla_loss(70e9, 1.4e12),
                  "the same sum with N / 2 and 2 D: the one term grows, the other shrinks")


CHECKS = {("8", "1"): rule_of_thumb, ("8", "2"): predicted_loss, ("8", "3"): smaller_and_longer}
