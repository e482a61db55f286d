"""The intervals that say who sees whom, against the rule written out pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cram._kernels.attention_backends import attention_mask, cumulative_lengths
from cram.ops import Documents


def by_pairs(lengths, causal, window):
    """bool [N, N]: does query i see key j?"""
    document = [number for number, length in enumerate(lengths) for _ in range(length)]
    n = len(document)
    return torch.tensor([[document[i] == document[j] and (not causal or j <= i) and (window is None or abs(i - j) <= window)
                          for j in range(n)] for i in range(n)], dtype=torch.bool).view(n, n)


packs = st.lists(st.sampled_from([0, 1, 2, 3, 8, 17]), min_size=1, max_size=5).filter(any)


@settings(max_examples=60, deadline=None)
@given(lengths=packs, causal=st.booleans(), window=st.sampled_from([None, 0, 1, 4, 100]))
def test_intervals_equal_the_pairwise_rule(lengths, causal, window):
    documents, n = Documents.from_lengths(lengths), sum(lengths)
    seen, index = by_pairs(lengths, causal, window), torch.arange(n)
    first, last = documents.sees(n, causal=causal, window=window, device="cpu")
    assert torch.equal((index >= first[:, None]) & (index < last[:, None]), seen)
    first, last = documents.seen_by(n, causal=causal, window=window, device="cpu")
    assert torch.equal((index >= first[:, None]) & (index < last[:, None]), seen.T)
    mask = attention_mask(documents, n, causal=causal, window=window, device="cpu")
    assert torch.equal(mask[0, 0], seen)


def test_padding_sees_nothing_and_is_seen_by_nothing():
    start = torch.tensor([0, 0, 2, 3], dtype=torch.int32)
    end = torch.tensor([2, 2, 2, 3], dtype=torch.int32)
    for causal in (False, True):
        documents = Documents(start, end, 4)
        for first, last in (documents.sees(4, causal=causal, window=None, device="cpu"),
                            documents.seen_by(4, causal=causal, window=None, device="cpu")):
            assert ((last <= first) == torch.tensor([False, False, True, True])).all()


def test_from_lengths_skips_empty_documents():
    documents = Documents.from_lengths([2, 0, 1, 0])
    assert documents.start_N.tolist() == [0, 0, 2] and documents.end_N.tolist() == [2, 2, 3] and documents.row == 3


def test_whole_rows_need_no_mask():
    whole = Documents(None, None, 8)
    assert attention_mask(whole, 16, causal=False, window=None, device="cpu") is None
    assert whole.bounds(16, "cpu")[0].tolist() == [0] * 8 + [8] * 8


def test_positions_count_from_each_document():
    assert Documents.from_lengths([3, 2, 3]).positions(8, "cpu").tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert Documents(None, None, 4).positions(8, "cpu").tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


@pytest.mark.parametrize("lengths", [[4], [1, 3], [1] * 4, [2, 1, 1, 4, 8]])
def test_cumulative_lengths_end_in_empty_documents(lengths):
    offsets, longest = cumulative_lengths(Documents.from_lengths(lengths), sum(lengths), "cpu")
    expected = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    assert offsets[:len(expected)].tolist() == expected and (offsets[len(expected):] == sum(lengths)).all()
    assert longest >= max(lengths) and (len(offsets) - 1).bit_count() == 1


def test_cumulative_lengths_of_whole_rows():
    offsets, longest = cumulative_lengths(Documents(None, None, 4), 12, "cpu")
    assert offsets.tolist() == [0, 4, 8, 12] and longest == 4


def test_cumulative_lengths_refuse_padding():
    start, end = torch.tensor([[0, 0, 2, 3], [2, 2, 2, 3]], dtype=torch.int32)
    with pytest.raises(ValueError, match="every token must belong to a document"):
        cumulative_lengths(Documents(start, end, 4), 4, "cpu")
