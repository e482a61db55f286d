"""Stage ``tokenizer``: the vocabulary, trained on the training split alone. Hugging Face tokenizers.

* bpe: byte-level (Radford et al. 2019, GPT-2), so lossless: decode(encode(text)) == text, and never [UNK].
  Words are cut as in nanochat (Karpathy 2025): GPT-4's pattern, digits in groups of at most two, which at a
  vocabulary of 32k gave the best bits per byte of groups of one, two and three (0.965 against 0.969, 0.972).
* wordpiece: BERT's (Devlin et al. 2019): lower-cased, accents stripped, split at punctuation; lossy.

Writes ``tokenizer.json`` and ``manifest.json``. Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK].
The same text gives the same file, in every process.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Callable, Iterator

import tokenizers
import xxhash
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_prep.artifact import read_manifest, write_manifest
from data_prep.errors import DataError
from data_prep.funnel import utf8_bytes
from data_prep.text import read_split
from data_prep.wordpiece import count_codes, train_wordpiece

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
MAX_VOCAB = 65_536                  # shards hold uint16
WORDS = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
         r"|\s*[\r\n]|\s+(?!\S)|\s+")


def train_tokenizer(tokenizer: Any, text_dir: Path, out: Path, say: Callable[[str], None]) -> None:
    """Run the stage: train what the ``tokenizer`` section asks for on the text stage's output.

    Raises DataError when vocab_size is over 65,536, below the alphabet, or above what the corpus allows.
    """
    if tokenizer.vocab_size > MAX_VOCAB:
        raise DataError(f"tokenizer.vocab_size is {tokenizer.vocab_size:,}; token ids are stored as uint16, "
                        f"so set it to {MAX_VOCAB:,} or less")
    alphabet = 256 if tokenizer.type == "bpe" else 0
    if tokenizer.vocab_size <= alphabet + len(SPECIAL_TOKENS):
        raise DataError(f"tokenizer.vocab_size is {tokenizer.vocab_size:,}; {tokenizer.type} needs more than "
                        f"{alphabet + len(SPECIAL_TOKENS)} (special tokens{' and the 256 bytes' if alphabet else ''})")
    text = read_manifest(Path(text_dir), "prepared text", ("splits",))
    sample = _Sample(Path(text_dir), text["splits"]["train"]["bytes"], tokenizer.sample_bytes)
    if tokenizer.type == "bpe":
        trained = _train_bpe(tokenizer, sample)
    else:
        trained = _train_wordpiece(tokenizer, sample)
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
    write_manifest(out, {
        "version": 1, "type": tokenizer.type, "vocab_size": size, "special": SPECIAL_IDS,
        "lossless": tokenizer.type == "bpe", "sha256": hashlib.sha256(serialised).hexdigest(),
        "trained_documents": sample.documents, "trained_bytes": sample.bytes, "tokenizers": tokenizers.__version__})
    say(f"tokenizer: {tokenizer.type} with {size:,} tokens, trained on {sample.bytes / 1e6:,.1f} MB")


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
    """Lists of training documents, about ``max_bytes`` of them, drawn by a hash of the text: the same every time."""

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
            yield texts


def _train_bpe(tokenizer: Any, sample: _Sample) -> Tokenizer:
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    result.decoder = decoders.ByteLevel()
    result.train_from_iterator(sample, trainers.BpeTrainer(
        vocab_size=tokenizer.vocab_size, min_frequency=tokenizer.min_frequency, special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    return result


def _train_wordpiece(tokenizer: Any, sample: _Sample) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    vocabulary = train_wordpiece(sample, count_codes(sample), normalizer, pre_tokenizers.BertPreTokenizer(),
                                 SPECIAL_TOKENS, tokenizer.vocab_size, tokenizer.min_frequency)
    result = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    result.normalizer = normalizer
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.decoder = decoders.WordPiece(prefix="##")
    result.add_special_tokens(SPECIAL_TOKENS)
    return result
