"""The tokenizer of a run as transformers loads it, with the special tokens where the model was trained to see them."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from cram.evaluate.subject import SPECIAL


def stock_tokenizer(tokenizer: Tokenizer, row: int, causal: bool) -> Any:
    """A ``PreTrainedTokenizerFast`` that encodes as we do: ``[CLS] text`` for a causal model, ``[CLS] text [SEP]`` for a
    masked one, where it also takes pairs.

    A [MASK] takes the space before it, so that "the [MASK] of" is "the", [MASK], " of", as in ``samples.encode_blanks``.
    Unlike here, "[SEP]" and the like in a text are read as the special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    cls, sep, mask = (SPECIAL[name] for name in ("cls", "sep", "mask"))
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["lstrip"] |= token["content"] == mask
    stock = Tokenizer.from_str(json.dumps(content))
    pattern = {"single": f"{cls} $A", "pair": f"{cls} $A $B"} if causal else {
        "single": f"{cls} $A {sep}", "pair": f"{cls} $A {sep} $B:1 {sep}:1"}
    stock.post_processor = TemplateProcessing(
        **pattern, special_tokens=[(token, stock.token_to_id(token)) for token in (cls, sep)])
    names = {"bos_token": cls, "eos_token": sep} if causal else {"cls_token": cls, "sep_token": sep, "mask_token": mask}
    return PreTrainedTokenizerFast(
        tokenizer_object=stock, model_max_length=row, clean_up_tokenization_spaces=False, pad_token=SPECIAL["pad"],
        unk_token=SPECIAL["unk"], padding_side="left" if causal else "right",
        model_input_names=["input_ids", "attention_mask"], **names)
