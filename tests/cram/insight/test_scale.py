"""Scaling: planted laws are found again, held-out points foreseen, sizes recommended; the command on a grid of seconds."""

import functools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from cram.budget import Budget
from cram.config import load
from cram.errors import CramError
from cram.insight.scale import advice as advising, grid
from cram.insight.scale.advice import advise, errors, fit_rows, iso_flops
from cram.insight.scale.law import Fit, Law, _log_loss, fit, parabola
from tests.cram.running import restore_torch  # noqa: F401

LAW = Law(2.0, 60.0, 300.0, 0.4, 0.42)
SIZES, TOKENS = (1.6e4, 5.3e4, 2.2e5, 4.3e5), (1.25e5, 2.5e5, 5e5, 1e6)


def points(law=LAW, noise=0.0, sizes=SIZES, tokens=TOKENS, seed=0):
    n, d = map(np.ravel, np.meshgrid(sizes, tokens))
    return n, d, law.loss(n, d) * np.exp(noise * np.random.default_rng(seed).normal(size=len(n)))


@pytest.fixture(scope="module")
def candidates():
    return grid.family(load("demo"))


@pytest.fixture(scope="module")
def known():
    return fit_rows(made_rows())


def made_rows(law=LAW, flops_per_token=6.0, noise=0.0, tokens=TOKENS):
    return [{"size": f"s{n:.0f}", "n": n, "tokens": d, "flops": flops_per_token * n * d, "loss": loss,
             "tokens_per_second": 1e9 / n,
             "held_out": False} for n, d, loss in zip(*points(law, noise, tokens=tokens))]


# ---- the law


@pytest.mark.parametrize("law", [LAW, Law(1.69, 406.4, 410.7, 0.34, 0.28), Law(3.0, 5.0, 2e4, 0.2, 0.8),
                                 Law(1.5, 30.0, 2000.0, 0.5, 0.6, 0.5)])
def test_a_planted_law_is_found_exactly_without_noise(law):
    found = fit(*points(law), draws=2).law
    assert vars(found) == pytest.approx(vars(law), rel=0.01)


def test_a_planted_law_is_found_in_noise():
    """Its exponents, when they are those of Hoffmann et al.; a gamma is not made up."""
    found = fit(*points(noise=0.002), draws=0).law
    assert found.alpha == pytest.approx(0.4, abs=0.08) and found.beta == pytest.approx(0.42, abs=0.08)
    assert found.gamma == 1.0 and found.E == pytest.approx(2.0, abs=0.2)


def test_a_small_model_that_data_no_longer_helps_needs_gamma():
    """Planted with gamma = 0.5, the largest budget is foreseen at every size; by a sum of two terms it would not be."""
    planted = Law(1.7, 530.0, 18000.0, 0.51, 0.61, 0.47)
    known = fit(*points(planted, noise=0.001), draws=0)
    assert known.law.gamma < 0.8
    for n in SIZES:
        assert float(known.law.loss(n, 4e6)) == pytest.approx(planted.loss(n, 4e6), rel=0.01)


def test_a_wild_run_hardly_moves_a_huber_fit():
    n, d, loss = points(noise=0.001)
    loss[5] *= 1.2
    found = fit(n, d, loss, draws=0)
    good = np.arange(len(n)) != 5
    assert np.allclose(found.law.loss(n[good], d[good]), loss[good], rtol=0.01)


def test_held_out_losses_are_foreseen_from_smaller_budgets():
    known = fit(*points(noise=0.002), draws=20)
    for n in SIZES:
        loss, low, high = known.predict(n, 4e6)
        assert loss == pytest.approx(LAW.loss(n, 4e6), rel=0.01) and low < loss < high


@pytest.mark.slow
def test_intervals_cover_what_they_promise():
    """95% intervals of a prediction hold the truth in most of twenty noisy grids (24 draws each, so not sharply)."""
    hits = 0
    for seed in range(20):
        known = fit(*points(noise=0.005, seed=seed), draws=24, seed=seed)
        _, low, high = known.predict(2.2e5, 2e6)
        hits += low <= LAW.loss(2.2e5, 2e6) <= high
    assert 15 <= hits


@given(st.lists(st.floats(-2, 2), min_size=5, max_size=5), st.floats(0.1, 2))
@settings(deadline=None, max_examples=40)
def test_the_gradient_is_that_of_the_law(theta, gamma):
    n, d, _ = points()
    theta, x, y = np.array([*theta, gamma]), np.log(n), np.log(d)
    gradient = _log_loss(theta, x, y)[1]
    for part in range(6):
        step = np.zeros(6)
        step[part] = 1e-6
        up, down = (_log_loss(theta + sign * step, x, y)[0] for sign in (1, -1))
        assert np.allclose(gradient[part], (up - down) / 2e-6, rtol=1e-3, atol=1e-7)


def test_too_few_points_are_refused():
    with pytest.raises(CramError, match="do not determine the law's five parameters"):
        fit(*points(sizes=SIZES[:2]))
    with pytest.raises(CramError, match="at least three --sizes"):
        fit(*points(tokens=TOKENS[:2]))


@given(st.floats(3, 12), st.floats(0.01, 2), st.floats(1, 4))
@settings(deadline=None)
def test_a_parabola_finds_its_minimum_or_says_that_it_lies_outside(least, curvature, floor):
    x = np.linspace(5, 9, 5)
    found = parabola(x, floor + curvature * (x - least) ** 2)[1]
    if 5.01 < least < 8.99:
        assert found == pytest.approx(least, abs=1e-3)
    elif not 4.99 < least < 9.01:
        assert found is None
    assert parabola(x, floor - curvature * (x - least) ** 2)[1] is None


# ---- advice


def test_curves_at_equal_flops_agree_with_the_law():
    rows = made_rows(tokens=(2e4, 1e5, 5e5, 2e6, 1e7))
    known = fit_rows(rows)
    curves = iso_flops(rows, known)
    assert len(curves) == 3
    for curve in curves:
        best = min(np.geomspace(SIZES[0], SIZES[-1], 2000), key=lambda n: LAW.loss(n, curve.flops / 6 / n))
        assert curve.best_by_law == pytest.approx(best, rel=0.05)
    assert not iso_flops([row for row in rows if (row["tokens"] > 1e6) == (row["n"] > 1e5)], known)  # no range in common


def test_the_recommended_size_is_the_best_of_its_family(candidates, known):
    rows = made_rows()
    advice = advise(candidates, Budget.parse("1e13 flops"), known, rows)
    assert [size.name for size in candidates][:4] == ["1x32", "1x64", "2x96", "2x128"]
    assert advice.loss == min(known.law.loss(size.inner, 1e13 / size.flops_per_token) for size in candidates)
    assert advice.n_low <= advice.size.inner <= advice.n_high and advice.low <= advice.loss <= advice.high
    assert advice.tokens == pytest.approx(1e13 / advice.size.flops_per_token)
    bigger = advise(candidates, Budget.parse("1e15 flops"), known, rows)
    assert bigger.size.inner > advice.size.inner and "extrapolated" in bigger.remarks[0]


def test_time_is_turned_into_flops_at_the_speed_of_the_runs(candidates, known):
    rows = made_rows()  # every size computes 6e9 FLOPs a second
    by_time, by_flops = (advise(candidates, Budget.parse(text), known, rows) for text in ("1000s", "6e12 flops"))
    assert by_time.size == by_flops.size and by_time.tokens == pytest.approx(by_flops.tokens)
    assert by_time.seconds == pytest.approx(1000) and by_flops.seconds == pytest.approx(1000)


def test_text_that_would_be_read_often_is_said(candidates, known):
    rows = made_rows()
    advice = advise(candidates, Budget.parse("1e15 flops"), known, rows, text_tokens=1000)
    assert any("reads this text" in remark for remark in advice.remarks)
    with pytest.raises(CramError, match="has no best size"):
        advise(candidates, Budget.parse("1e9 tokens"), known, rows)


def test_errors_are_relative_to_what_was_measured():
    known = Fit(LAW, (LAW, LAW), ())
    row = {"size": "s", "n": 1e5, "tokens": 1e6, "loss": float(LAW.loss(1e5, 1e6)) / 1.02}
    assert errors(known, [row])[0]["error"] == pytest.approx(0.02)


# ---- the grid


def test_sizes_keep_the_proportions_of_the_recipe():
    config = load("cramming2022")
    assert grid.proportions(config, 8, 384) == ("model.layers=8", "model.width=384", "model.heads=6", "model.mlp_width=768")
    grouped = load("demo", ["model.kv_heads=2"])
    assert grid.proportions(grouped, 1, 64)[2:] == ("model.heads=2", "model.kv_heads=1")
    for name in ("1x16", "2x96", "3x160", "5x320"):
        load("demo", grid.make_size(name, load("demo")).settings)  # none is refused


def test_cells_are_exact_and_the_largest_budget_is_held_out():
    config = load("demo")
    cells = grid.make_cells(config, grid.SIZES, grid.BUDGETS)
    assert len(cells) == 16 and {cell.budget.text for cell in cells if cell.held_out} == {grid.BUDGETS[-1]}
    for cell in cells:
        assert 0 <= cell.budget.amount - cell.tokens < config.train.batch_tokens
        assert cell.flops == pytest.approx(cell.tokens * cell.size.flops_per_token)
    by_flops = grid.make_cells(config, grid.SIZES, ["2e11 flops", "4e11 flops", "8e11 flops", "16e11 flops"])
    assert all(math.isclose(cell.flops, cell.budget.amount, rel_tol=0.12) for cell in by_flops)


def test_what_belongs_to_a_recipe():
    one, other = grid.recipe(load("demo")), grid.recipe(load("demo", ["model.width=64", "model.heads=2", "budget=9h", "out=x",
                                                                      "seed=4"]))
    assert one == other != grid.recipe(load("demo", ["optimizer.lr=0.01"]))


@pytest.mark.parametrize("arguments, told", [
    (["--sizes", "small"], "write <layers>x<width>"), (["--sizes", "1x33", "2x64", "2x96"], "even number"),
    (["--sizes", "1x32", "2x64"], "a fit needs three --sizes"),
    (["--budgets", "1e6 tokens", "2e6 tokens"], "a fit needs three"),
    (["--budgets", "1m", "2m", "3m", "4m"], "time would let the machine"),
    (["train.layer_schedule=[[0, 1], [0.5, 2]]"], "layer_schedule"),
    (["--budgets", "1e3 tokens", "2e3 tokens", "3e3 tokens", "9e3 tokens"], "which teach nothing"),
    (["--recommend", "1e9 tokens"], "has no best size"), (["--render", "nowhere.json"], "not a scaling study"),
    (["demo", "--render", "x.json"], "takes a record and nothing else")])
def test_refusals_come_before_any_run(cram, arguments, told):
    found = cram("scale", *arguments, "--dry-run")
    assert found.code == 2 and told in found.err and found.err.count("\n") == 1


@pytest.mark.slow
def test_a_study_from_runs_to_page(cram, tmp_path, monkeypatch):
    """The grid of ``--tiny``, smaller still, with fewer bootstrap draws: runs, record, page; once more it finds everything
    there."""
    monkeypatch.setattr(advising, "fit", functools.partial(fit, draws=10))
    asked = ["scale", "--tiny", "--budgets", "4e3 tokens", "8e3 tokens", "12e3 tokens", "16e3 tokens",
             "tokenizer.vocab_size=512",
             "data.workers=1", "train.threads=1", f"out={tmp_path}/runs", "--out", tmp_path / "out"]
    first = cram(*asked)
    assert first.code == 0 and "12 runs (3 sizes, 4 budgets)" in first.out and first.out.count("held out") == 3, first.err
    record = json.loads((tmp_path / "out" / "demo-tiny.json").read_text())
    assert len(record["rows"]) == 12 and sum(row["held_out"] for row in record["rows"]) == 3
    page = (tmp_path / "out" / "demo-tiny.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "") and "<script" not in page
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".json"}
    assert cram("scale", "--render", tmp_path / "out" / "demo-tiny.json").code == 0
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix != ".json"}
    assert cram(*asked).code == 0
    assert json.loads((tmp_path / "out" / "demo-tiny.json").read_text())["rows"] == record["rows"]


@pytest.mark.parametrize("damage", [lambda record: record.pop("held_out"), lambda record: record["rows"][0].pop("flops"),
                                    lambda record: record["fit"].update(law=[1.0, 2.0])], ids=["held_out", "row", "law"])
def test_a_damaged_record_is_refused_in_one_line(cram, root, tmp_path, damage):
    record = json.loads((root / "reports" / "scaling" / "demo_gpt.json").read_text())
    damage(record)
    (tmp_path / "law.json").write_text(json.dumps(record))
    found = cram("scale", "--render", tmp_path / "law.json")
    assert found.code == 2 and "law.json: " in found.err and "cram scale" in found.err and found.err.count("\n") == 1
