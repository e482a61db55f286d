"""The stages run once over a small corpus, for the tests that read their results."""

from types import SimpleNamespace

import pytest

from cram.schema import Tokenizer
from data_prep.pack import pack
from data_prep.tokenizer import train_tokenizer
from tests.data_prep.corpus import ODD_TEXTS, files_data, prepare, prose, silent, write_jsonl


@pytest.fixture(scope="session")
def stages(tmp_path_factory) -> SimpleNamespace:
    """The three stages run once: text, and for each kind of tokenizer its folder and the packed data."""
    folder = tmp_path_factory.mktemp("stages")
    texts = prose(300) + ODD_TEXTS
    data = files_data(write_jsonl(folder / "corpus.jsonl", texts))
    prepare(data, folder / "text", silent)
    for kind in ("bpe", "wordpiece"):
        train_tokenizer(Tokenizer(type=kind, vocab_size=640), folder / "text", folder / f"tokenizer-{kind}", silent)
        pack(data, None, folder / "text", folder / f"tokenizer-{kind}", folder / f"data-{kind}", silent)
    return SimpleNamespace(folder=folder, texts=texts, data=data, text=folder / "text",
                           tokenizer={kind: folder / f"tokenizer-{kind}" for kind in ("bpe", "wordpiece")},
                           packed={kind: folder / f"data-{kind}" for kind in ("bpe", "wordpiece")})
