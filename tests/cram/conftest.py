"""A tiny corpus, prepared once with the real stages, for everything that trains."""

import random

import pytest

WORDS = ("model attention layer token budget gradient update step matrix vector sample batch loss rate mask row head key "
         "value query norm scale weight train data text word the a of and to in is it that for on with as by at").split()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folders of text, tokenizer and packed data: some hundred sentences of random words."""
    from cram.config import load
    from data_prep.pack import pack
    from tests.data_prep.corpus import prepare
    from data_prep.tokenizer import train_tokenizer

    root = tmp_path_factory.mktemp("tiny")
    rng = random.Random(0)
    documents = [" ".join(rng.choices(WORDS, k=rng.randint(20, 120))) + "." for _ in range(400)]
    (root / "corpus.jsonl").write_text("".join('{"text": "%s"}\n' % text for text in documents))
    config = load("demo", ["data.source=files", f"data.files=[{root}/corpus.jsonl]", "data.filters.min_chars=20",
                           "data.validation_fraction=0.1", "data.filters.max_repeated_line_fraction=null",
                           "tokenizer.vocab_size=300"])
    folders = {name: root / name for name in ("text", "tokenizer", "data")}
    for folder in folders.values():
        folder.mkdir()
    prepare(config.data, folders["text"], lambda line: None)
    train_tokenizer(config.tokenizer, folders["text"], folders["tokenizer"], lambda line: None)
    pack(config.data, None, folders["text"], folders["tokenizer"], folders["data"], lambda line: None)
    return folders


@pytest.fixture
def small_config(tmp_path_factory):
    """A model of a few thousand parameters; arguments are overrides in dotted form."""
    from cram.config import load

    # in a file: what causal models do not read is refused on the command line alone
    masked = tmp_path_factory.mktemp("config") / "masked.yaml"
    masked.write_text("objective:\n  mask_rate: 0.3\n")

    def make(*overrides, budget="12 steps"):
        return load(["demo", masked], [f"budget={budget}", "model.width=32", "model.heads=2", "train.sequence_length=32",
                                       "train.batch_tokens=512", "train.validation_tokens=512", "train.threads=1",
                                       "telemetry.heartbeat=0.5", "optimizer.lr=0.01", *overrides])
    return make
