"""The stage from real shards and a checkpoint to ``scores.json``, reading only the keys it declares."""

import json
import math
import random

import numpy as np
import pytest
import torch

import cram.evaluate.stage
from cram import checkpoint
from cram.config import to_dict
from cram.errors import CramError
from cram.evaluate.baselines import token_baselines
from cram.evaluate.heldout import held_out_targets
from cram.evaluate.stage import evaluate
from cram.model import build
from cram.pipeline import STAGES
from cram.schema import Config
from cram.stages import view
from data_prep.pack import pack
from data_prep.shards import Shards
from tests.data_prep.corpus import prepare
from data_prep.tokenizer import train_tokenizer

EVALUATE = next(stage for stage in STAGES if stage.name == "evaluate")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Text, tokenizer and shards of 300 made-up documents, with characters of one to four bytes."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = random.Random(0)
    words = "the array returns é axis — number of a 数 function value 🙂 index list True if not shape".split()
    lines = [json.dumps({"text": " ".join(rng.choice(words) for _ in range(rng.randint(40, 90)))}) for _ in range(300)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    config = Config()
    config.data.source, config.data.files, config.data.validation_fraction = "files", [str(folder / "text.jsonl")], 0.1
    config.data.filters.min_chars = None
    config.tokenizer.vocab_size = 300
    config.model.layers, config.model.width, config.model.heads = 1, 32, 2
    config.train.sequence_length, config.evaluate.sample_tokens = 32, 5
    for name in ("text", "tokenizer", "data"):
        (folder / name).mkdir()
    prepare(config.data, folder / "text", print)
    train_tokenizer(config.tokenizer, folder / "text", folder / "tokenizer", print)
    pack(config.data, None, folder / "text", folder / "tokenizer", folder / "data", print)
    return folder, config


def trained(folder, config, vocab_size=300):
    run = folder / f"pretrain-{config.objective.type}-{vocab_size}"
    if not run.exists():
        run.mkdir()
        (run / "config.json").write_text(json.dumps(to_dict(config)))
        model = build(config.model, vocab_size, config.objective.type != "masked", seed=0)
        state = {"model": model.state_dict(), "vocab_size": vocab_size,
                 "shape": {"layers": model.depth, "window": None, "rope_base": model.rope_base}}
        checkpoint.save(run / "checkpoints", state, step=1, run_id="r", keep=1)
    return run


@pytest.mark.parametrize("objective", ["masked", "causal", "hybrid"])
def test_scores_and_samples(prepared, tmp_path, objective):
    folder, config = prepared
    config.objective.type = objective
    mirror = tmp_path / "mirror"
    (mirror / "nyu-mll/blimp/one").mkdir(parents=True)
    (mirror / "nyu-mll/blimp/one/train.jsonl").write_text(
        '{"sentence_good": "the array returns", "sentence_bad": "returns the the array"}\n' * 3)
    (tmp_path / "mine.jsonl").write_text('{"sentence_good": "the array returns", "sentence_bad": "function list value"}\n')
    config.evaluate.mirror, said = str(mirror), []
    config.evaluate.tasks = [f"pairs:{tmp_path}/mine.jsonl", "glue.rte"]
    evaluate(view(EVALUATE, config), folder / "text", folder / "data", folder / "tokenizer", trained(folder, config), tmp_path,
             said.append)
    scores, samples = (json.loads((tmp_path / name).read_text()) for name in ("scores.json", "samples.json"))
    pairs, rte = scores["benchmarks"].values()
    assert pairs["examples"] == 1 and pairs["score"] in (0.0, 1.0) and pairs["overlap"]["examples"] == 1
    assert "has no nyu-mll/glue/rte/train" in rte["skipped"] and "glue.rte: skipped" in said[1]
    said = said[2:]  # what follows is the table
    shards = Shards(folder / "data", "validation")
    held_out = scores["held_out"]
    assert (held_out["documents"], held_out["tokens"]) == (shards.n_documents, shards.n_tokens)
    # an untrained model with zero-initialised branches and small embeddings knows next to nothing
    assert held_out["loss"] == pytest.approx(math.log(300), abs=0.3)
    assert scores["baselines"]["uniform"]["loss"] == pytest.approx(math.log(300))
    assert scores["baselines"]["unigram"]["loss"] < 4.0
    assert scores["gain_over_unigram"] == pytest.approx(1 - held_out["loss"] / scores["baselines"]["unigram"]["loss"])
    assert scores["minimal_pairs"]["pairs"] == 3 and scores["minimal_pairs"]["accuracy"] in (0.0, 1.0)
    assert any(line.startswith("unigram") for line in said) and any("of 3 right" in line for line in said)
    if objective != "masked":
        texts = [json.loads(line)["text"] for line in (folder / "data/validation.jsonl").read_text().splitlines()]
        assert held_out["bytes"] == sum(len(text.encode()) for text in texts)
        assert held_out["predicted"] == shards.n_tokens - shards.n_documents
        assert 0.5 < scores["baselines"]["xz -9e"]["bits_per_byte"] < 4
        continued, samples = samples[:2 * len(config.evaluate.prompts)], samples[2 * len(config.evaluate.prompts):]
        assert continued[0]["text"].startswith(continued[0]["prompt"]) and "text" in continued[-1]
    else:
        assert set(scores["baselines"]) == {"uniform", "unigram"}
    filled = [] if objective == "causal" else [5] * len(config.evaluate.blanks)
    assert [len(sample["blanks"][0]) for sample in samples] == filled
    masked = [row.get("masked_loss") for row in (held_out, *map(scores["baselines"].get, ("uniform", "unigram")))]
    if objective == "hybrid":
        hidden = held_out_targets(shards, causal=False, mask_rate=config.evaluate.mask_rate, max_tokens=config.evaluate.tokens)
        by_count = token_baselines(hidden, shards, np.load(folder / "data/token_counts.npy"), causal=False)["unigram"]["loss"]
        assert masked == pytest.approx([math.log(300), math.log(300), by_count], abs=0.3) and masked[2] == by_count
        assert 0 <= held_out["masked_accuracy"] < 0.3 and "masked: nats" in said[0] and said[1].endswith(
            f"{held_out['masked_loss']:16.4f}{held_out['masked_accuracy']:16.4f}")
    else:
        assert masked == [None] * 3 and "masked" not in said[0]


def test_without_a_mirror_minimal_pairs_say_why(prepared, tmp_path):
    folder, config = prepared
    config.objective.type, config.evaluate.mirror, config.evaluate.blanks, config.evaluate.tasks = "masked", None, [], []
    evaluate(view(EVALUATE, config), folder / "text", folder / "data", folder / "tokenizer", trained(folder, config), tmp_path,
             print)
    assert "evaluate.mirror" in json.loads((tmp_path / "scores.json").read_text())["minimal_pairs"]["skipped"]


def test_too_little_memory_makes_smaller_batches_and_the_same_scores(prepared, tmp_path, monkeypatch):
    folder, config = prepared
    config.objective.type, config.evaluate.mirror, config.evaluate.tasks = "masked", None, []
    ask = folder / "text", folder / "data", folder / "tokenizer", trained(folder, config)
    (tmp_path / "plain").mkdir(), (tmp_path / "scarce").mkdir()
    evaluate(view(EVALUATE, config), *ask, tmp_path / "plain", print)
    sizes, plain, said = [], cram.evaluate.stage.score_heldout, []

    def scarce(*arguments, batch_tokens, **how):
        sizes.append(batch_tokens)
        if batch_tokens > 600:
            raise torch.OutOfMemoryError("no room")
        return plain(*arguments, batch_tokens=batch_tokens, **how)
    monkeypatch.setattr(cram.evaluate.stage, "score_heldout", scarce)
    evaluate(view(EVALUATE, config), *ask, tmp_path / "scarce", said.append)
    assert sizes == [2048, 1024, 512] and sum("out of memory" in line for line in said) == 2
    found, expected = (json.loads((tmp_path / name / "scores.json").read_text())["held_out"] for name in ("scarce", "plain"))
    assert found == pytest.approx(expected)


def test_foreign_weights_are_refused_and_nothing_is_written(prepared, tmp_path):
    folder, config = prepared
    config.objective.type = "masked"
    with pytest.raises(CramError, match="has 400 tokens"):
        evaluate(config, folder / "text", folder / "data", folder / "tokenizer", trained(folder, config, 400), tmp_path, print)
    assert list(tmp_path.iterdir()) == []


def test_real_shards_agree_with_the_texts(prepared):
    """Bits per byte divides by the bytes of the raw text: tokens decode to exactly those bytes."""
    from data_prep.tokenizer import load_tokenizer

    folder, _ = prepared
    shards, tokenizer = Shards(folder / "data", "validation"), load_tokenizer(folder / "tokenizer")
    texts = [json.loads(line)["text"] for line in (folder / "data/validation.jsonl").read_text().splitlines()]
    for i, text in enumerate(texts):
        start, stop = shards.document_starts[i], shards.document_starts[i + 1]
        tokens = shards.read(int(start), int(stop)).astype(np.int64)
        assert (tokens[0], tokens[-1]) == (2, 3) and tokenizer.decode(tokens[1:-1].tolist()) == text
        assert shards.document_bytes[i] == len(text.encode())
