"""Shapes of steps: plateaus that begin where they are told to, and end at the model's own."""

import pytest

from cram.config import load
from cram.shapes import shape_at


def shapes(*overrides, unit=1024):
    config = load("demo", ["train.sequence_length=128", "model.layers=4", "train.batch_tokens=4096", *overrides])
    return [shape_at(p, config, unit) for p in (0.0, 0.4999, 0.5, 0.999)]


def test_without_schedules_every_step_has_the_shape_of_the_configuration():
    shape, *rest = shapes("objective.mask_rate=0.3", "model.rope_base=5000")
    assert rest == [shape] * 3
    assert (shape.tokens, shape.row, shape.mask_rate, shape.window, shape.layers, shape.rope_base) == (4096, 128, 0.3, None, 4, 5000)


def test_plateaus_begin_at_their_progress():
    early, before, after, late = shapes("train.sequence_schedule=[[0, 32], [0.5, 128]]", "train.layer_schedule=[[0, 2], [0.5, 4]]",
                                        "train.window_schedule=[[0, 16], [0.5, 64]]", "model.window=64",
                                        "model.rope_base_end=40000")
    assert early == before and after == late
    assert (before.row, before.layers, before.window, before.rope_base) == (32, 2, 16, 10000)
    assert (after.row, after.layers, after.window, after.rope_base) == (128, 4, 64, 40000)


def test_a_window_as_wide_as_the_row_is_none():
    early, *_, late = shapes("train.window_schedule=[[0, 16], [0.5, 128]]")
    assert early.window == 16 and late.window is None
    assert shapes("model.window=128")[0].window is None and shapes("model.window=127")[0].window == 127


def test_only_the_number_of_tokens_leaves_losses_comparable():
    one = shapes()[0]
    ramped = shapes("train.batch_ramp=1.0", "train.batch_start_tokens=1024")[0]
    assert ramped.tokens == 1024 and not ramped.changes_the_loss(one)
    assert shapes("objective.mask_rate=0.2")[0].changes_the_loss(one)
    assert shapes("model.window=3")[0].changes_the_loss(one)


@pytest.mark.parametrize("override, expected", [
    ("train.sequence_schedule=[[0, 32], [0.5, 64]]", "ends at 64, but train.sequence_length is 128"),
    ("train.sequence_schedule=[[0, 48], [0.5, 128]]", "divide train.sequence_length 128"),
    ("train.sequence_schedule=[[0.1, 32], [0.5, 128]]", "begin with 0"),
    ("train.sequence_schedule=[[0, 32], [0.5, 64], [0.4, 128]]", "begin with 0, rise"),
    ("train.sequence_schedule=[[0, 64], [1, 128]]", "stay below 1"),
    ("train.sequence_schedule=[0, 128]", r"pairs, such as \[\[0, 64\], \[0.5, 128\]\]"),
    ("train.layer_schedule=[[0, 2], [0.5, 2.5], [0.7, 4]]", "whole numbers"),
    ("train.layer_schedule=[[0, 2], [0.5, 1], [0.7, 4]]", "rise"),
    ("train.window_schedule=[[0, 2], [0.5, 100]]", "but train.sequence_length is 128")])
def test_plateaus_that_cannot_be_are_refused(override, expected):
    from cram.errors import CramError
    with pytest.raises(CramError, match=expected):
        shapes(override)
