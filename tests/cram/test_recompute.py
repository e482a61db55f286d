"""Recomputation: the same bits, less memory, and nothing expensive computed twice."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from cram.errors import CramError
from cram.model import build
from cram.ops import Documents
from cram.schema import Model

SWITCHES = {"value_embeddings": True, "residual_scalars": True}
IDS = torch.randint(0, 50, (48,), generator=torch.Generator().manual_seed(0))
DOCUMENTS = Documents.from_lengths([15, 12, 21])


def make(backend="sdpa", **changes):
    model = build(Model(**{"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "zero_init": False, "init_std": 0.2} | changes),
                  50, causal=False, seed=0)
    model.backend = backend
    return model


def results(model, mode, forward=None):
    """Loss and gradients, which have to reach every parameter."""
    model.recompute = mode
    hidden_ND = (model if forward is None else forward)(IDS, DOCUMENTS)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden_ND), IDS.flip(0))
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def assert_same_bits(ours, theirs):
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("backend", ["sdpa", "triton"])  # triton: its twin on the CPU, the same operation to torch
@pytest.mark.parametrize("changes", [{}, SWITCHES, {"mlp": "relu2", "norm": "layernorm", "bias": True}])
def test_every_mode_trains_the_same_bits(mode, backend, changes):
    model = make(backend, **changes)
    assert_same_bits(results(model, mode), results(model, "none"))


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_the_same_bits_under_autocast(mode):
    model = make(**SWITCHES)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(results(model, mode), results(model, "none"))


class Watch(TorchDispatchMode):
    """Counts operations, and bytes of what they made that is still alive."""

    def __init__(self):
        super().__init__()
        self.count, self.alive = Counter(), WeakIdKeyDictionary()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        self.count[function.name()] += 1
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.alive[tensor.untyped_storage()] = None
        return result

    def bytes(self):
        return sum(storage.nbytes() for storage in self.alive.keys())


def watched(model, mode):
    """Bytes alive between forward and backward, operations of the forward and of the backward pass."""
    model.recompute = mode
    with Watch() as watch:
        loss = model(IDS, DOCUMENTS).sum()
        kept, forward = watch.bytes(), watch.count.copy()
        loss.backward()
    return kept, forward, watch.count - forward


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_less_is_kept(backend):
    none, selective, full = (watched(make(backend, layers=6), mode)[0] for mode in ("none", "selective", "full"))
    assert none > 1.4 * selective and selective > 2 * full


@pytest.mark.parametrize("backend, attention", [("sdpa", "aten::_scaled_dot_product_flash_attention_for_cpu"),
                                                ("triton", "cram::attention_forward")])
def test_selective_repeats_no_matrix_product_and_no_attention(backend, attention):
    model = make(backend, bias=True, tied=False)
    once, again, all_again = (watched(model, mode) for mode in ("none", "selective", "full"))
    assert once[1][attention] == again[1][attention] == 3
    for product in ("aten::mm", "aten::addmm", attention):
        assert again[2][product] == once[2][product], product
    assert all_again[2][attention] == 3
    assert all_again[2]["aten::addmm"] == 3 * 6  # q, k, v, out, gate, up; nothing needs down's result
    norm = "aten::rsqrt" if once[1]["aten::rsqrt"] else "aten::_fused_rms_norm"
    assert again[2][norm] > once[2][norm]  # but norms run again


def test_compiled_modes_train_the_same_bits():
    torch._dynamo.reset()  # its limit of graphs counts those of other tests
    model = make("triton", layers=1)
    plain = results(model, "none")
    for mode in ("selective", "full"):
        forward = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
        assert_same_bits(results(model, mode, forward), plain)


def test_without_gradients_nothing_is_kept_and_a_wrong_mode_is_refused():
    model = make()
    with torch.no_grad():
        expected = model(IDS, DOCUMENTS)
        for mode in ("selective", "full"):
            model.recompute = mode
            assert torch.equal(model(IDS, DOCUMENTS), expected)
    model.recompute = "some"
    with pytest.raises(CramError, match="train.recompute 'some' is none of none, selective, full"):
        model(IDS, DOCUMENTS)
