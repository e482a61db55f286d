"""The loss to expect, from a law that ``cram scale`` has fitted for the same recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Sequence

from cram.errors import CramError
from cram.explain import show
from cram.insight.scale.grid import recipe
from cram.insight.scale.law import Fit, Law

COMMITTED = Path(__file__).parents[3] / "reports" / "scaling"   # of a checkout; an installed copy has none
UNKNOWN = "unknown: cram scale measures it"


@dataclass(frozen=True)
class Expected:
    """loss: nats, None when nobody knows; low, high: 95%; told: whence, and how far beyond what was measured."""

    loss: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    told: str = UNKNOWN


def expected_loss(config, inner_parameters: int, tokens: int, given: Optional[Path] = None) -> Expected:
    """By the law in ``given`` (CramError when it is of another recipe), else by a committed one of this recipe."""
    if not tokens:
        return Expected(told="none: no step")
    if given is not None:
        record = read_fit(given)
        if other := differences(record["recipe"], recipe(config)):
            raise CramError(f"{given}: is the law of another recipe: {'; '.join(other[:3])}; fit this one: cram scale")
        return _predict(record, given, inner_parameters, tokens)
    for path in sorted(COMMITTED.glob("*.json")):
        record = read_fit(path)
        if not differences(record["recipe"], recipe(config)):
            return _predict(record, path, inner_parameters, tokens)
    return Expected()


def read_fit(path: Path) -> dict[str, Any]:
    """The record of a study. CramError for a file that is none."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        if record["what"] == "scale" and fit_of(record) and record["recipe"] and record["rows"]:
            return record
    except OSError as error:
        raise CramError(f"{path}: not a scaling study ({error.strerror}); give the JSON that cram scale wrote") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CramError(f"{path}: not a scaling study ({type(error).__name__}: {error}); give the JSON that cram scale "
                        "wrote") from error
    raise CramError(f"{path}: not a scaling study; give the JSON that cram scale wrote")


def fit_of(record: dict[str, Any]) -> Fit:
    """The fit that a record holds."""
    laws = [Law(*values) for values in (record["fit"]["law"], *record["fit"]["draws"])]
    return Fit(laws[0], tuple(laws[1:]), tuple(record["fit"]["residuals"]))


def differences(study: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """The keys in which two recipes differ, with both values; empty when a law of one holds for the other."""
    return [f"{key} {show(study.get(key))} -> {show(here.get(key))}" for key in sorted({*study, *here})
            if study.get(key) != here.get(key)]


def _predict(record: dict[str, Any], path: Path, n: int, d: int) -> Expected:
    loss, low, high = fit_of(record).predict(n, d)
    beyond = [text for text in (_beyond("size", n, [row["n"] for row in record["rows"]]),
                                _beyond("tokens", d, [row["tokens"] for row in record["rows"]])) if text]
    return Expected(loss, low, high, f"law of {path.name}, 95% of its bootstrap" + "".join(f"; {text}" for text in beyond))


def _beyond(what: str, value: float, measured: Sequence[float]) -> str:
    if value > 1.05 * max(measured):
        return f"{what} {value / max(measured):.1f} times the largest measured"
    return f"{what} below the smallest measured" if value < 0.95 * min(measured) else ""
