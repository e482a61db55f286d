"""Attention in tiles, as the lesson on the kernel computes it, against PyTorch's own and against counting by hand."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings, strategies as st

from cram.insight.lesson import tiles

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def document_of(lengths):
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from([16, 32]), st.booleans())
def test_tiles_give_what_attention_gives(lengths, tile, causal):
    q, k, v, documents, scale = tiles.problem(lengths)
    sees = documents.sees(len(q), causal=causal, window=None, device="cpu")
    found, _ = tiles.attend_in_tiles(q, k, v, sees, scale, tile)
    same = document_of(lengths)[:, None] == document_of(lengths)
    mask = same.tril() if causal else same
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(x.double().transpose(0, 1) for x in (q, k, v)), attn_mask=mask, scale=scale).transpose(0, 1)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(LENGTHS)
def test_pairs_of_tiles_are_those_with_a_pair_that_sees(lengths):
    document = document_of(lengths)
    blocks = document.split(16)
    wanted = sum(bool((a[:, None] == b).any()) for a in blocks for b in blocks)
    assert tiles.tile_pairs(lengths, 16) == (wanted, len(blocks) ** 2)


def test_without_triton_it_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(tiles.importlib.util, "find_spec", lambda name: None)
    tiles.show([20, 12], 16, said.append)
    assert "skipped, triton is not installed here" in said[-1] and "triton" not in " ".join(said[:-1])


def test_the_exercise_on_tiles(cram):
    assert cram("lesson", "4", "--check", "3", "36").code == 0     # on paper: 9 + 4 + 25, less two counted twice
    assert cram("lesson", "4", "--check", "3", "64").code == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernel_interpreted_is_as_exact():
    said = []
    tiles.show([40, 24], 16, said.append)
    assert said[-1] == "our kernel in Triton's interpreter: error below 1e-5"
