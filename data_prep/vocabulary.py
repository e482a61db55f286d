"""The vocabulary of each kind of tokenizer, trained on lists of texts. Hugging Face tokenizers.

* bpe: byte-level (Radford et al. 2019, GPT-2), so lossless: decode(encode(text)) == text, and never [UNK].
  Words are cut as in nanochat (Karpathy 2025): GPT-4's pattern, digits in groups of at most two, which at a
  vocabulary of 32k gave the best bits per byte of groups of one, two and three (0.965 against 0.969, 0.972).
* wordpiece: BERT's (Devlin et al. 2019): lower-cased, accents stripped, split at punctuation; lossy. See wordpiece.py.
* unigram: SentencePiece's (Kudo 2018): NFKC, white space folded to one space, words marked by "▁"; lossy. See unigram.py.

Ids 0 to 4 are [PAD] [UNK] [CLS] [SEP] [MASK]. The same text gives the same vocabulary, in every process
(unigram: but for ties, see there).
"""

from __future__ import annotations

from typing import Any, Iterable

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from data_prep.unigram import train_unigram
from data_prep.wordpiece import count_codes, train_wordpiece

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
WORDS = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
         r"|\s*[\r\n]|\s+(?!\S)|\s+")


def train_vocabulary(tokenizer: Any, texts: Iterable[list[str]]) -> Tokenizer:
    """A tokenizer as the ``tokenizer`` section asks, trained on ``texts`` (read more than once, always the same).

    Its vocabulary may be smaller than asked for. DataError when vocab_size is below the alphabet of the texts.
    """
    return {"bpe": _train_bpe, "wordpiece": _train_wordpiece, "unigram": _train_unigram}[tokenizer.type](tokenizer, texts)


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """int32 [vocabulary]: bytes of UTF-8 that each token of a byte-level vocabulary stands for; special tokens: 0."""
    sizes = np.zeros(tokenizer.get_vocab_size(), np.int32)
    for token, number in tokenizer.get_vocab().items():
        sizes[number] = 0 if number < len(SPECIAL_TOKENS) else len(token)          # one character a byte
    return sizes


def _train_bpe(tokenizer: Any, texts: Iterable[list[str]]) -> Tokenizer:
    result = Tokenizer(models.BPE())
    result.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    result.decoder = decoders.ByteLevel()
    result.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=tokenizer.vocab_size, min_frequency=tokenizer.min_frequency, special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    return result


def _train_wordpiece(tokenizer: Any, texts: Iterable[list[str]]) -> Tokenizer:
    normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    vocabulary = train_wordpiece(texts, count_codes(texts), normalizer, pre_tokenizers.BertPreTokenizer(),
                                 SPECIAL_TOKENS, tokenizer.vocab_size, tokenizer.min_frequency)
    result = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    result.normalizer = normalizer
    result.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    result.decoder = decoders.WordPiece(prefix="##")
    result.add_special_tokens(SPECIAL_TOKENS)
    return result


def _train_unigram(tokenizer: Any, texts: Iterable[list[str]]) -> Tokenizer:
    """The model finds its pieces by their names, those of special tokens too: "[" is set apart, so none is found in text."""
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Split("[", behavior="isolated")])
    pieces = train_unigram(texts, normalizer, pre_tokenizer, SPECIAL_TOKENS, tokenizer.vocab_size)
    result = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL_IDS["unk"]))
    result.normalizer = normalizer
    result.pre_tokenizer = pre_tokenizer
    result.decoder = decoders.Metaspace()
    result.add_special_tokens(SPECIAL_TOKENS)
    return result
