"""What every operation of a step costs: FLOPs, bytes, seconds, and the memory that it leaves.

FLOPs are torch's own (``torch.utils.flop_counter``), which counts matrix products and attention; what it does not know
(attention on the CPU, our own operations) is added here. Work element by element is told apart, as an estimate: one for
each number written.

Bytes are what an operation must move at least: inputs once, outputs once, broadcast axes once, of a table only the rows that
are looked up. Views are free. What a fused operation moves inside itself is not seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from cram.insight.profile.marks import between, now
from cram.insight.profile.memory import Storages
from cram.insight.profile.watch import Label, Watch

KINDS = {  # by the operation's name; what begins with none of these is elementwise
    "matrix product": ("mm", "addmm", "bmm", "baddbmm", "_scaled_mm", "linear_cross_entropy"),
    "attention": ("_scaled_dot_product", "attention_", "_varlen_attn", "flex_attention", "_flash_attention",
                  "_efficient_attention"),
    "reduction": ("_fused_rms_norm", "native_layer_norm", "_log_softmax", "_softmax", "nll_loss", "sum", "mean", "var",
                  "linalg_vector_norm", "norm", "amax", "logsumexp"),
    "look-up": ("embedding", "index", "gather", "scatter", "_index"),
    "copy": ("copy", "clone", "_to_copy", "cat", "stack", "fill", "zero", "ones", "full", "_foreach_copy", "arange",
             "scalar_tensor", "repeat")}
NO_WORK = ("empty", "new_empty", "_local_scalar_dense", "_unsafe_view", "_reshape_alias", "detach", "alias", "lift_fresh")
WRITES_ONLY = ("copy_", "fill_", "zero_")   # what they write they do not read


class Key(NamedTuple):
    """What costs are summed by."""

    label: Label
    kind: str
    name: str


@dataclass
class Cost:
    """elementwise: an estimate, one for each number written by what flop_counter does not count."""

    calls: int = 0
    flops: int = 0
    elementwise: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def add(self, other: "Cost") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Operations(TorchDispatchMode):
    """``costs``: by whose turn it was, kind and name. storages: what it tells of every output. clock: as for ``marks.now``."""

    def __init__(self, watch: Watch, storages: Storages, clock: str):
        super().__init__()
        self.watch, self.storages, self.clock = watch, storages, clock
        self.costs: dict[Key, Cost] = defaultdict(Cost)
        self._marks: list[tuple[Key, Any, Any]] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options, label = options or {}, self.watch.label
        start = now(self.clock)
        out = function(*arguments, **options)
        end = now(self.clock)
        for made in tensors(out):
            self.storages.saw(made, label)
        packet = function._overloadpacket
        name = packet.__name__
        self.storages.briefly(workspace(name, arguments), label)
        if not is_free(function, name, arguments, out):
            key = Key(label, kind_of(name), name)
            self._marks.append((key, start, end))
            self.costs[key].add(Cost(1, flops(packet, arguments, options, out), *moved(function, key, arguments, options, out)))
        return out

    def settle(self) -> None:
        """Turn marks into seconds. On a card: wait for it before."""
        for key, start, end in self._marks:
            self.costs[key].seconds += between(start, end)
        self._marks.clear()


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def kind_of(name: str) -> str:
    """The longest beginning decides: ``mm`` is a matrix product, ``mm_`` would be, ``mul`` is not."""
    bare = name.removesuffix("_").removeprefix("new_")
    if bare in KINDS["matrix product"]:
        return "matrix product"
    return next((kind for kind, names in KINDS.items() if kind != "matrix product" and bare.startswith(names)), "elementwise")


def is_free(function, name: str, arguments: tuple, out: Any) -> bool:
    """Whether nothing is read or written: views, and memory that nobody has filled yet."""
    return function.is_view or name.startswith(NO_WORK) or name == "t" or not tensors((arguments, out))


def flops(packet, arguments: tuple, options: dict, out: Any) -> int:
    """By torch's formula, or ours where it has none; 0 for what neither knows."""
    formula = flop_registry.get(packet) or OURS.get(str(packet))
    return int(formula(*arguments, **options, out_val=out)) if formula else 0


def moved(function, key: Key, arguments: tuple, options: dict, out: Any) -> tuple[int, int]:
    """(numbers written by an operation without FLOPs of its own, bytes read and written)."""
    written, kept = [], []
    schema = function._schema.arguments
    given = [*zip(schema, arguments), *((each, options[each.name]) for each in schema if each.name in options)]
    for each, value in given:
        changed = each.alias_info is not None and each.alias_info.is_write
        written += tensors(value) if changed else []
        kept += [] if changed and (key.name in WRITES_ONLY or each.is_out) else tensors(value)
    mutated = {tensor.untyped_storage()._cdata for tensor in written}
    written += [tensor for tensor in tensors(out) if tensor.untyped_storage()._cdata not in mutated]
    numbers = sum(tensor.numel() for tensor in written)
    read = sum(map(extent, kept))
    if key.kind == "look-up" and not key.name.startswith(("embedding_dense_backward", "index_add", "index_put", "scatter")):
        read = min(read, sum(map(extent, kept[1:])) + sum(map(extent, written)))  # of the table the rows that are asked for
    counts = 0 if key.kind in ("matrix product", "attention", "look-up", "copy") else numbers
    return counts, read + sum(map(extent, written))


def extent(tensor: Tensor) -> int:
    """Bytes of the distinct numbers of a tensor: an axis of stride 0 is one number wide."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride()) if stride or not size]
    return math.prod(sizes) * tensor.element_size()


def workspace(name: str, arguments: tuple) -> int:
    """Bytes that our own operations hold while they run and no operation returns: the chunk of logits."""
    if name != "linear_cross_entropy":
        return 0
    x_PD, weight_VD, chunk = arguments[0], arguments[1], arguments[6]
    return min(chunk, len(x_PD)) * len(weight_VD) * x_PD.element_size()


def _head(x_PD: Tensor, weight_VD: Tensor, *rest, out_val) -> int:
    gradients = rest[-1]  # both are there when the forward pass ends: three products, else one
    return (3 if gradients else 1) * 2 * x_PD.numel() * len(weight_VD)


def _pairs(q_NHK: Tensor, sees_2N: Tensor) -> int:
    """FLOPs of one product of attention over the pairs that see each other; what tiles compute beside them is left out."""
    return 2 * q_NHK.shape[1] * q_NHK.shape[2] * int((sees_2N[1] - sees_2N[0]).clamp(min=0).sum())


def _cpu_forward(q, k, v, *rest, out_val, **options) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _cpu_backward(do, q, k, v, *rest, out_val, **options) -> int:
    return sdpa_backward_flop_count(do.shape, q.shape, k.shape, v.shape)


def _triton_forward(q, k, v, sees, *rest, out_val, **options) -> int:
    return 2 * _pairs(q, sees)


def _triton_backward(do, q, k, v, o, lse, sees, *rest, out_val, **options) -> int:
    return 5 * _pairs(q, sees)


OURS: dict[str, Callable] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": _cpu_forward,
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": _cpu_backward,
    "cram.linear_cross_entropy": _head, "cram.attention_forward": _triton_forward,
    "cram.attention_backward": _triton_backward}
