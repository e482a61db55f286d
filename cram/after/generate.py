"""Text from a causal model: many prompts at a time, each token read once, each sentence told as it comes.

Axes: B sequences, V vocabulary.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Callable, Literal, Optional, Sequence

import torch
from torch import Tensor

from cram.after.cache import Cache
from cram.after.sampling import Sampling, draw
from cram.errors import CramError
from cram.evaluate.heldout import evaluating
from cram.evaluate.scoring import opening
from cram.model import Transformer
from cram.ops import Documents

UNFINISHED = "\ufffd"  # what the first bytes of a character decode to while the others are missing


@dataclass(frozen=True)
class Generation:
    """What followed a prompt. reason: the model ended the document with [SEP] (``end``), a string to stop at was met and cut
    off (``stop``), or there were enough tokens (``length``). tokens: without [SEP], but with those of a cut string."""

    text: str
    tokens: list[int]
    reason: Literal["end", "stop", "length"]


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


@torch.no_grad()
def generate(subject: Any, prompts: Sequence[str], *, tokens: int, temperature: float = 1.0, top_k: Optional[int] = None,
             top_p: Optional[float] = None, min_p: Optional[float] = None, seed: int | Sequence[int] = 0,
             stop: Sequence[str] = (), kv_bits: Optional[int] = None, on_text: Optional[Callable[[int, str], None]] = None,
             say: Callable[[str], None] = to_stderr) -> list[Generation]:
    """Continue every prompt by at most ``tokens`` tokens. subject: ``cram.evaluate.subject.Subject``, causal or hybrid.

    Sampling: see ``cram.after.sampling.Sampling``. seed: of every prompt's own generator, or one for each; so a prompt and
    a seed give the same text in any company. kv_bits: 4 for a cache in 4 bits. on_text(i, piece): called with each piece
    of text i as soon as its characters are whole. Special tokens but [SEP] are never said.
    Raises CramError for a masked model, and for settings out of range.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    if subject.kind == "masked":
        raise CramError(f"{subject.name} is a masked model: it fills blanks and does not continue text; use cram fill")
    if tokens < 1:
        raise CramError(f"{tokens} tokens to generate; give 1 or more")
    if not all(stop):
        raise CramError("an empty string to stop at; every text has one at its start")
    prefixes = [[*opening(subject), *subject.encode(prompt)] for prompt in prompts]
    if not all(prefixes):
        raise CramError(f"{subject.name} has no token that opens a text, and a prompt is empty; write at least a word")
    if not prompts:
        return []
    if (longest := max(map(len, prefixes)) + tokens) > subject.row:
        say(f"{longest} tokens with the prompt: {subject.name} was trained on {subject.row} at most, so expect worse text")
    seeds = [seed] * len(prompts) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(prompts):
        raise CramError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one, or one for each")
    end = subject.special["sep"]
    never = [token for token in subject.special.values() if token not in (None, end)]
    with evaluating(subject.model):
        reader = open_reader(subject.model, len(prompts), longest, kv_bits, subject.device)
        texts = [Text(subject.tokenizer, prefix, stop) for prefix in prefixes]
        continue_texts(reader, texts, tokens=tokens, sampling=sampling, seeds=seeds, end=end, never=never, on_text=on_text)
    return [Generation(text.text, text.tokens, text.reason) for text in texts]


def continue_texts(reader: CachedReader | RereadingReader, texts: Sequence[Text], *, tokens: int, sampling: Sampling,
                   seeds: Sequence[int], end: int, never: Sequence[int],
                   on_text: Optional[Callable[[int, str], None]] = None) -> None:
    """Add at most ``tokens`` to each text, up to the token ``end``; those of ``never`` are not said."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    rows, logits_BV = list(range(len(texts))), reader.read([text.ids for text in texts])
    while True:
        logits_BV[:, never] = -torch.inf
        uniform_B = torch.stack([torch.rand((), generator=generators[row], dtype=torch.float64) for row in rows])
        chosen = draw(sampling.probabilities(logits_BV), uniform_B).tolist()
        for row, token in zip(rows, chosen):
            text = texts[row]
            piece = "" if token == end else text.add(token)
            if text.reason is None and (token == end or len(text.tokens) == tokens):
                piece += text.finish("end" if token == end else "length")
            if piece and on_text is not None:
                on_text(row, piece)
        going = [place for place, row in enumerate(rows) if texts[row].reason is None]
        if not going:
            return
        if len(going) < len(rows):
            reader.keep(going)
            rows, chosen = [rows[place] for place in going], [chosen[place] for place in going]
        logits_BV = reader.read([[token] for token in chosen])


class Text:
    """A text as it grows: whole characters, and no end that may yet turn out to be a string to stop at.

    A token may hold part of a character, and what it decodes to may hang on the token before it. So tokens are decoded
    together with the last piece, which is known: ids[begin:read].
    """

    def __init__(self, tokenizer: Any, prefix: Sequence[int], stop: Sequence[str] = ()):
        self.tokenizer, self.stop, self.ids = tokenizer, stop, list(prefix)
        self.first = self.read = len(self.ids)
        self.begin = self.told = 0
        self.text, self.reason = "", None

    @property
    def tokens(self) -> list[int]:
        return self.ids[self.first:]

    def add(self, token: int) -> str:
        """One token more; returns the text that is certain now and was not told before."""
        self.ids.append(token)
        return self._tell(finished=False)

    def finish(self, reason: Literal["end", "length"]) -> str:
        """The rest of the text."""
        self.reason = self.reason or reason
        return self._tell(finished=True)

    def _tell(self, finished: bool) -> str:
        decoded = self.tokenizer.decode(self.ids[self.begin:])
        if finished or not decoded.endswith(UNFINISHED):
            self.text += decoded[len(self.tokenizer.decode(self.ids[self.begin:self.read])):]
            self.begin, self.read = self.read, len(self.ids)
        if met := [self.text.index(string) for string in self.stop if string in self.text]:
            self.text, self.reason = self.text[:min(met)], "stop"
        open_end = max((size for string in self.stop for size in range(1, len(string)) if self.text.endswith(string[:size])),
                       default=0)
        certain = len(self.text) if self.reason else max(self.told, len(self.text) - open_end)
        piece, self.told = self.text[self.told:certain], certain
        return piece


class CachedReader:
    """Logits after the last token of each sequence, by a key/value cache."""

    def __init__(self, model: Transformer, rows: int, capacity: int, kv_bits: Optional[int]):
        self.model, self.cache = model, Cache(model, rows, capacity, kv_bits)
        self.keep = self.cache.keep

    def read(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Float32 [B, V] after these further tokens of each sequence."""
        last = torch.tensor([len(piece) for piece in pieces]).cumsum(0) - 1
        hidden_ND = self.cache.extend(pieces)
        return self.model.logits(hidden_ND[last.to(hidden_ND.device)])


class RereadingReader:
    """The same for any model, without a cache: the whole sequence is read again for each token, one by one."""

    def __init__(self, model: Any, rows: int, device: str | torch.device):
        self.model, self.device, self.sequences = model, device, [[] for _ in range(rows)]

    def read(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Float32 [B, V] after these further tokens of each sequence."""
        self.sequences = [[*sequence, *piece] for sequence, piece in zip(self.sequences, pieces)]
        return torch.cat([self.model.logits(read_whole(self.model, ids, self.device)[-1:]).float() for ids in self.sequences])

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences alone, in this order."""
        self.sequences = [self.sequences[row] for row in rows]


def open_reader(model: Any, rows: int, capacity: int, kv_bits: Optional[int],
                device: str | torch.device) -> CachedReader | RereadingReader:
    """With a cache for our own models, without for those of others. CramError for a cache of few bits without a cache."""
    if isinstance(model, Transformer):
        return CachedReader(model, rows, capacity, kv_bits)
    if kv_bits is not None:
        raise CramError(f"kv_bits={kv_bits}: a model that is not cram's is read without a cache; leave it out")
    return RereadingReader(model, rows, device)


def read_whole(model: Any, ids: Sequence[int], device: str | torch.device, causal: Optional[bool] = None) -> Tensor:
    """Hidden states [N, D] of one document, as a row of its own. causal: None as the model was built."""
    start_N = torch.zeros(len(ids), dtype=torch.int32, device=device)
    return model(torch.tensor(ids, device=device), Documents(start_N, start_N + len(ids), len(ids)), causal)
