"""Text of the model, for people to look at: continued prompts (causal) and filled blanks (masked)."""

from __future__ import annotations

from typing import Any, Optional

import torch

from cram.errors import CramError
from cram.evaluate.heldout import PROTECTED, evaluating
from cram.ops import Documents

BLANK = "[MASK]"


def _hidden(model: Any, ids: list[int], device: str | torch.device, causal: Optional[bool] = None) -> torch.Tensor:
    """Hidden states [N, D] of one document. causal: None as the model was built."""
    start_N = torch.zeros(len(ids), dtype=torch.int32, device=device)
    return model(torch.tensor(ids, device=device), Documents(start_N, start_N + len(ids), len(ids)), causal)


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompt: str, *, tokens: int, temperature: float, seed: int = 0,
             device: str | torch.device = "cpu") -> str:
    """``prompt`` and at most ``tokens`` more, up to [SEP]; the whole prefix is read again for each (no cache).

    temperature 0: always the likeliest token. Else drawn from a private generator seeded with ``seed``.
    """
    generator = torch.Generator().manual_seed(seed)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    never = [token for token in range(PROTECTED) if token != sep]
    ids = [cls, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    with evaluating(model):
        for _ in range(tokens):
            logits_V = model.logits(_hidden(model, ids, device)[-1:])[0].float().cpu()
            logits_V[never] = -torch.inf
            if temperature == 0:
                token = int(logits_V.argmax())
            else:
                token = int(torch.multinomial(torch.softmax(logits_V / temperature, 0), 1, generator=generator))
            if token == sep:
                break
            ids.append(token)
    return tokenizer.decode(ids[1:])


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
        logits_BV = model.logits(_hidden(model, ids, device, causal=False)[places]).float().cpu()
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
        return generate(model, tokenizer, evaluate.prompts[0], tokens=tokens, temperature=0.0,
                        device=device) if evaluate.prompts else None
    if not evaluate.blanks:
        return None
    sentence = evaluate.blanks[0]
    guesses = [", ".join(repr(guess["token"]) for guess in blank)
               for blank in fill_blanks(model, tokenizer, sentence, device=device)]
    return f"{sentence}  ->  {'; '.join(guesses)}"
