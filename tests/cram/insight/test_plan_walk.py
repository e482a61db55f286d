"""The walk over a budget's steps, against the loop's own rules taken one step at a time."""

import math

import pytest
from hypothesis import given, settings, strategies as st

from cram import schedule
from cram.config import load
from cram.device import choose_device
from cram.insight.plan.walk import Outline, outline_of, walk
from cram.errors import CramError
from cram.learner import Learner
from cram.objective import step_kinds
from cram.parallel import World
from cram.shapes import shape_at
from cram.audit import read_ledger
from cram.train import pretrain
from tests.cram.running import restore_torch  # noqa: F401

SMALL = ("model.width=32", "model.heads=2", "tokenizer.vocab_size=300", "train.batch_tokens=1024",
         "train.micro_batch_tokens=256")
SCHEDULES = {
    "plain": (),
    "ramp": ("train.batch_ramp=0.4", "train.batch_start_tokens=256"),
    "rows": ("train.sequence_schedule=[[0, 32], [0.3, 64], [0.7, 128]]",),
    "windows": ("train.window_schedule=[[0, 16], [0.5, 128]]",),
    "layers": ("train.layer_schedule=[[0, 1], [0.45, 2]]",),
    "masks": ("objective.mask_rate_end=0.1",),
    "all": ("train.batch_ramp=0.4", "train.batch_start_tokens=256", "train.layer_schedule=[[0, 1], [0.45, 2]]",
            "objective.mask_rate_end=0.1", "train.window_schedule=[[0, 16], [0.5, 128]]"),
    "hybrid": ("objective.type=hybrid", "objective.causal_share=0.3")}


def make(name):
    return load("demo", [*SMALL, *SCHEDULES[name]])


def one_by_one(config, outline, micro, amount, cost, spent=0.0, reserve=0.0):
    """As ``cram.train`` decides: shape by the progress of the step before, admitted by ``schedule.progress``."""
    progress, steps = 0.0, []
    while progress < 1.0:
        shape = shape_at(progress, config, micro)
        flops = outline.flops(shape, step_kinds(config.objective, len(steps), shape.tokens // micro))
        each = cost(shape, flops)
        following = schedule.progress(amount, spent, each, reserve)
        if following is None:
            break
        progress, spent = max(progress, following), spent + each
        steps.append((shape, flops))
    return steps


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(SCHEDULES)), st.sampled_from(["steps", "tokens", "flops", "time"]), st.integers(1, 700))
def test_leaps_land_where_single_steps_do(name, kind, size):
    config = make(name)
    outline = Outline(config)
    unit = {"steps": lambda shape, flops: 1, "tokens": lambda shape, flops: shape.tokens, "flops": lambda shape, flops: flops,
            "time": lambda shape, flops: 1e-3 + flops * 1e-11}[kind]
    first = shape_at(0.0, config, 256)
    whole = size + 1 / math.pi * (kind == "time")    # seconds are no whole numbers: no switch falls on a step to the last bit
    amount = whole * unit(first, outline.flops(first, step_kinds(config.objective, 0, first.tokens // 256)))
    start, reserve = (0.1 * amount, 0.05 * amount) if kind == "time" else (0.0, 0.0)
    legs = walk(config, outline, 256, amount, unit, start, reserve)
    steps = one_by_one(config, outline, 256, amount, unit, start, reserve)
    assert sum(leg.steps for leg in legs) == len(steps)
    assert sum(leg.tokens for leg in legs) == sum(shape.tokens for shape, _ in steps)
    assert sum(leg.flops for leg in legs) == pytest.approx(sum(flops for _, flops in steps), rel=1e-9)
    assert [shape for leg in legs for shape in [leg.shape] * leg.steps] == [shape for shape, _ in steps]


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_a_step_costs_what_the_learner_counts(name):
    config = make(name)
    learner, outline = Learner(config, choose_device(config.train), World(kind="cpu"), 300), Outline(config)
    assert outline.parameters == learner.model.parameter_count()
    for p in (0.0, 0.2, 0.5, 0.9):
        shape = shape_at(p, config, 256)
        kinds = step_kinds(config.objective, 3, shape.tokens // 256)
        assert outline.flops(shape, kinds) == learner.flops(shape, kinds)


@pytest.mark.parametrize("name, budget", [("plain", "9 steps"), ("all", "12e3 tokens"), ("ramp", "2e9 flops"),
                                          ("hybrid", "7 steps")])
def test_a_real_run_takes_exactly_these_steps(name, budget, tiny, small_config, tmp_path):
    config = small_config(*[text for text in SMALL if text.startswith("train")], *SCHEDULES[name], "train.sequence_length=128",
                          budget=budget)
    pretrain(config, tiny["data"], tiny["tokenizer"], tmp_path / "run", "run", lambda line: None)
    ledger = read_ledger(tmp_path / "run" / "ledger.jsonl")
    unit = {"steps": lambda shape, flops: 1, "tokens": lambda shape, flops: shape.tokens, "flops": lambda shape, flops: flops}
    legs = walk(config, Outline(config, 300), 256, ledger.amount, unit[ledger.kind])
    assert sum(leg.steps for leg in legs) == ledger.steps and sum(leg.tokens for leg in legs) == ledger.tokens
    assert sum(leg.flops for leg in legs) == pytest.approx(ledger.flops, rel=1e-12)


def test_a_million_steps_are_walked_in_an_instant():
    config = make("masks")
    legs = walk(config, Outline(config), 1024, 1e9, lambda shape, flops: 10.0)
    assert sum(leg.steps for leg in legs) == 10**8 and len(legs) == 4
    assert all(math.isclose(leg.steps, 0.25e8, rel_tol=1e-5) for leg in legs)


def test_too_little_for_a_step_is_no_leg():
    config = make("plain")
    assert walk(config, Outline(config), 256, 0.5, lambda shape, flops: 1.0) == []


def test_inner_parameters_leave_the_tables_out():
    config = load("demo_gpt", ["model.value_embeddings=true"])
    model = Outline(config).model
    inner = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks") and "table" not in name)
    assert Outline(config).inner_parameters == inner


def test_a_teacher_that_is_not_there_is_refused(tmp_path):
    config = make("plain")
    config.distill.teacher = str(tmp_path)
    with pytest.raises(CramError, match="no .*config.json"):
        outline_of(config)
