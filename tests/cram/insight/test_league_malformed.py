"""Cards that are damaged, edited without care, or filled with nonsense: told at once, never a traceback."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cram.errors import CramError
from cram.insight.league.card import sign
from cram.insight.league.pack import pack
from cram.insight.league.page import league_blocks, league_lines
from cram.insight.league.standings import judge
from tests.cram.insight.league_runs import Forgery, body, reasons

CARELESS = {
    "score edited": (lambda card: card["scores"]["held_out"].update(loss=0.1), False, "was edited"),
    "score edited and signed": (lambda card: card["scores"]["held_out"].update(loss=0.1), True, "not the file that its stage"),
    "ledger rows edited": (lambda card: card["ledger"].update(packed=pack([])), True, "do not lead to the head|not a whole"),
    "head edited": (lambda card: card["ledger"].update(head="0" * 64), True, "do not lead to the head"),
    "ledger of another file": (lambda card: card["ledger"].update(sha256="0" * 64), True, "not those of the file"),
    "held-out hash edited": (lambda card: card["stages"]["data"]["files"]["validation.jsonl"].update(xxh3_128="0" * 32), True,
                             "do not have the digest"),
    "another run's id": (lambda card: card.update(run_id="feedc0ffee12"), True, "run's id is"),
    "another tokenizer": (lambda card: card["stages"]["tokenizer"].update(digest="0" * 64), True, "on another tokenizer"),
    "of the future": (lambda card: card.update(cram_card=2), True, "update cram"),
    "not a number": (lambda card: card["scores"]["held_out"].update(loss=math.nan), None, "not JSON"),
    "field missing": (lambda card: card.pop("weights"), True, "missing or of the wrong kind"),
    "field of another kind": (lambda card: card["scores"].update(held_out=3), True, "missing or of the wrong kind"),
    "no ledger": (lambda card: card.pop("ledger"), True, "not a whole card"),
    "an absurd model": (lambda card: card["config"]["model"].update(layers=10**9), True, "no model of a card is as large"),
    "a line of standings in a name": (lambda card: card.update(author="Eve\n   1  0.0001  Eve"), True, "cannot be printed"),
    "a terminal's command in a name": (lambda card: card.update(name="\x1b[2J"), True, "cannot be printed"),
    "no name": (lambda card: card.update(name=" "), True, "is empty"),
    "no card": (lambda card: card.pop("cram_card"), True, "not a card"),
    "a tokenizer in a list": (lambda card: card["data"].update(tokenizer_sha256=[1]), True, "of the wrong kind"),
    "a tokenizer of another kind": (lambda card: card["data"].update(tokenizer_sha256="x"), True, "no SHA-256"),
}


@pytest.mark.parametrize("what", CARELESS)
def test_a_careless_forger_is_told_at_once(what, tmp_path):
    change, signed, reason = CARELESS[what]
    card, path = Forgery("clock").body, tmp_path / "careless.card.json"
    card = sign(card)
    change(card)
    path.write_text(json.dumps(sign(card) if signed else card))
    found = reasons(path)
    assert any(part in found for part in reason.split("|")), found


def test_a_card_cut_off_is_no_card(tmp_path):
    path = tmp_path / "half.card.json"
    path.write_bytes(json.dumps(sign(body("clock"))).encode()[:5000])
    assert "not JSON" in reasons(path)
    assert "cannot be read" in reasons(tmp_path / "none.card.json")


def leaves(value, path=()):
    """Paths to everything inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_is_put_into_a_card_the_league_goes_on(tmp_path, data):
    """Also deep in the rows; signed again. The card is accepted or rejected with a reason, and the page is made."""
    forged = Forgery("steps")
    forged.body["rows"], forged.body["observed"] = forged.rows, forged.metrics
    path = data.draw(st.sampled_from(sorted(leaves({name: value for name, value in forged.body.items()
                                                    if name not in ("code", "stages", "metrics", "ledger")}), key=str)))
    place = forged.body
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(st.sampled_from([None, -1, 1e300, "x", "", {"a": 1}, [1], True, 0]))
    forged.rows, forged.metrics = forged.body.pop("rows", None), forged.body.pop("observed", None)
    try:
        forged.write(tmp_path / "odd.card.json")
    except (TypeError, AttributeError, KeyError, ValueError, IndexError, CramError):
        return  # not even the forger could write that
    entries = judge([tmp_path / "odd.card.json", forged.honest("other")], say=lambda line: None)
    assert league_blocks(entries, "cram league") and league_lines(entries)
    assert all(isinstance(reason, str) and reason for entry in entries for reason in entry.reasons)
