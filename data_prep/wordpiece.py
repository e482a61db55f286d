"""WordPiece vocabulary that is the same in every process.

Hugging Face's trainer numbers the pieces "##c" in the order of a hash map that is seeded anew in every
process, and breaks ties between pairs by those numbers: twelve runs gave twelve vocabularies. Here the
alphabet is counted and ordered first, and every "c" and "##c" is handed to the trainer as a special token,
which fixes the numbers; the vocabulary is then taken out of the trained tokenizer and those marks are lost.
"""

from __future__ import annotations

from collections import Counter
from typing import Iterable

import numpy as np
from tokenizers import Tokenizer, models, trainers

from data_prep.errors import DataError

MAX_ALPHABET = 1000                 # characters kept, the most frequent; the rest becomes [UNK] (BERT's vocabulary: 997)


def count_codes(texts: Iterable[list[str]]) -> np.ndarray:
    """int64 [0x110000]: how often each code point occurs in the documents."""
    counts = np.zeros(0x110000, np.int64)
    for batch in texts:
        codes = np.frombuffer("".join(batch).encode("utf-32-le"), np.uint32)
        if len(codes):
            batch_counts = np.bincount(codes)
            counts[:len(batch_counts)] += batch_counts
    return counts


def alphabet_of(counts: np.ndarray, normalizer) -> list[str]:
    """The most frequent characters after normalisation, at most 1,000, sorted; ties by code point."""
    found: Counter[str] = Counter()
    for code in np.flatnonzero(counts):
        for char in normalizer.normalize_str(chr(code)):
            if not char.isspace():
                found[char] += int(counts[code])
    ordered = sorted(found, key=lambda char: (-found[char], char))
    return sorted(ordered[:MAX_ALPHABET])


def train_wordpiece(texts: Iterable[list[str]], counts: np.ndarray, normalizer, pre_tokenizer,
                    special_tokens: list[str], vocab_size: int, min_frequency: int) -> dict[str, int]:
    """Vocabulary {piece: id}: special tokens first, then "c" and "##c" of the alphabet, then merges."""
    alphabet = alphabet_of(counts, normalizer)
    fixed = [*special_tokens, *alphabet, *(f"##{char}" for char in alphabet)]
    if len(fixed) >= vocab_size:
        raise DataError(f"tokenizer.vocab_size is {vocab_size:,}; wordpiece needs more than {len(fixed):,} for the "
                        f"{len(alphabet):,} characters of this corpus, each at the start of a word and within one")
    trainer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trainer.normalizer, trainer.pre_tokenizer = normalizer, pre_tokenizer
    trainer.train_from_iterator(texts, trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, special_tokens=fixed, initial_alphabet=alphabet,
        limit_alphabet=len(alphabet), continuing_subword_prefix="##", show_progress=False))
    return trainer.get_vocab()
