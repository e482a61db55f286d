"""The attention kernels, run by Triton's interpreter, against float64: random documents, tiles and precisions."""

import dataclasses

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cram._kernels.launch import Launch
from tests.interpreter.attention_check import check
from tests.kernels.attention_cases import cases

FUZZ = settings(deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck))


@settings(FUZZ, max_examples=160)
@given(case=cases)
def test_random_documents(case):
    check(case)


@settings(FUZZ, max_examples=30)
@given(case=cases, tiles=st.sampled_from([(16, 32), (32, 16), (32, 32), (64, 16), (16, 64)]))
def test_tiles_of_other_shapes(case, tiles):
    check(case, **dict.fromkeys(("forward", "dq", "dkv"), Launch(*tiles, 4, 1)))


@settings(FUZZ, max_examples=30)
@given(case=cases)
def test_bfloat16(case):
    check(dataclasses.replace(case, dtype=torch.bfloat16))
