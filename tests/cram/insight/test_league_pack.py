"""Packed rows come back as they were, to the last bit of JSON; what is no packed text is refused."""

import json

import pytest
from hypothesis import given, settings, strategies as st

from cram.errors import CramError
from cram.insight.league.pack import pack, unpack

TEXT = st.text("ab~\u00e9\"\\", max_size=4)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2**60, 2**60), TEXT,
                   st.floats(allow_nan=False, allow_infinity=False), st.dictionaries(TEXT, st.integers(), max_size=2))
ROWS = st.lists(st.dictionaries(st.sampled_from(["step", "loss", "kind", "at"]), VALUES, max_size=4), max_size=12)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_rows_come_back_exactly(rows):
    assert json.dumps(unpack(pack(rows)), sort_keys=True) == json.dumps(rows, sort_keys=True)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**9).map(lambda micro: micro / 1e6), st.integers(0, 10**12)), max_size=50))
def test_counters_come_back_exactly_and_as_what_they_were(pairs):
    rows = [{"seconds": seconds, "tokens": tokens} for seconds, tokens in pairs]
    assert json.dumps(unpack(pack(rows))) == json.dumps(rows)


def test_a_long_ledger_is_small():
    rows = [{"seconds": round(2.5 * i + i % 7 / 1e3, 6), "tokens": 32768 * i, "kind": "heartbeat"} for i in range(10_000)]
    assert len(pack(rows)) < 0.05 * len(json.dumps(rows))


@pytest.mark.parametrize("text", ["", "no", "x" * 500, pack([{"a": 1}])[:-8], pack([{"a": 1}] * 50)[5:]])
def test_what_is_not_packed_is_refused(text):
    with pytest.raises(CramError, match="damaged"):
        unpack(text)
