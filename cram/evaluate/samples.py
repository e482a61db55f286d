"""Text of the model, for people to look at: continued prompts (causal) and filled blanks (masked)."""

from __future__ import annotations

from typing import Any, Optional

import torch

from cram.after.generate import RereadingReader, Text, continue_texts, open_reader, read_whole
from cram.after.sampling import Sampling
from cram.errors import CramError
from cram.evaluate.heldout import PROTECTED, evaluating

BLANK = "[MASK]"


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompt: str, *, tokens: int, temperature: float, seed: int = 0,
             device: str | torch.device = "cpu", cached: bool = True) -> str:
    """``prompt`` and at most ``tokens`` more, up to [SEP].

    temperature 0: always the likeliest token. Else drawn from a private generator seeded with ``seed``. cached: False to
    call the model for every token on all that is there: one that is compiled or in shards must be called as a whole.
    """
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    text = Text(tokenizer, [cls, *tokenizer.encode(prompt, add_special_tokens=False).ids])
    with evaluating(model):
        reader = (open_reader(model, 1, len(text.ids) + tokens, None, device) if cached else
                  RereadingReader(model, 1, device))
        continue_texts(reader, [text], tokens=tokens, sampling=Sampling(temperature), seeds=[seed], end=sep,
                       never=[token for token in range(PROTECTED) if token != sep])
    return tokenizer.decode(text.ids)


def encode_blanks(tokenizer: Any, sentence: str, where: str = "evaluate.blanks") -> list[int]:
    """``[CLS] ... [MASK] ... [SEP]``: each [MASK] stands for one token.

    Byte-level BPE writes a word and the space before it as one token, so a space before [MASK] belongs to what is
    hidden: "the [MASK] of" becomes "the", MASK, " of". Without it, [MASK] continues the word. WordPiece drops spaces
    and is not affected. Raises CramError when there is nothing to fill.
    """
    pieces = sentence.split(BLANK)
    if len(pieces) == 1:
        raise CramError(f"{where}: {sentence!r} has no {BLANK} to fill; put one where a token is missing")
    mask = tokenizer.token_to_id(BLANK)
    ids = [tokenizer.token_to_id("[CLS]")]
    for piece in pieces[:-1]:
        ids += [*tokenizer.encode(piece.removesuffix(" "), add_special_tokens=False).ids, mask]
    return [*ids, *tokenizer.encode(pieces[-1], add_special_tokens=False).ids, tokenizer.token_to_id("[SEP]")]


@torch.no_grad()
def fill_blanks(model: Any, tokenizer: Any, sentence: str, *, top: int = 5,
                device: str | torch.device = "cpu") -> list[list[dict]]:
    """For each [MASK] the ``top`` likeliest ordinary tokens: {"token": text, "probability"}, likeliest first.

    A model that is built causal is taken for a hybrid one: it sees both sides here too, but predicts a token at the
    position before it.
    """
    ids = encode_blanks(tokenizer, sentence)
    places = [place - model.causal for place, token in enumerate(ids) if token == tokenizer.token_to_id(BLANK)]
    with evaluating(model):
        logits_BV = model.logits(read_whole(model, ids, device, causal=False)[places]).float().cpu()
    probabilities_BV = logits_BV.softmax(1)
    probabilities_BV[:, :PROTECTED] = 0
    best = probabilities_BV.topk(top, dim=1)
    return [[{"token": tokenizer.decode([token]), "probability": probability} for token, probability in zip(*row)]
            for row in zip(best.indices.tolist(), best.values.tolist())]


def one_sample(model: Any, tokenizer: Any, evaluate: Any, *, tokens: int = 24,
               device: str | torch.device = "cpu") -> Optional[str]:
    """A short look for the middle of a run: the first prompt continued, or the first sentence with its blanks filled
    (likeliest token first); None when ``evaluate`` (``cram.schema.Evaluate``) lists none."""
    if model.causal:
        return generate(model, tokenizer, evaluate.prompts[0], tokens=tokens, temperature=0.0, device=device,
                        cached=False) if evaluate.prompts else None
    if not evaluate.blanks:
        return None
    sentence = evaluate.blanks[0]
    guesses = [", ".join(repr(guess["token"]) for guess in blank)
               for blank in fill_blanks(model, tokenizer, sentence, device=device)]
    return f"{sentence}  ->  {'; '.join(guesses)}"
