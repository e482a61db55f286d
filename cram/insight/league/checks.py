"""All that a card must agree with itself about. Each check yields a reason for every thing that cannot be.

A forger who signs everything again has to make all of it fit: the clock to the seconds charged, the steps to the tokens, the
tokens to the FLOPs, the rates to the schedule, the curve to the score, and every file to the hash that the next stage took of
it. Somebody who does fit it all together passes; only the weights (rescore.py) tell then, and of training longer than the
ledger says not even they.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta, timezone
from typing import Callable, Iterator, Optional

import xxhash

from cram.config import KEYS, lookup
from cram.errors import CramError
from cram.insight.league.card import Card, ledger_lines
from cram.insight.league.checks_ledger import check_account, check_clock, check_sessions, check_teacher, check_work
from cram.insight.league.checks_metrics import check_end, check_formula, check_rows, check_schedule, check_speed, check_whole
from cram.insight.league.checks_scores import check_curve, check_score, check_text


def contradictions(card: Card) -> list[str]:
    """Every reason why this card cannot be that of an honest run; none when it is consistent."""
    reasons: list[str] = []
    for check in CHECKS:
        try:
            reasons += check(card)
        except CramError as error:
            reasons.append(str(error))
        except MALFORMED as error:
            reasons.append(f"a field is missing or of the wrong kind ({type(error).__name__}: {error})")
    return list(dict.fromkeys(reasons))


def check_identity(card: Card) -> Iterator[str]:
    """The run's id is the hash of its configuration and inputs."""
    identity = card.stages["pretrain"]["identity"]
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]
    found = {card.body["run_id"], *(row["run_id"] for row in card.ledger.rows if row["kind"] == "open")}
    if found != {key}:
        yield f"the run's id is {key} by its configuration and data, but card and ledger say {', '.join(sorted(found))}"
    for stage in ("pretrain", "evaluate"):
        for name, value in card.stages[stage]["identity"]["config"].items():
            if name not in KEYS or json.dumps(lookup(card.config, name)) != json.dumps(value):
                yield f"the configuration says another {name} than the {stage} stage was run with"


def check_custody(card: Card) -> Iterator[str]:
    """Each stage names the hashes of its files, and the next stage the hash of those."""
    stages, files = card.stages, card.stages["pretrain"]["files"]
    for stage, record in stages.items():
        listed = record["files"]
        if listed is not None and hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest() != record["digest"]:
            yield f"the files of the {stage} stage do not have the digest that it names"
        for name, digest in record["identity"]["inputs"].items():
            if name in stages and stages[name]["digest"] != digest:
                yield f"the {stage} stage was run on another {name} than the card's"
    rows = card.ledger.rows
    head = json.dumps({"row": len(rows) - 1, "hash": rows[-1]["hash"]}).encode()
    scores = (json.dumps(card.scores, indent=1, ensure_ascii=False) + "\n").encode()
    step = card.body["weights"]["step"]
    for name, content, listed in (("ledger.jsonl", ledger_lines(rows), files), ("ledger.head", head, files),
                                  ("config.json", json.dumps(card.body["config"], indent=1).encode(), files),
                                  ("scores.json", scores, stages["evaluate"]["files"])):
        if listed[name]["xxh3_128"] != xxhash.xxh3_128(content).hexdigest():
            yield f"{name} is not the file that its stage sealed"
    sealed = files.get(f"checkpoints/step-{step:08d}/state.pt")
    if sealed is None or sealed["xxh3_128"] != card.body["weights"]["xxh3_128"]:
        yield f"the weights are not those that the pretrain stage sealed at step {step}"
    if not re.fullmatch("[0-9a-f]{64}", card.body["data"]["tokenizer_sha256"]):
        yield "what it names as the tokenizer's is no SHA-256"


def check_dates(card: Card) -> Iterator[str]:
    """Cards are written after their runs, and not tomorrow."""
    made, last = datetime.fromisoformat(card.body["made"]), datetime.fromisoformat(card.ledger.rows[-1]["at"])
    if made < last - timedelta(seconds=2):
        yield "the card was written before its run ended"
    if made > datetime.now(timezone.utc) + timedelta(days=1):
        yield "the card was written in the future"


def code_reason(card: Card, ours: dict[str, str]) -> Optional[str]:
    """How the card's code differs from the code here, in words."""
    from cram.insight.league.source import edited

    changed = edited(card.body["code"]["files"], ours)
    if not changed:
        return None
    shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    return f"made with other code than the league's: {shown}"


# What a check may stumble over in a card that is signed but not made by cram submit.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, OverflowError, RuntimeError)
CHECKS: tuple[Callable[[Card], Iterator[str]], ...] = (
    check_identity, check_custody, check_dates, check_sessions, check_account, check_clock, check_work, check_teacher,
    check_rows, check_whole, check_formula, check_schedule, check_speed, check_end, check_text, check_score, check_curve)
