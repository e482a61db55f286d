"""How likely a model finds a text: exact, without padding, whatever the batch.

Causal models (hybrid ones too, which are built causal): log p(continuation | [CLS] context), the sum over its tokens.
Masked models: pseudo-log-likelihood between [CLS] and [SEP] (Salazar et al. 2020, section 2.1): the sum of log p(token |
the rest), each token hidden once. ``original`` hides that token alone, which gives the pieces of a long word away to each
other; ``within_word_l2r`` hides the pieces of the same word to its right as well (Kauf & Ivanova 2023). A hybrid model is
asked like a masked one in its masked half, where it predicts each token at the position before it.

No sequence is longer than ``subject.row``. Causal: what does not fit is cut from the left, as lm-evaluation-harness does; a
continuation that alone is longer is scored in windows, each token once, in the manner of its rolling windows. Masked: a token
is predicted from the row around it. Both are counted as ``truncated``.

Batches: on a card ragged documents in one stream. On the CPU, where attention holds a dense mask, and for models whose
attention crosses documents, sequences of one length are the rows of a batch (measured on the CPU: 3 to 5 times as fast).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Literal, NamedTuple, Optional, Sequence

import numpy as np
import torch

from cram.device import is_out_of_memory
from cram.errors import CramError
from cram.evaluate.heldout import evaluating, predict
from cram.evaluate.subject import Subject
from cram.ops import Documents

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
SAY_EVERY = 30.0  # seconds between lines about how far it is
Variant = Literal["original", "within_word_l2r"]
VARIANTS = ("original", "within_word_l2r")


class Query(NamedTuple):
    """A document as the model reads it, the positions in it where something is predicted, and what is right there."""

    item: int  # what it is a part of
    ids: Sequence[int]
    positions: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class Scores:
    """log_p: nats, float64 [items], the sum over the tokens scored. tokens: how many, int64 [items]. greedy: whether each of
    them was the likeliest one in its place, bool [items]. truncated: items of which the model could not see all at once."""

    log_p: np.ndarray
    tokens: np.ndarray
    greedy: np.ndarray
    truncated: int


def masks_by_document(model: Any) -> bool:
    """Whether attention stays inside documents; so do models of others, which have no such switch."""
    return getattr(getattr(model, "config", None), "document_mask", True)


def opening(subject: Subject) -> list[int]:
    """What stands before every text of a causal model: [CLS], or what ``notes`` of a foreign model say its tokenizer puts
    there (GPT-2's: nothing)."""
    return list(subject.notes.get("opening", [subject.special["cls"]]))


def log_likelihoods(subject: Subject, requests: Sequence[tuple[str, str]], *, variant: Variant = "within_word_l2r",
                    batch_tokens: Optional[int] = None, say: Callable[[str], None] = print) -> Scores:
    """The continuations of (context, continuation), as texts, in the manner of the model: masked by pseudo-log-likelihood."""
    how = dict(batch_tokens=batch_tokens, say=say)
    if subject.kind == "masked":
        contexts, continuations = [context for context, _ in requests], [continuation for _, continuation in requests]
        return pseudo_log_likelihood(subject, continuations, variant, contexts=contexts, **how)
    return continuation_scores(subject, [encode_pair(subject, *request) for request in requests], **how)


def encode_pair(subject: Subject, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of both, as lm-evaluation-harness splits them: spaces that end the context open the continuation, and the
    continuation's tokens are those of the whole beyond as many as the context alone has."""
    context, continuation = _move_spaces(context, continuation)
    context_ids = subject.encode(context) if context else []
    return context_ids, subject.encode(context + continuation)[len(context_ids):]


def continuation_scores(subject: Subject, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *,
                        batch_tokens: Optional[int] = None, say: Callable[[str], None] = print) -> Scores:
    """Causal and hybrid: each continuation after its context, token ids without special tokens; [CLS] comes before.

    Raises CramError when a continuation has no tokens, or memory does not suffice for one sequence.
    """
    first, row = opening(subject), subject.row
    items = [((*first, *context) or (subject.special["cls"],), tuple(continuation)) for context, continuation in pairs]
    distinct, which = _distinct(items)

    def queries() -> Iterator[Query]:
        for item in _longest_first([len(context) + len(continuation) for context, continuation in distinct]):
            context, continuation = distinct[item]
            ids = context + continuation
            for begin in range(len(context), len(ids), row):
                end = min(begin + row, len(ids))
                seen = ids[max(0, end - 1 - row):end - 1]
                yield Query(item, seen, range(len(seen) - (end - begin), len(seen)), ids[begin:end])

    longer = sum(len(context) + len(continuation) > row + 1 for context, continuation in items)
    tokens = np.array([len(continuation) for _, continuation in distinct], dtype=np.int64)
    return _score(subject, queries(), tokens, which, longer, None, batch_tokens, say)


def pseudo_log_likelihood(subject: Subject, sentences: Sequence[str], variant: Variant = "within_word_l2r", *,
                          contexts: Optional[Sequence[str]] = None, batch_tokens: Optional[int] = None,
                          say: Callable[[str], None] = print) -> Scores:
    """Masked and hybrid: each sentence, after its context if it has one, of which no token is scored.

    Raises CramError for an unknown variant, a sentence without tokens, a causal model, or too little memory.
    """
    if variant not in VARIANTS:
        raise CramError(f"pseudo-log-likelihood '{variant}' is unknown; use {' or '.join(VARIANTS)}")
    if subject.kind == "causal":
        raise CramError(f"{subject.name}: a causal model has no pseudo-log-likelihood; score its continuations")
    room, special, shift = subject.row - 2, subject.special, subject.kind == "hybrid"
    items = [_words(subject, *_move_spaces(context, sentence), variant)
             for context, sentence in zip(contexts or [""] * len(sentences), sentences, strict=True)]
    distinct, which = _distinct(items)

    def queries() -> Iterator[Query]:
        for item in _longest_first([len(ids) for ids, _, _ in distinct]):
            ids, ends, begin = distinct[item]
            for place in range(begin, len(ids)):
                low = max(0, min(place - room // 2, len(ids) - room))
                seen = [special["cls"], *ids[low:low + room], special["sep"]]
                at, hidden = place - low + 1, min(ends[place] - low, room) + 1
                seen[at:hidden] = [special["mask"]] * (hidden - at)
                yield Query(item, seen, (at - shift,), ids[place:place + 1])

    longer = sum(len(ids) > room for ids, _, _ in items)
    tokens = np.array([len(ids) - begin for ids, _, begin in distinct], dtype=np.int64)
    return _score(subject, queries(), tokens, which, longer, False, batch_tokens, say)


def word_ends(text: str, encoding: Any) -> list[int]:
    """One past the last token of the word that each token belongs to; ``encoding``: ``tokenizers.Encoding`` of the text.

    A word begins where the pre-tokenizer cut the text (``word_ids``). Some tokenizers cut nothing beforehand (models converted
    from SentencePiece): so it begins also at a token that starts with white space or stands behind some, unless the token
    before is that white space. The pieces of one character, which share its offsets, stay together.
    """
    starts, before, covered, last = [], None, 0, ""
    for token, (word, (begin, end)) in enumerate(zip(encoding.word_ids, encoding.offsets)):
        behind = begin > 0 and text[begin - 1].isspace() and last.strip() != ""
        spaced = begin >= covered and (text[begin:begin + 1].isspace() or behind)
        if word is None or word != before or spaced:
            starts.append(token)
        before, covered, last = word, max(covered, end), text[begin:end]
    bounds = [*starts, len(encoding.ids)]
    return [end for start, end in zip(bounds, bounds[1:]) for _ in range(start, end)]


def answers(subject: Subject, queries: Iterable[Query], *, causal: Optional[bool] = None, batch_tokens: Optional[int] = None,
            ragged: Optional[bool] = None,
            say: Callable[[str], None] = print) -> Iterator[tuple[Query, np.ndarray, np.ndarray]]:
    """Each query with the nats of its labels (float64 [P]) and whether they were the likeliest (bool [P]).

    Queries are best given longest first. ragged: documents of any lengths in a batch, or of one; None: as the module says.
    Out of memory: what did not fit is done in halves, and so is all that follows.
    """
    device = torch.device(subject.device)
    if ragged is None:
        ragged = device.type == "cuda" and masks_by_document(subject.model)
    limit, told, source = batch_tokens or BATCH_TOKENS[device.type], False, iter(queries)
    again: list[Query] = []  # read but not scored, the next one last
    with evaluating(subject.model):
        while (query := again.pop() if again else next(source, None)) is not None:
            batch, tokens, length = [query], len(query.ids), len(query.ids)
            while (query := again.pop() if again else next(source, None)) is not None:
                if tokens + len(query.ids) > limit or not ragged and len(query.ids) != length:
                    again.append(query)
                    break
                batch.append(query)
                tokens += len(query.ids)
            try:
                nats_K, hits_K = _predict(subject, batch, ragged, causal)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                nats_K = None  # go on outside: here the error keeps the memory in use
            if nats_K is None:
                if len(batch) == 1:
                    raise CramError(f"{subject.name}: no memory for one sequence of {length} tokens; use the CPU")
                again.extend(reversed(batch))
                limit = tokens // 2
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                if not told:
                    say(f"{subject.name}: out of memory with {tokens} tokens a batch; going on with fewer")
                told = True
                continue
            bounds = np.cumsum([len(query.labels) for query in batch])[:-1]
            yield from zip(batch, np.split(nats_K, bounds), np.split(hits_K, bounds))


def _predict(subject: Subject, batch: list[Query], ragged: bool, causal: Optional[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Nats (float64 [K]) and hits (bool [K]) of all the labels of a batch."""
    lengths = [len(query.ids) for query in batch]
    documents = Documents.from_lengths(lengths, subject.device)
    if not ragged:
        documents = Documents(documents.start_N, documents.end_N, lengths[0])
    starts = np.cumsum([0, *lengths[:-1]])
    positions_K = np.concatenate([start + np.asarray(query.positions, dtype=np.int64) for start, query in zip(starts, batch)])
    ids_N = np.fromiter((token for query in batch for token in query.ids), np.int64, sum(lengths))
    labels_K = np.fromiter((token for query in batch for token in query.labels), np.int64, len(positions_K))
    nats_K, hits_K = predict(subject.model, ids_N, documents, positions_K, labels_K, device=subject.device, causal=causal)
    return nats_K.cpu().numpy(), hits_K.cpu().numpy()


def _score(subject: Subject, queries: Iterator[Query], tokens: np.ndarray, which: np.ndarray, truncated: int,
           causal: Optional[bool], batch_tokens: Optional[int], say: Callable[[str], None]) -> Scores:
    if not tokens.all():
        number = int(np.flatnonzero(tokens[which] == 0)[0]) + 1
        raise CramError(f"{subject.name}: text {number} of {len(which)} has no token to score; remove the empty text")
    log_p, greedy = np.zeros(len(tokens)), np.ones(len(tokens), dtype=bool)
    done, total, told = 0, int(tokens.sum()), time.monotonic()
    for query, nats_P, hits_P in answers(subject, queries, causal=causal, batch_tokens=batch_tokens, say=say):
        log_p[query.item] -= nats_P.sum()
        greedy[query.item] &= hits_P.all()
        done += len(nats_P)
        if time.monotonic() - told > SAY_EVERY:
            say(f"{subject.name}: {done:,} of {total:,} tokens scored ({done / total:.0%})")
            told = time.monotonic()
    return Scores(log_p[which], tokens[which], greedy[which], truncated)


def _words(subject: Subject, context: str, sentence: str, variant: Variant) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """Token ids of context and sentence, one past the last token hidden with each, and where the sentence begins."""
    encoding = subject.tokenizer.encode(context + sentence, add_special_tokens=False)
    ends = range(1, len(encoding.ids) + 1) if variant == "original" else word_ends(context + sentence, encoding)
    return tuple(encoding.ids), tuple(ends), len(subject.encode(context)) if context else 0


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Spaces that end the context open the continuation: tokenizers write a word and the space before it as one token."""
    kept = context.rstrip()
    return kept, context[len(kept):] + continuation


def _distinct(items: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """The different items, and for each item which one it is: what is the same is scored once, and so to the last bit."""
    numbers = {item: number for number, item in enumerate(dict.fromkeys(items))}
    return list(numbers), np.array([numbers[item] for item in items], dtype=np.int64)


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda item: -lengths[item])
