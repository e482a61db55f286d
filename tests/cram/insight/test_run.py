"""A run read from disk, and where a curve reaches a loss."""

import math

import pytest
from hypothesis import given, strategies as st

from cram.errors import CramError
from cram.insight.run import crossing, open_run
from cram.train import pretrain
from tests.cram.running import restore_torch  # noqa: F401


def test_a_run_is_read_whole(tiny, small_config, tmp_path):
    config = small_config("train.validate_every=0.25", "name=small")
    (tmp_path / "small").mkdir()
    pretrain(config, tiny["data"], tiny["tokenizer"], tmp_path / "small" / "pretrain", "run", lambda line: None)
    run = open_run(tmp_path / "small")
    assert (run.name, run.config, run.finished, run.scores) == ("small", config, True, None)
    assert run.plan["parameters"] > 0
    points = run.curve()
    assert [point.step for point in points] == [point.spent for point in points] and len(points) == 3
    assert [point.seconds for point in points] == sorted(point.seconds for point in points)
    assert open_run(tmp_path / "small" / "pretrain").ledger == run.ledger
    with pytest.raises(CramError, match="not evaluated yet"):
        run.score
    with pytest.raises(CramError, match="pretrain/config.json is missing"):
        open_run(tmp_path)


def test_crossing_lies_on_the_curve():
    curve = [(1.0, 4.0), (10.0, 3.0), (100.0, 2.0)]
    assert crossing(curve, 3.0) == pytest.approx(10.0)
    assert crossing(curve, 2.5) == pytest.approx(10 * math.sqrt(10))
    assert crossing(curve, 5.0) == 1.0
    assert crossing(curve, 1.9) is None
    assert crossing([], 1.0) is None


@given(st.floats(0.05, 2.0), st.floats(0.1, 5.0), st.floats(1.5, 900.0))
def test_crossing_of_a_curve_straight_in_the_logarithm_is_exact(slope, start, spent):
    curve = [(x, start - slope * math.log(x)) for x in (1.0, 3.0, 20.0, 1000.0)]
    assert crossing(curve, start - slope * math.log(spent)) == pytest.approx(spent, rel=1e-6)
