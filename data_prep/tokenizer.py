"""Stage ``tokenizer``: the vocabulary, trained on a sample of the training split alone. The kinds: vocabulary.py.

Writes ``tokenizer.json``, ``manifest.json`` and, for bpe, ``token_bytes.npy``: int32 [vocabulary], the bytes of text
that each token stands for (special tokens: 0), which turns a loss per token into bits per byte.
The same text gives the same files, in every process (unigram: but for ties, see unigram.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import tokenizers
import xxhash
from tokenizers import Tokenizer

from data_prep.artifact import read_manifest, write_manifest
from data_prep.errors import DataError
from data_prep.funnel import utf8_bytes
from data_prep.text import read_split
from data_prep.unigram import MAX_SAMPLE_BYTES
from data_prep.vocabulary import SPECIAL_IDS, SPECIAL_TOKENS, token_bytes, train_vocabulary

MAX_PAIR_BYTES = 10_000_000_000     # the trainers count pairs in 32 bits: a common pair of English overflows near 100 GB
MAX_DOCUMENT = 100_000              # characters


def train_tokenizer(tokenizer: Any, text_dir: Path, out: Path, say: Callable[[str], None]) -> None:
    """Run the stage: train what the ``tokenizer`` section asks for on the text stage's output.

    Raises DataError when vocab_size is below the alphabet or above what the corpus allows, or sample_bytes is over 10 GB.
    """
    _check(tokenizer)
    sample_bytes = tokenizer.sample_bytes
    if tokenizer.type == "unigram" and sample_bytes > MAX_SAMPLE_BYTES:
        sample_bytes = MAX_SAMPLE_BYTES
        say(f"tokenizer: unigram trains on {sample_bytes / 1e6:,.0f} MB at most, not tokenizer.sample_bytes="
            f"{tokenizer.sample_bytes}: it is some twenty times slower than bpe (measured on 5 MB)")
    text = read_manifest(Path(text_dir), "prepared text", ("splits",))
    sample = _Sample(Path(text_dir), text["splits"]["train"]["bytes"], sample_bytes)
    trained = train_vocabulary(tokenizer, sample)
    size = trained.get_vocab_size()
    if size != tokenizer.vocab_size:
        reachable = size // 128 * 128 if size >= 1024 else size
        remedy = f"set tokenizer.vocab_size={reachable}," if sample.bytes else "raise tokenizer.sample_bytes"
        raise DataError(f"tokenizer.vocab_size={tokenizer.vocab_size} is more than this corpus allows: {size} tokens were "
                        f"reached on {sample.bytes:,} bytes (tokenizer.min_frequency={tokenizer.min_frequency}, "
                        f"tokenizer.sample_bytes={tokenizer.sample_bytes}); {remedy} or add text")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    serialised = trained.to_str(pretty=True).encode("utf-8")
    (out / "tokenizer.json").write_bytes(serialised)
    if tokenizer.type == "bpe":
        np.save(out / "token_bytes.npy", token_bytes(trained))
    write_manifest(out, {
        "version": 1, "type": tokenizer.type, "vocab_size": size, "special": SPECIAL_IDS,
        "lossless": tokenizer.type == "bpe", "sha256": hashlib.sha256(serialised).hexdigest(),
        "trained_documents": sample.documents, "trained_bytes": sample.bytes, "tokenizers": tokenizers.__version__})
    say(f"tokenizer: {tokenizer.type} with {size:,} tokens, trained on {sample.bytes / 1e6:,.1f} MB")


def _check(tokenizer: Any) -> None:
    """DataError for what no corpus could satisfy."""
    if tokenizer.sample_bytes > MAX_PAIR_BYTES:
        raise DataError(f"tokenizer.sample_bytes is {tokenizer.sample_bytes:,}; pairs are counted in 32 bits, which more than "
                        f"{MAX_PAIR_BYTES:,} bytes may overflow in silence; 500,000,000 are enough")
    alphabet = 256 if tokenizer.type == "bpe" else 0
    if tokenizer.vocab_size <= alphabet + len(SPECIAL_TOKENS):
        raise DataError(f"tokenizer.vocab_size is {tokenizer.vocab_size:,}; {tokenizer.type} needs more than "
                        f"{alphabet + len(SPECIAL_TOKENS)} (special tokens{' and the 256 bytes' if alphabet else ''})")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that ``train_tokenizer`` wrote, with [MASK] and the like in ordinary text read as plain text.

    DataError when the files are missing or are not those the manifest was written for.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, "tokenizer", ("sha256", "vocab_size", "special"))
    path = folder / "tokenizer.json"
    try:
        serialised = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run the tokenizer stage again") from None
    if hashlib.sha256(serialised).hexdigest() != manifest["sha256"]:
        raise DataError(f"{path}: differs from the one its manifest was written for (sha256); run the tokenizer stage again")
    loaded = Tokenizer.from_buffer(serialised)
    loaded.encode_special_tokens = True
    return loaded


class _Sample:
    """Lists of training documents, about ``max_bytes`` of them, drawn by a hash of the text: the same every time.

    Documents over 100,000 characters come in pieces of that size: a word without an end would fill the memory.
    """

    def __init__(self, text_dir: Path, total_bytes: int, max_bytes: int):
        self._text_dir = text_dir
        self._share = min(max_bytes / max(total_bytes, 1), 1.0)
        self.documents = self.bytes = 0

    def __iter__(self) -> Iterator[list[str]]:
        self.documents = self.bytes = 0
        for batch in read_split(self._text_dir, "train"):
            texts = batch.column("text").to_pylist()
            if self._share < 1:
                texts = [text for text in texts if xxhash.xxh3_64_intdigest(text.encode(), seed=1) < self._share * 2**64]
            self.documents += len(texts)
            self.bytes += sum(map(utf8_bytes, texts))
            yield [text[begin:begin + MAX_DOCUMENT] for text in texts for begin in range(0, len(text), MAX_DOCUMENT)]
