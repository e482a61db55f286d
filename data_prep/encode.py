r"""Text to token ids, several times faster than the library and never different from it.

Text repeats itself. It is cut into short chunks at places where the tokenizer splits whatever stands around them; each
chunk that is new goes through the library once, and is looked up from then on, a block of documents at a time, with
numpy. The ids of a document are those of its chunks, end to end.

**bpe.** Where is a cut safe? The pattern ``WORDS`` of tokenizer.py is matched from left to right and never looks
behind, so it is enough that a match always ends at the cut, and would end there too if the text did. So it is

* after an ASCII letter, before an ASCII character that is no letter; after a digit, before one that is no digit: the
  alternatives that take a letter or a digit end with it, and none of them looks ahead;
* after ASCII punctuation, before a digit or a space: the first two alternatives go on from punctuation to letters alone,
  the fourth to punctuation and line breaks;
* before a space that a character follows which is not white space. If white space stands before the space, the fifth
  alternative takes it up to its last line break, and the sixth all of the rest but the last character, which is our
  space: ``(?!\S)`` fails behind it and holds before it. At the end of a text it holds as well;
* after a line feed, if the first character after it that is not a space is not white space. The fourth or the fifth
  alternative ends there: the fifth reaches for the last line break of a run of white space, and this is the last.

"Not white space" is judged from one byte: ASCII graphic, or the first byte of a longer character, other than the four
that the white space of Unicode begins with (C2, E1, E2, E3).

**wordpiece.** BERT's pre-tokenizer removes space, tab, line feed and carriage return, and sets each ASCII punctuation
mark apart. Its normaliser works on single characters, but for the order of combining marks, which never crosses those.

**unigram.** The library encodes every document: its text depends on what stands around it (Metaspace, NFKC).
"""

from __future__ import annotations

import functools
import itertools
import json
import string
from typing import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from data_prep.blocks import Block, cut
from data_prep.chunk_memo import PADDING, Memo
from data_prep.vocabulary import WORDS

SPACE, LINE_FEED = 0x20, 0x0A
MAX_INDENT = 16                     # no cut before lines with a deeper one
ASCII = [chr(code) for code in range(128)]
SOLID = np.array([0x21 <= byte <= 0x7E or byte > 0xC2 and byte not in (0xE1, 0xE2, 0xE3) for byte in range(256)])
BLANK, WORD, MARK = 0, 1, 2
BERT = np.array([BLANK if chr(byte) in " \t\n\r" else MARK if chr(byte) in string.punctuation else WORD
                 for byte in range(256)], np.uint8)


@functools.lru_cache(maxsize=1)
def safe_pairs() -> np.ndarray:
    """bool [65536]: may text be cut between two bytes, at ``256 * left + right``? The first two rules for bpe."""
    safe = np.zeros((256, 256), bool)
    for left, right in itertools.product(ASCII, ASCII):
        safe[ord(left), ord(right)] = (left.isalpha() and not right.isalpha() or left.isdigit() and not right.isdigit()
                                       or left in string.punctuation and (right.isdigit() or right == " "))
    return safe.ravel()


class Encoder:
    """Encodes documents as ``tokenizer.encode_batch_fast(texts, add_special_tokens=False)`` does, with a memo.

    tokenizer: as ``load_tokenizer`` gives it (encode_special_tokens is true). kind: bpe, wordpiece or unigram; any
    other tokenizer is "unigram" too, left to the library. ValueError when the tokenizer is not of this project's kind.
    max_chunks, max_ids: size of the memo; a full one is started anew. One encoder belongs to one thread.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str, max_chunks: int = 1 << 20, max_ids: int = 1 << 23):
        if not tokenizer.encode_special_tokens:
            raise ValueError("set tokenizer.encode_special_tokens = True: names of special tokens in text are plain text")
        if kind != "unigram" and _kind_of(tokenizer) != kind:
            raise ValueError(f"this tokenizer does not cut text as {kind} of data_prep.vocabulary does; use kind unigram")
        self.dtype = np.dtype(np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32)
        self._tokenizer = tokenizer
        self._chunks = {"bpe": bpe_chunks, "wordpiece": wordpiece_chunks, "unigram": None}[kind]
        self._memo = Memo(self._library, self.dtype, max_chunks, max_ids)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids uint16, or uint32 above 65,536 tokens [tokens], tokens of each document int64 [documents])."""
        if self._chunks is None:
            return self._library(texts)
        parts = [self._encode_block(block, self._chunks) for block in cut(texts)]
        if not parts:
            return np.zeros(0, self.dtype), np.zeros(0, np.int64)
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([counts for _, counts in parts])

    def _encode_block(self, block: Block, chunks: Callable) -> tuple[np.ndarray, np.ndarray]:
        text = np.append(block.text, PADDING)
        starts, ends = chunks(text, block.ends)
        entries = self._memo.find(text, starts, ends)
        if entries is None:
            return self._library(block.texts)
        ids, counts = self._memo.ids_of(entries)
        total = np.append(0, np.cumsum(counts))[np.searchsorted(starts, np.append(block.starts, len(block.text)))]
        return ids, np.diff(total)

    def _library(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encoded = [one.ids for one in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        counts = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(itertools.chain.from_iterable(encoded), self.dtype, counts.sum()), counts


def _kind_of(tokenizer: Tokenizer) -> str:
    """bpe or wordpiece where the rules above hold, else "other"."""
    parts = json.loads(tokenizer.to_str())
    normalizer, pre_tokenizer = parts["normalizer"] or {"type": None}, parts["pre_tokenizer"] or {"type": None}
    steps = pre_tokenizer.get("pretokenizers", [])
    if [step["type"] for step in steps] == ["Split", "ByteLevel"] and steps[0]["pattern"] == {"Regex": WORDS}:
        return "other" if normalizer["type"] else "bpe"
    return "wordpiece" if (normalizer["type"], pre_tokenizer["type"]) == ("BertNormalizer", "BertPreTokenizer") else "other"


def bpe_chunks(text: np.ndarray, document_ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) int64 [chunks] in bytes. The chunks of a document cover it; a line feed ends it, then PADDING."""
    cuts = np.zeros(len(text), bool)
    cuts[1:] = safe_pairs()[text[:-1].astype(np.uint16) << 8 | text[1:]]
    spaces, feeds = np.flatnonzero(text == SPACE), np.flatnonzero(text == LINE_FEED)
    after = feeds + 1
    for _ in range(MAX_INDENT):
        after += text[after] == SPACE
    cuts[spaces[SOLID[text[spaces + 1]]]] = cuts[feeds[SOLID[text[after]]] + 1] = True
    cuts[0] = cuts[document_ends] = cuts[document_ends + 1] = True
    edges = np.flatnonzero(cuts)
    between = np.searchsorted(edges, document_ends)             # the line feeds that stand between documents
    return np.delete(edges[:-1], between), np.delete(edges[1:], between)


def wordpiece_chunks(text: np.ndarray, document_ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) int64 [chunks] in bytes: words and single punctuation marks, without the white space between."""
    classes = BERT[text[:document_ends[-1] + 1]]
    changes = (classes[1:] != classes[:-1]) | (classes[1:] == MARK)
    edges = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(classes)]])
    kept = classes[edges[:-1]] != BLANK
    return edges[:-1][kept], edges[1:][kept]
