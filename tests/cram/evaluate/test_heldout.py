"""Held-out scores against a loop over single tokens written from the definition."""

import math

import numpy as np
import pytest
import torch

from cram.errors import CramError
from cram.evaluate.heldout import held_out_targets, score_heldout

CLS, SEP = 2, 3


def fragment(stream, position, row):
    """First and one past the last index of what shares a row and a document with ``position``."""
    start = position
    while start % row and stream[start] != CLS:
        start -= 1
    end = position + 1
    while end < len(stream) and end % row and stream[end] != CLS:
        end += 1
    return start, end


def naive_causal(model, stream, row):
    nats, hits, bits = [], [], 0.0
    for position in range(1, len(stream)):
        token = stream[position]
        if token == CLS:
            continue
        start, _ = fragment(stream, position - 1, row)
        log_p = model.log_probabilities(stream[start:position])
        nats.append(-log_p[token])
        hits.append(log_p.argmax() == token)
        if token != SEP:
            bits -= log_p[token] / math.log(2)
    return np.mean(nats), np.mean(hits), len(nats), bits


@pytest.mark.parametrize("row, batch_tokens", [(8, 8), (8, 64), (16, 40), (7, 8192), (200, 10)])
def test_causal_equals_the_naive_loop(shards, make, row, batch_tokens):
    model = make.bag(causal=True)
    scores = score_heldout(model, shards, row=row, mask_rate=0.0, max_tokens=10_000, batch_tokens=batch_tokens)
    loss, accuracy, predicted, bits = naive_causal(model, shards.stream.tolist(), row)
    assert scores["predicted"] == predicted == shards.n_tokens - shards.n_documents
    assert scores["loss"] == pytest.approx(loss, rel=1e-5) and scores["accuracy"] == accuracy
    assert scores["bytes"] == shards.document_bytes.sum()
    assert scores["bits_per_byte"] == pytest.approx(bits / scores["bytes"], rel=1e-5)
    assert len(set(model.shapes)) == 1  # one shape for all batches


@pytest.mark.parametrize("row, batch_tokens", [(8, 8), (16, 40), (7, 8192)])
def test_masked_equals_the_naive_loop(shards, make, row, batch_tokens):
    model = make.bag(causal=False)
    targets = held_out_targets(shards, causal=False, mask_rate=0.8, max_tokens=10_000, seed=3)
    stream, seen = shards.stream.tolist(), targets.inputs_N.tolist()
    nats, hits = [], []
    for position, label in zip(targets.positions_K.tolist(), targets.labels_K.tolist()):
        start, end = fragment(stream, position, row)
        log_p = model.log_probabilities(seen[start:end])
        nats.append(-log_p[label])
        hits.append(log_p.argmax() == label)
    scores = score_heldout(
        model, shards, row=row, mask_rate=0.8, max_tokens=10_000, batch_tokens=batch_tokens, seed=3)
    assert scores == {"loss": pytest.approx(np.mean(nats), rel=1e-5), "accuracy": np.mean(hits), "predicted": len(nats)}


@pytest.mark.parametrize("row, batch_tokens", [(8, 8), (16, 40)])
def test_hybrid_is_scored_in_both_ways(shards, make, row, batch_tokens):
    """As a causal model, and on the masks of a masked one: each token from both sides, at the position before it."""
    model, ask = make.bag(causal=True), dict(row=row, mask_rate=0.8, max_tokens=10_000, batch_tokens=batch_tokens, seed=3)
    scores = score_heldout(model, shards, hybrid=True, **ask)
    targets = held_out_targets(shards, causal=False, mask_rate=0.8, max_tokens=10_000, seed=3)
    stream, seen, nats, hits = shards.stream.tolist(), targets.inputs_N.tolist(), [], []
    for position, label in zip(targets.positions_K.tolist(), targets.labels_K.tolist()):
        start, end = fragment(stream, position - 1, row)
        log_p = model.log_probabilities(seen[start:end])
        nats.append(-log_p[label])
        hits.append(log_p.argmax() == label)
    masked = {"masked_loss": pytest.approx(np.mean(nats), rel=1e-5), "masked_accuracy": np.mean(hits)}
    assert scores == score_heldout(model, shards, **ask) | masked
    assert scores["masked_loss"] != scores["loss"]


@pytest.mark.parametrize("causal", [True, False])
def test_uniform_model_costs_exactly_log_v(shards, make, causal):
    scores = score_heldout(make.uniform(causal), shards, row=8, mask_rate=0.15, max_tokens=10_000)
    assert scores["loss"] == pytest.approx(math.log(make.vocab), rel=1e-6)
    if causal:
        content = shards.n_tokens - 2 * shards.n_documents
        assert scores["bits_per_byte"] * scores["bytes"] == pytest.approx(content * math.log2(make.vocab), rel=1e-6)


def test_masks_hide_only_ordinary_tokens_and_never_move(shards):
    ask = dict(causal=False, mask_rate=0.25, max_tokens=10_000)
    first, again, other = (held_out_targets(shards, seed=seed, **ask) for seed in (1, 1, 2))
    assert np.array_equal(first.inputs_N, again.inputs_N) and np.array_equal(first.positions_K, again.positions_K)
    assert not np.array_equal(first.positions_K, other.positions_K)
    ordinary = int(np.sum(shards.stream >= 5))
    assert len(set(first.positions_K.tolist())) == len(first.labels_K) == round(0.25 * ordinary)
    assert first.labels_K.min() >= 5 and np.array_equal(first.labels_K, shards.stream[first.positions_K])
    untouched = np.setdiff1d(np.arange(shards.n_tokens), first.positions_K)
    assert np.array_equal(first.inputs_N[untouched], shards.stream[untouched])


def test_whole_documents_up_to_the_limit(shards):
    starts = shards.document_starts
    for limit, documents in [(1, 1), (starts[2] - 1, 1), (starts[2], 2), (starts[2] + 1, 2), (starts[-1], 7), (10**9, 7)]:
        targets = held_out_targets(shards, causal=True, mask_rate=0.0, max_tokens=int(limit))
        assert (targets.documents, len(targets.inputs_N)) == (documents, starts[documents])
        assert targets.bytes == shards.document_bytes[:documents].sum()


def test_lossy_tokenizer_has_no_bits_per_byte(make):
    lossy = make.shards([[5, 6]], [7], lossless=False)
    scores = score_heldout(make.uniform(True), lossy, row=8, mask_rate=0.0, max_tokens=100)
    assert scores["bits_per_byte"] is None and scores["predicted"] == 3


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_are_left_alone(shards, make, training):
    model = make.bag(causal=False).train(training)
    np.random.seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = score_heldout(model, shards, row=8, mask_rate=0.3, max_tokens=100)
    assert torch.equal(before, torch.get_rng_state()) and np.array_equal(numpy_before, np.random.get_state()[1])
    assert model.training is training and model.dropout.training is training
    assert first == score_heldout(model, shards, row=8, mask_rate=0.3, max_tokens=100)  # dropout was off
    assert model.embedding.grad is None


def test_mode_is_restored_after_a_failure(shards, make):
    model = make.bag(causal=True).train()
    model.logits = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        score_heldout(model, shards, row=8, mask_rate=0.0, max_tokens=100)
    assert model.training


def test_no_held_out_text_is_an_error(make):
    with pytest.raises(CramError, match="data.validation_fraction"):
        held_out_targets(make.shards([], []), causal=True, mask_rate=0.0, max_tokens=10)
    with pytest.raises(CramError, match="special tokens only"):
        held_out_targets(make.shards([[]], [0]), causal=False, mask_rate=0.5, max_tokens=10)
