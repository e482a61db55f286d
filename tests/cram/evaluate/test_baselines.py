"""Baselines counted by hand on small texts."""

import json
import lzma
import math

import numpy as np
import pytest

from cram.errors import CramError
from cram.evaluate.baselines import compression_baselines, token_baselines
from cram.evaluate.heldout import held_out_targets

TEXTS = ["one two", "drei — vier"]


@pytest.fixture
def held_out(make):
    shards = make.shards([[5, 6, 5], [7]], [len(text.encode()) for text in TEXTS])
    return shards, held_out_targets(shards, causal=True, mask_rate=0.0, max_tokens=100)


def test_uniform_and_unigram_causal(make, held_out):
    shards, targets = held_out
    counts = np.zeros(make.vocab, np.int64)
    counts[[2, 3, 5, 6]] = [10, 10, 7, 2]  # [CLS] is never predicted: its count must not matter
    scores = token_baselines(targets, shards, counts, causal=True)
    p = {5: 8, 6: 3, 7: 1, 3: 11}
    nats = {token: -math.log(n / (19 + make.vocab)) for token, n in p.items()}
    assert scores["unigram"]["loss"] == pytest.approx((2 * nats[5] + nats[6] + nats[7] + 2 * nats[3]) / 6)
    content = (2 * nats[5] + nats[6] + nats[7]) / math.log(2)
    assert scores["unigram"]["bits_per_byte"] == pytest.approx(content / targets.bytes)
    assert scores["uniform"]["loss"] == pytest.approx(math.log(make.vocab))
    assert scores["uniform"]["bits_per_byte"] == pytest.approx(4 * math.log2(make.vocab) / targets.bytes)


def test_uniform_and_unigram_masked(make):
    shards = make.shards([[5] * 40], [40])
    targets = held_out_targets(shards, causal=False, mask_rate=0.5, max_tokens=100)
    counts = np.full(make.vocab, 3)
    counts[:5] = 1000  # special tokens are never predicted
    scores = token_baselines(targets, shards, counts, causal=False)
    assert scores["unigram"] == {"loss": pytest.approx(math.log((18 * 3 + make.vocab) / 4))}
    assert scores["uniform"] == {"loss": pytest.approx(math.log(make.vocab))}


def test_compressors_see_exactly_the_documents_scored(tmp_path, held_out):
    _, targets = held_out
    path = tmp_path / "validation.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS, "never scored " * 50]))
    scores = compression_baselines(targets, path)
    expected = len(lzma.compress("\n".join(TEXTS).encode(), preset=9 | lzma.PRESET_EXTREME)) * 8 / targets.bytes
    assert scores["xz -9e"]["bits_per_byte"] == expected
    assert set(scores) == {"xz -9e", "gzip -9"}
    path.write_text(json.dumps({"text": "another text"}) + "\n")
    with pytest.raises(CramError, match="run the data stage again"):
        compression_baselines(targets, path)
