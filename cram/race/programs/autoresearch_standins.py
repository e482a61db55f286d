"""What autoresearch imports and may not be installed here: stand-ins, said aloud; and our tokenizer in the place of its own."""

import importlib.util
import os
import sys
import types

import torch
import torch.nn.functional as F


class SharedEncoding:
    """The shared tokenizer as autoresearch asks its own: a document begins with [CLS]."""

    def __init__(self, path):
        self.path = path

    @property
    def tokenizer(self):
        from tokenizers import Tokenizer
        if "loaded" not in vars(self):
            self.loaded = Tokenizer.from_file(self.path)
        return self.loaded

    def __reduce__(self):
        return SharedEncoding, (self.path,)

    @property
    def n_vocab(self):
        return self.tokenizer.get_vocab_size()

    def encode_single_token(self, token):
        return self.tokenizer.token_to_id("[CLS]")

    def encode_ordinary(self, text):
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_ordinary_batch(self, texts, num_threads=1):
        return [list(each.ids) for each in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids):
        return self.tokenizer.decode(ids)


def attend(q_BTHD, k_BTHD, v_BTHD, causal=True, window_size=(-1, -1)):
    """FlashAttention's function by torch's own attention."""
    length, left = q_BTHD.shape[1], window_size[0]
    q, k, v = (each.transpose(1, 2) for each in (q_BTHD, k_BTHD, v_BTHD))
    if left < 0 or left >= length:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)[None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance <= left), enable_gqa=True)
    return out.transpose(1, 2)


def prepare(checkout, sdpa=False):
    """Make its train.py importable. sdpa: torch's attention even where the package 'kernels' is there (scoring)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    sys.path.insert(1, checkout)
    for name in ("rustbpe", "tiktoken", "requests"):        # to make a tokenizer and to download: neither is done
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
    if sdpa or importlib.util.find_spec("kernels") is None:
        if not sdpa:
            print("race: the package 'kernels' is not installed: torch's attention stands in for FlashAttention 3", flush=True)
        module = types.ModuleType("kernels")
        flash = types.SimpleNamespace(flash_attn_func=attend)
        module.get_kernel = lambda repository: types.SimpleNamespace(flash_attn_interface=flash)
        sys.modules["kernels"] = module
