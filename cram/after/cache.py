"""The key/value cache: what a causal model keeps of the tokens it has read, so that each is read once.

The layers are the model's own: a ``CachedView`` takes the place of its ``View`` and says what attention is. It gives new
keys and values, normalised and rotated by their position in their own sequence, to the cache, and lets the queries see
what lies there. Sequences of different lengths are read packed, without padding, the first time; from then on each gets
the same number of tokens more, mostly one.

In 4 bits: keys and values rounded in groups of 64 along the hidden dimension (FlexGen, Sheng et al. 2023, section 4; there
the prompt's own attention is exact). Here a token is always read back from its 4 bits, in a prompt as well, so that what a
text costs does not depend on the pieces it was read in, and ``RoundedCache`` measures on packed text what generation gets.

Axes: N new tokens, packed; B sequences; S new tokens a sequence; T positions; H query heads, G key/value heads, K head
dimension, C = G K.
"""

from __future__ import annotations

import math
from typing import Any, Optional, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cram.after.round_to_nearest import Levels, decode, encode, find_levels, pack, round_trip, unpack
from cram.layers import NO_TOKEN, Attention, View
from cram.ops import Documents, QKNorm, Rope, attention, normalise_and_rotate, sight

GROUP = 64


class Exact:
    """Rows of C numbers at [B, T], kept as they come."""

    def __init__(self, rows: int, capacity: int, width: int, like: Tensor):
        self.x_BTC = like.new_zeros(rows, capacity, width)

    def write(self, row_N: Tensor, position_N: Tensor, x_NC: Tensor) -> Tensor:
        """Keep x_NC; returns it as it will be read."""
        self.x_BTC[row_N, position_N] = x_NC.to(self.x_BTC.dtype)
        return x_NC

    def read(self, low: int, high: int) -> Tensor:
        """The numbers at positions low to high, [B, T, C]."""
        return self.x_BTC[:, low:high]

    def keep(self, rows: Tensor) -> None:
        self.x_BTC = self.x_BTC[rows]

    @property
    def bytes(self) -> int:
        return self.x_BTC.nbytes


class Rounded:
    """Rows of C numbers at [B, T], in ``bits`` bits each and a scale and a low for every group."""

    def __init__(self, rows: int, capacity: int, width: int, like: Tensor, bits: int = 4):
        self.bits, self.dtype, self.group = bits, like.dtype, math.gcd(GROUP, width)
        self.codes_BTP = torch.zeros(rows, capacity, width * bits // 8, dtype=torch.uint8, device=like.device)
        shape = (rows, capacity, width // self.group)
        self.levels = Levels(*(torch.zeros(shape, dtype=torch.float16, device=like.device) for _ in range(2)))

    def write(self, row_N: Tensor, position_N: Tensor, x_NC: Tensor) -> Tensor:
        """Keep x_NC; returns it as it will be read."""
        levels = find_levels(x_NC, self.bits, self.group)
        codes_NC = encode(x_NC, levels, self.bits)
        self.codes_BTP[row_N, position_N] = pack(codes_NC, self.bits)
        for kept, new in zip(self.levels, levels):
            kept[row_N, position_N] = new
        return decode(codes_NC, levels, x_NC.dtype)

    def read(self, low: int, high: int) -> Tensor:
        """The numbers at positions low to high, [B, T, C]."""
        return decode(unpack(self.codes_BTP[:, low:high], self.bits), Levels(*(part[:, low:high] for part in self.levels)),
                      self.dtype)

    def keep(self, rows: Tensor) -> None:
        self.codes_BTP, self.levels = self.codes_BTP[rows], Levels(*(part[rows] for part in self.levels))

    @property
    def bytes(self) -> int:
        return self.codes_BTP.nbytes + sum(part.nbytes for part in self.levels)


class Cache:
    """Keys and values of every layer of ``model`` (``cram.model.Transformer``) for ``rows`` sequences of at most ``capacity``
    tokens each. bits: None for the model's own floating-point numbers, or 4."""

    def __init__(self, model: Any, rows: int, capacity: int, bits: Optional[int] = None):
        if bits not in (None, 4):
            raise ValueError(f"a cache of {bits} bits; None or 4")
        self.model, self.capacity, self.lengths = model, capacity, [0] * rows
        weight = model.embedding.weight
        make = Exact if bits is None else Rounded
        self.layers = {block.attention: tuple(make(rows, capacity, width_of_keys(model.config), weight) for _ in "kv")
                       for block in model.blocks[:model.depth]}
        self.rope = rope_table(model, capacity)
        self.last_B = torch.full((rows,), NO_TOKEN, device=weight.device)   # token of each sequence

    def extend(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Read the next tokens of each sequence, at least one; returns their hidden states, packed [N, D].

        Raises ValueError for more tokens than the capacity, and for pieces of different lengths but in the first call.
        """
        counts = [len(piece) for piece in pieces]
        if len(counts) != len(self.lengths) or not all(counts):
            raise ValueError(f"pieces of {counts} tokens for {len(self.lengths)} sequences: give each at least one")
        if max(length + count for length, count in zip(self.lengths, counts)) > self.capacity:
            raise ValueError(f"sequences of {self.lengths} and {counts} tokens more: the cache holds {self.capacity} each")
        device = self.model.embedding.weight.device
        ids_N = torch.tensor([token for piece in pieces for token in piece], device=device)
        hidden_ND = self.model.hidden(CachedView(self, ids_N, counts))
        self.last_B = ids_N[torch.tensor(counts, device=device).cumsum(0) - 1]
        self.lengths = [length + count for length, count in zip(self.lengths, counts)]
        return hidden_ND

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these sequences alone, in this order."""
        index = torch.tensor(rows, device=self.model.embedding.weight.device)
        for store in (store for pair in self.layers.values() for store in pair):
            store.keep(index)
        self.last_B = self.last_B[index]
        self.lengths = [self.lengths[row] for row in rows]

    @property
    def bytes(self) -> int:
        """What the keys and values of all layers take."""
        return sum(store.bytes for pair in self.layers.values() for store in pair)


class CachedView:
    """The view of tokens that continue the sequences of a cache, ``counts`` of them each."""

    def __init__(self, cache: Cache, ids_N: Tensor, counts: list[int]):
        model, device = cache.model, ids_N.device
        self.cache, self.ids_N, self.rows = cache, ids_N, len(counts)
        self.row_N = torch.arange(self.rows, device=device).repeat_interleave(torch.tensor(counts, device=device))
        self.positions_N = torch.cat([torch.arange(length, length + count)
                                      for length, count in zip(cache.lengths, counts)]).to(device)
        self.packed = None
        if not any(cache.lengths):  # nothing is there but what comes now
            documents = Documents.from_lengths(counts, device)
            how = {"causal": True, "window": model.window, "rope": None, "backend": model.backend}
            self.packed = {"documents": documents, **how, "seen": sight(documents, len(ids_N), **how, device=device)}
            return
        if len(set(counts)) > 1:
            raise ValueError(f"pieces of {counts} tokens: sequences that have begun go on by the same number of tokens each")
        position_BS = self.positions_N.view(self.rows, -1)
        reach = cache.capacity if model.window is None else model.window
        self.low, self.high = max(0, min(cache.lengths) - reach), max(cache.lengths) + counts[0]
        key_T = torch.arange(self.low, self.high, device=device)
        self.seen_B1ST = ((key_T <= position_BS[..., None]) & (key_T >= position_BS[..., None] - reach))[:, None]

    def previous(self) -> Tensor:
        """As ``cram.layers.View.previous``; what came before these pieces is known to the cache."""
        first_N = torch.cat((self.row_N.new_ones(1), self.row_N.diff())) > 0
        return torch.where(first_N, self.cache.last_B[self.row_N], self.ids_N.roll(1))

    def attend(self, layer: Attention, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, qk_norm: Optional[QKNorm]) -> Tensor:
        """As ``cram.layers.View.attend``, after keeping the keys and values."""
        q_NHK, k_NGK = prepare(q_NHK, k_NGK, qk_norm, self.positions_N, self.cache.rope)
        k_NGK, v_NGK = (store.write(self.row_N, self.positions_N, x_NGK.flatten(1)).view_as(x_NGK)
                        for store, x_NGK in zip(self.cache.layers[layer], (k_NGK, v_NGK)))
        if self.packed is not None:
            return attention(q_NHK, k_NGK, v_NGK, **self.packed)
        k_BGTK, v_BGTK = (store.read(self.low, self.high).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
                          for store in self.cache.layers[layer])
        q_BHSK = q_NHK.to(k_BGTK.dtype).unflatten(0, (self.rows, -1)).transpose(1, 2)
        o_BHSK = F.scaled_dot_product_attention(q_BHSK, k_BGTK, v_BGTK, attn_mask=self.seen_B1ST,
                                                enable_gqa=q_BHSK.shape[1] != k_BGTK.shape[1])
        return o_BHSK.transpose(1, 2).flatten(0, 1).type_as(q_NHK)


def prepare(q_NHK: Tensor, k_NGK: Tensor, qk_norm: Optional[QKNorm], positions_N: Tensor,
            rope: Optional[Rope]) -> tuple[Tensor, Tensor]:
    """Queries and keys, normalised and rotated where the model does that."""
    q_gain, k_gain, eps = qk_norm or (None, None, 0.0)
    where = (positions_N, *rope) if rope is not None else (None, None, None)
    return tuple(normalise_and_rotate(x, gain, eps, *where).type_as(x) for x, gain in ((q_NHK, q_gain), (k_NGK, k_gain)))


def width_of_keys(config: Any) -> int:
    """C, the numbers in the keys of one token and layer."""
    return (config.kv_heads or config.heads) * (config.width // config.heads)


def rope_table(model: Any, positions: int) -> Optional[Rope]:
    """The rotary angles of a model, as it has them at the end of its training; None when it has none."""
    config = model.config
    if config.position != "rope":
        return None
    return Rope.table(positions, config.width // config.heads, model.rope_base, model.embedding.weight.device)


class RoundedView(View):
    """A view of whole documents that sees keys and values as a cache of 4 bits gives them back."""

    def attend(self, layer: Attention, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor, qk_norm: Optional[QKNorm]) -> Tensor:
        """As ``cram.layers.View.attend``."""
        q_NHK, k_NGK = prepare(q_NHK, k_NGK, qk_norm, self.positions_N, self.attention["rope"])
        k_NGK, v_NGK = (round_trip(x.flatten(1), 4, math.gcd(GROUP, x[0].numel())).view_as(x) for x in (k_NGK, v_NGK))
        done = {"rope": None, "seen": self.attention["seen"]._replace(fused=False, angles=None)}
        return attention(q_NHK, k_NGK, v_NGK, **self.attention | done)


class RoundedCache:
    """A causal model as it is when read through a cache of 4 bits, for scoring packed text (``cram.evaluate.heldout``)."""

    causal = True

    def __init__(self, model: Any):
        self.model, self.vocab_size, self.logits, self.eval, self.train = (
            model, model.vocab_size, model.logits, model.eval, model.train)

    @property
    def training(self) -> bool:
        return self.model.training

    def __call__(self, ids_N: Tensor, documents: Documents, causal: Optional[bool] = None) -> Tensor:
        """Hidden states [N, D]. causal: None or True; what looks ahead has no use for a cache."""
        if causal is False:
            raise ValueError("a key/value cache is for causal models")
        model = self.model
        return model.hidden(RoundedView(model.config, ids_N, documents, causal=True, window=model.window,
                                        rope_base=model.rope_base, backend=model.backend))


@torch.no_grad()
def cached_nats(subject: Any, ids: Sequence[int], kv_bits: Optional[int] = None, *, block: int = 1) -> Tensor:
    """Nats of ids[1:], each given all before it, float64 [len(ids) - 1], read through the cache ``block`` tokens at a time.

    ids: with [CLS] in front, as the model was trained. subject: ``cram.evaluate.subject.Subject``, ours and not masked.
    """
    cache, nats = Cache(subject.model, 1, len(ids), kv_bits), []
    for begin in range(0, len(ids) - 1, block):
        piece = ids[begin:min(begin + block, len(ids) - 1)]
        labels = torch.tensor(ids[begin + 1:begin + 1 + len(piece)], device=subject.device)
        nats.append(F.cross_entropy(subject.model.logits(cache.extend([piece])), labels, reduction="none").double())
    return torch.cat(nats).cpu()
