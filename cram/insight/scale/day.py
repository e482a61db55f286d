"""From minutes to a day: what a finished study says of an hour and a day on named cards, and how little that is known.

Three things are uncertain, and drawn together: the law's numbers (the bootstrap of its residuals), the share of the card's peak
that training reaches (``cards.MFU``, assumed), and whether the form of the law holds so far outside. The last is taken from how
the law erred where that can be seen: it is fitted again without the largest budgets, foresees them, and its errors of log loss,
divided by how far away they lay in log FLOPs, give a rate; the same rate is assumed of the whole way (Student's t with as many
degrees as runs were foreseen, since they are few). The loss is further taken to be no more than the best that was measured with
fewer FLOPs.

That is cautious where the form holds, and no proof against a bend that lies beyond the study. Of 12 simulated studies (4 sizes,
5 budgets, noise of 0.5%, a day a million times beyond) the interval held the day's loss in 12 where the form was true, in 11
and 12 where it lacked a term or an exponent, and in 9 where the truth was of the form of Kaplan et al. 2020 (equation 1.5); the
bootstrap alone held it in 10, 8, 11 and 5. ``FORMS`` in ``tests/cram/insight/test_scale_day.py`` are these forms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Iterator, Optional, Sequence

import numpy as np

from cram.budget import Budget
from cram.config import from_dict
from cram.errors import CramError
from cram.insight.plan.cards import MFU, Card
from cram.insight.plan.costs import SHORT, Costs, of_card
from cram.insight.plan.expected import fit_of
from cram.insight.plan.walk import Outline
from cram.insight.scale import grid, published
from cram.insight.scale.law import Fit, Law, fit

HOURS = (1.0, 24.0)
CARDS = ("RTX 4090", "A100", "H100", "H200")
LEAST_BUDGETS = 3       # that a refit must see
SAMPLES = 4000          # of everything that is uncertain together


@dataclass(frozen=True)
class Miss:
    """A run foreseen by a law that saw the smallest ``seen`` budgets only. distance: log FLOPs beyond the same size's largest
    run there; error: log of foreseen over measured loss."""

    seen: int
    budget: str
    size: str
    distance: float
    error: float


@dataclass(frozen=True)
class Allowance:
    """What the form of the law is allowed to err by. rate: deviation of log loss for each unit of log FLOPs; degrees: of
    Student's t."""

    rate: float
    degrees: int

    def draw(self, distance_X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Errors of log loss at these distances, [X]."""
        return self.rate * distance_X * rng.standard_t(self.degrees, distance_X.shape)


@dataclass(frozen=True)
class Outlook:
    """What a card buys in some hours. flops, flops_low, flops_high: by the MFU expected and its range; tokens: at the expected;
    low, high: 95% of everything together, of the loss; by_law: 95% of the law's draws alone; distance: times the FLOPs of the
    study's largest run; score: by published relations."""

    card: str
    hours: float
    flops: float
    flops_low: float
    flops_high: float
    size: grid.Size
    tokens: float
    epochs: Optional[float]
    loss: float
    low: float
    high: float
    by_law: tuple[float, float]
    distance: float
    score: published.Score
    remarks: tuple[str, ...]


def misses(rows: Sequence[dict]) -> list[Miss]:
    """How laws of the smaller budgets erred on the larger ones, for every number of budgets that determines a law. CramError
    when none does."""
    amounts = sorted({_amount(row) for row in rows})
    made = []
    for seen in range(LEAST_BUDGETS, len(amounts)):
        known_rows = [row for row in rows if _amount(row) <= amounts[seen - 1]]
        law = _law_of(known_rows)
        last = {size: max(row["flops"] for row in known_rows if row["size"] == size) for size in
                {row["size"] for row in known_rows}}
        for row in rows:
            if _amount(row) > amounts[seen - 1] and row["size"] in last:
                foreseen = float(law.loss(row["n"], row["tokens"]))
                made.append(Miss(seen, row["budget"], row["size"], math.log(row["flops"] / last[row["size"]]),
                                 math.log(foreseen / row["loss"])))
    if not made:
        raise CramError(f"{len(amounts)} budgets: how a law errs beyond its budgets shows only when {LEAST_BUDGETS} determine "
                        "it and a larger one is foreseen; give cram scale more --budgets")
    return made


def allowance(found: Sequence[Miss]) -> Allowance:
    """The rate of the errors: root mean square of error / distance, a line through no error at no distance."""
    rate = math.sqrt(sum((miss.error / miss.distance) ** 2 for miss in found) / len(found))
    return Allowance(rate, len({(miss.budget, miss.size) for miss in found}))


def outlooks(record: dict[str, Any], sizes: Sequence[grid.Size], cards: Sequence[Card], given: Allowance) -> list[Outlook]:
    """Of each card and each of ``HOURS``. sizes: candidates, ``grid.family(recipe_config(record))``. CramError when none fits
    into a card."""
    config = recipe_config(record)
    return [_outlook(record, config, sizes, card, hours, given) for card in cards for hours in HOURS]


def recipe_config(record: dict[str, Any]):
    """The recipe of a study as a configuration, in the proportions of the largest size that was measured."""
    nested: dict[str, Any] = {}
    for key, value in record["recipe"].items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    largest = max(record["sizes"], key=lambda size: size["n"])
    return grid.resized(from_dict(nested), largest["settings"])


def _outlook(record: dict[str, Any], config, sizes: Sequence[grid.Size], card: Card, hours: float,
             given: Allowance) -> Outlook:
    known, rows = fit_of(record), record["rows"]
    size, costs, tried = _best_that_fits(config, sizes, card, hours, known)
    seconds = hours * 3600 - costs.setup - costs.compile
    low, middle, high = (share * card.peak * seconds for share in MFU)
    tokens = middle / size.flops_per_token
    loss_low, loss_high, by_law = interval(known, rows, size, (low, middle, high), given)
    text, largest = record["text_tokens"], max(row["flops"] for row in rows)
    objective = record["recipe"]["objective.type"]
    score = published.glue(card.peak * hours * 3600) if objective == "masked" else published.core(middle, low, high)
    remarks = [f"{name} does not fit" for name in tried]
    if costs.remarks:
        remarks.append(f"micro-batches of {costs.micro_tokens:,} tokens take under {1e3 * SHORT:g} ms, launching their kernels "
                       "longer: the MFU is assumed too high; take a larger batch, and measure on the card")
    if size.name in (sizes[0].name, sizes[-1].name):
        remarks.append("at the edge of the family of candidates")
    return Outlook(card.name, hours, middle, low, high, size, tokens, tokens / text if text else None,
                   float(known.law.loss(size.inner, tokens)), loss_low, loss_high, by_law, middle / largest, score,
                   tuple(remarks))


def _best_that_fits(config, sizes: Sequence[grid.Size], card: Card, hours: float,
                    known: Fit) -> tuple[grid.Size, Costs, list[str]]:
    """(the size of least loss of those that fit into the card, what it costs there, the better ones that do not fit)."""
    flops, refused = MFU[1] * card.peak * hours * 3600, []
    for size in sorted(sizes, key=lambda size: float(known.law.loss(size.inner, flops / size.flops_per_token))):
        sized = grid.resized(config, size.settings)
        try:
            return size, of_card(sized, Outline(sized), card), refused
        except CramError as error:
            if not str(error).startswith("does not fit"):
                raise
            refused.append(size.name)       # told as a remark
    raise CramError(f"--gpu {card.name}: no size of the family fits into its {card.memory / 1e9:.0f} GB")


def interval(known: Fit, rows: Sequence[dict], size: grid.Size, flops: tuple[float, float, float], given: Allowance,
             seed: int = 0) -> tuple[float, float, tuple[float, float]]:
    """(low, high, (low, high) of the law's draws alone): 95% of the loss. flops: least, likeliest, most (a triangle)."""
    rng = np.random.default_rng(seed)
    flops_X = rng.triangular(*flops, SAMPLES) if flops[0] < flops[2] else np.full(SAMPLES, flops[1])
    law_X = rng.integers(len(known.draws), size=SAMPLES)
    laws = np.array([list(vars(law).values()) for law in known.draws])
    loss_X = Law(*laws[law_X].T).loss(size.inner, flops_X / size.flops_per_token)
    distance_X = np.maximum(np.log(flops_X / max(row["flops"] for row in rows)), 0.0)
    best = min((row["loss"] for row in rows if row["flops"] <= flops[0]), default=math.inf)
    log_loss_X = np.minimum(np.log(loss_X) + given.draw(distance_X, rng), math.log(best))
    low, high = np.exp(np.quantile(log_loss_X, (0.025, 0.975)))
    return float(low), float(high), known.interval(lambda law: law.loss(size.inner, flops[1] / size.flops_per_token))


def path_to_the_day(record: dict[str, Any], sizes: Sequence[grid.Size], given: Allowance,
                    last: float) -> Iterator[tuple[float, float, float, float]]:
    """(FLOPs, loss, low, high) of the best of the sizes, from the study's smallest run to ``last`` FLOPs."""
    known, rows = fit_of(record), record["rows"]
    for flops in np.geomspace(min(row["flops"] for row in rows), last, 40):
        size = min(sizes, key=lambda size: float(known.law.loss(size.inner, flops / size.flops_per_token)))
        low, high, _ = interval(known, rows, size, (flops, flops, flops), given)
        yield float(flops), float(known.law.loss(size.inner, flops / size.flops_per_token)), low, high


def _law_of(rows: Sequence[dict]) -> Law:
    """Without draws, which take most of the time of a fit."""
    return fit([row["n"] for row in rows], [row["tokens"] for row in rows], [row["loss"] for row in rows], draws=0).law


def _amount(row: dict) -> float:
    return Budget.parse(row["budget"]).amount
