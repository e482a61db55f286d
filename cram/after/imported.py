"""Models of others behind our evaluation: a masked or causal language model of transformers takes the place of ours.

So reference numbers are reproduced with our code. The model is used as it is: the packed stream is unpacked into a padded
batch with an attention mask, read, and packed again. Its last linear layer is taken off and becomes ``logits``; what that layer
read are the hidden states (for BERT those behind the transform of its head).

Not supported, and said so: encoder-decoder models, models that change their logits behind the last linear layer, tokenizers
without the fast back end. Token types (BERT's segments) are 0 throughout: every document is a first segment.

Axes: N packed tokens, B documents, T tokens of the longest, D width of the hidden states, P positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import pickle
from pathlib import Path
from typing import Any, Iterator, Optional

import torch
import xxhash
from tokenizers import Tokenizer
from torch import Tensor, nn

from cram.errors import CramError
from cram.evaluate.subject import Subject
from cram.ops import Documents

OFFSET_POSITIONS = ("camembert", "data2vec-text", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod", "longformer", "mpnet")


class Imported(nn.Module):
    """A language model of transformers, ``Scorable`` (``cram.evaluate.subject``), fine-tunable, and safe to copy.

    trunk: the model without its last linear layer, so that what it calls logits are hidden states. head: that layer.
    """

    def __init__(self, model: nn.Module, causal: bool, row: int, pad: int):
        super().__init__()
        name, self.head = _last_linear(model)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Identity())
        self.trunk, self.causal, self.row, self.pad, self.vocab_size = model, causal, row, pad, self.head.out_features

    def forward(self, ids_N: Tensor, documents: Documents, causal: Optional[bool] = None) -> Tensor:
        """Token ids int64 [N] to hidden states [N, D]; zeros for tokens of no document. causal: the model's own, or None.

        Raises CramError for the other kind of attention, and for a document longer than the model can read.
        """
        if causal not in (None, self.causal):
            raise CramError(f"this {'causal' if self.causal else 'masked'} model cannot be asked as a "
                            f"{'causal' if causal else 'masked'} one")
        n, device = len(ids_N), ids_N.device
        start_N, end_N = documents.bounds(n, device)
        inside_N, position_N = end_N > start_N, documents.positions(n, device)
        document_N = (inside_N & (position_N == 0)).cumsum(0) - 1
        where = document_N[inside_N], position_N[inside_N]
        length = int(position_N.max()) + 1 if n else 0
        if length > self.row:
            raise CramError(f"a document of {length} tokens is more than the {self.row} that this model can read; cut it")
        if not inside_N.any():
            return self.head.weight.new_zeros(n, self.head.in_features)
        ids_BT = torch.full((int(document_N.max()) + 1, length), self.pad, dtype=torch.int64, device=device)
        seen_BT = torch.zeros_like(ids_BT)
        ids_BT[where], seen_BT[where] = ids_N[inside_N].long(), 1
        hidden_BTD = self.trunk(input_ids=ids_BT, attention_mask=seen_BT).logits
        hidden_ND = hidden_BTD.new_zeros(n, hidden_BTD.shape[-1])
        hidden_ND[inside_N] = hidden_BTD[where]
        return hidden_ND

    def logits(self, x_PD: Tensor) -> Tensor:
        """Hidden states [P, D] to logits over the vocabulary, float32 [P, V]."""
        return self.head(x_PD).float()

    def parameter_count(self) -> int:
        """Trainable numbers; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def open_imported(where: str | Path, device: str = "cpu") -> Subject:
    """A folder with a Hugging Face model, or its name on the hub, in float32.

    Raises CramError when transformers cannot load it, or it is none of the models described above.
    """
    need_transformers()
    import transformers
    from transformers.models.auto import modeling_auto

    name = str(where)
    config = _loaded(name, transformers.AutoConfig.from_pretrained)
    made = set(config.architectures or ())
    masked = made & _classes(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    causal = made & _classes(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    pretraining = made & _classes(modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES) - causal
    if config.is_encoder_decoder or not masked | causal | pretraining:
        stated = ", ".join(sorted(made)) or "a model of no stated architecture"
        raise CramError(f"{name}: {stated} is no masked or causal language model of one stack; give one, such as "
                        "BertForMaskedLM or GPT2LMHeadModel")
    kind = "causal" if causal and not masked else "masked"
    auto = transformers.AutoModelForCausalLM if kind == "causal" else transformers.AutoModelForMaskedLM
    with quiet():
        model, found = _loaded(name, auto.from_pretrained, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        missing = ", ".join(sorted(found["missing_keys"])[:3])
        raise CramError(f"{name}: the weights of {missing} are not in the file, so they would be random; give a model that was "
                        "saved with its language-model head")
    tokenizer = _loaded(name, transformers.AutoTokenizer.from_pretrained)
    if not getattr(tokenizer, "is_fast", False):
        raise CramError(f"{name}: its tokenizer has no fast back end (tokenizer.json); save it with a fast one")
    model.config.use_cache = False
    _refuse_unlike(name, model.eval(), kind)
    text_config = config.get_text_config()  # itself, where there is nothing but text
    special, row = _special(name, tokenizer, text_config, kind), _row(name, text_config, tokenizer)
    wrapped = Imported(model, kind == "causal", row, special["pad"]).to(device).eval()
    plain = _plain(tokenizer.backend_tokenizer)
    identity = {"weights": _weights_hash(wrapped), "tokenizer": xxhash.xxh3_128(plain.to_str().encode()).hexdigest()}
    notes = {"opening": _opening(tokenizer.backend_tokenizer)} if kind == "causal" else {}
    return Subject(Path(name).name, wrapped, plain, special, kind, row, device, identity, Path(name), notes=notes)


def need_transformers() -> None:
    """Raise CramError when transformers is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise CramError("models of Hugging Face need transformers: pip install 'cram-lm[eval]'")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars of transformers off the terminal for a while."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _loaded(name: str, load: Any, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return load(name, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        raise CramError(f"{name}: transformers cannot load it ({str(error).strip().splitlines()[0]}); give a folder with "
                        "config.json, weights and tokenizer.json, or the name of a model that the hub has") from error


def _classes(mapping: dict) -> set[str]:
    return {each for value in mapping.values() for each in (value if isinstance(value, tuple) else (value,))}


def _last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise CramError(f"{type(model).__name__}: its output layer is {type(head).__name__}, not a linear one; not supported")
    return next((name, module) for name, module in model.named_modules() if module is head)


@torch.no_grad()
def _refuse_unlike(name: str, model: nn.Module, kind: str) -> None:
    """Raise CramError when the logits are not those of the last linear layer, or the model looks ahead and should not."""
    _, head = _last_linear(model)
    read: list[Tensor] = []
    hook = head.register_forward_hook(lambda module, inputs, output: read.append(output))
    ids_BT = torch.arange(8).repeat(2, 1) + min(10, head.out_features - 9)
    ids_BT[1, -1] -= 1  # the rows differ in the last token alone
    logits_BTV = model(input_ids=ids_BT).logits
    hook.remove()
    if len(read) != 1 or not torch.equal(read[0], logits_BTV):
        raise CramError(f"{name}: {type(model).__name__} changes its logits behind the last linear layer; not supported")
    gap = (logits_BTV[0, -2] - logits_BTV[1, -2]).abs().max()
    ahead = bool(gap > 1e-6 * logits_BTV.abs().max())
    if ahead != (kind == "masked"):
        raise CramError(f"{name}: {type(model).__name__} {'sees' if ahead else 'does not see'} what comes later, which is not "
                        f"what a {kind} model does; its config.json (is_decoder, architectures) may be wrong")


def _special(name: str, tokenizer: Any, config: Any, kind: str) -> dict[str, int]:
    """Ids by our names: what opens a text (BERT's [CLS]; of causal models the token of beginning, or of the end where there is
    none, as GPT-2's <|endoftext|>), what ends it, and the others where there are any."""
    def first(*ids: Optional[int]) -> Optional[int]:
        return next((each for each in ids if each is not None), None)

    ends = config.eos_token_id  # some list several
    eos = first(tokenizer.eos_token_id, ends[0] if isinstance(ends, list) else ends)
    bos = first(tokenizer.bos_token_id, config.bos_token_id)
    opens = (bos, eos) if kind == "causal" else (tokenizer.cls_token_id, bos)
    found = {"pad": first(tokenizer.pad_token_id, eos, 0), "unk": tokenizer.unk_token_id, "cls": first(*opens),
             "sep": eos if kind == "causal" else first(tokenizer.sep_token_id, eos),
             "mask": tokenizer.mask_token_id if kind == "masked" else None}
    needed = ("cls", "sep", "mask") if kind == "masked" else ("cls", "sep")
    if missing := [each for each in needed if found[each] is None]:
        raise CramError(f"{name}: the tokenizer of this {kind} model has no {' and no '.join(missing)} token; complete its "
                        "special_tokens_map.json or tokenizer_config.json")
    return {each: number for each, number in found.items() if number is not None}


def _opening(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer itself puts before a text: Llama's a beginning, GPT-2's nothing."""
    encoded = tokenizer.encode("a")
    return [number for number, _ in itertools.takewhile(lambda pair: pair[1], zip(encoded.ids, encoded.special_tokens_mask))]


def _row(name: str, config: Any, tokenizer: Any) -> int:
    """Tokens of the longest sequence: what the positions allow, and the tokenizer. CramError when neither says so."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1  # positions are counted from there
    stated = [size for size in (positions, tokenizer.model_max_length) if size is not None and 0 < size < 10**9]
    if not stated:
        raise CramError(f"{name}: says nowhere how long a sequence may be; set model_max_length in its tokenizer_config.json")
    return min(stated)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither cuts nor pads, and reads special tokens in a text as text."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    copy.encode_special_tokens = True
    return copy


def _weights_hash(model: nn.Module) -> str:
    """xxh3-128 of all weights with their names, hexadecimal: the same wherever the model was loaded from."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
