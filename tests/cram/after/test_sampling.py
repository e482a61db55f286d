"""Sampling against the logits processors of transformers: the same tokens kept, with the same probabilities."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cram.after.sampling import Sampling, draw
from cram.errors import CramError


def reference(logits_BV, sampling):
    from transformers.generation import logits_process as hf

    warpers = [hf.TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k is not None:
        warpers.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1:
        warpers.append(hf.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p is not None:
        warpers.append(hf.MinPLogitsWarper(sampling.min_p))
    for warp in warpers:
        logits_BV = warp(None, logits_BV)
    return logits_BV.softmax(1)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1000), spread=st.sampled_from([0.1, 1.0, 6.0]), temperature=st.sampled_from([0.3, 0.8, 1.0, 2.5]),
       top_k=st.sampled_from([None, 1, 3, 40, 1000]), top_p=st.sampled_from([None, 0.05, 0.5, 0.93, 1.0]),
       min_p=st.sampled_from([None, 0.0, 0.02, 0.4, 1.0]))
def test_kept_tokens_and_probabilities_are_those_of_transformers(seed, spread, temperature, top_k, top_p, min_p):
    logits_BV = spread * torch.randn(3, 50, generator=torch.Generator().manual_seed(seed))
    logits_BV[:, 7] = -torch.inf
    sampling = Sampling(temperature, top_k, top_p, min_p)
    found, wanted = sampling.probabilities(logits_BV), reference(logits_BV.clone(), sampling)
    assert torch.equal(found > 0, wanted > 0)
    assert torch.allclose(found, wanted, atol=1e-6) and not found[:, 7].any()


def test_each_limit_alone_by_hand():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for sampling, kept in [(Sampling(top_k=2), [1, 1, 0, 0]), (Sampling(top_p=0.4), [1, 0, 0, 0]),
                           (Sampling(top_p=0.6), [1, 1, 0, 0]), (Sampling(top_p=0.9), [1, 1, 1, 0]),
                           (Sampling(min_p=0.25), [1, 1, 1, 0]), (Sampling(min_p=0.5), [1, 1, 0, 0]),
                           (Sampling(temperature=0), [1, 0, 0, 0])]:
        assert (sampling.probabilities(logits) > 0).int().tolist() == [kept], sampling


def test_tokens_are_drawn_as_often_as_they_are_probable():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = draw(probabilities.expand(1000, -1), uniform)
    assert drawn.bincount(minlength=6).tolist() == [0, 500, 0, 300, 200, 0]
    edge = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(probabilities.expand(2, -1), edge).tolist() == [1, 4]  # never a token of probability 0


@pytest.mark.parametrize("setting", [{"temperature": -1}, {"temperature": float("nan")}, {"temperature": float("inf")},
                                     {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 2}])
def test_values_out_of_range_are_refused(setting):
    [[name, value]] = setting.items()
    with pytest.raises(CramError, match=f"{name.replace('_', '-')} {value}: give"):
        Sampling(**setting)
