"""The attention kernels on a card: the error rule against float64, bits, addresses, graphs. Run: scripts/test tests/gpu

What is right and how much may be missed: ``tests/kernels/attention_cases.py``. Every kernel compiles once per dtype,
head dimension and set of features, for a second or two; the first run takes some minutes.
"""

import contextlib

import pytest
import torch

from cram.config import load
from cram.model import build
from cram.objective import cross_entropy, select
from cram.ops import Documents, QKNorm, Rope, Sight, attention, sight
from tests.kernels.attention_cases import Case, excess

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32
EDGES = (0, 1, 31, 32, 33, 63, 64, 65, 0, 127, 128, 129, 5)  # around every tile size; 678 tokens, no multiple of any
PLAIN = {"norm": False, "rope": False}
EVERYTHING = {"heads": (4, 2), "causal": True}
FEATURES = {"window": {"window": 40}, "window of nothing": {"window": 0},
            "causal window, grouped": {"window": 70, "causal": True, "heads": (4, 1)},
            "softcap": {"softcap": 2.0, "rope": False}, "causal softcap": {"softcap": 2.0, "causal": True, "heads": (3, 1)},
            "rope alone": {"norm": False}, "norm alone": {"rope": False, "causal": True},
            "raw causal": {**PLAIN, "causal": True}, "padding": {"unseen": (1, 5, 10), "causal": True}}


@pytest.fixture(autouse=True)
def exact_products():
    """float32 means float32, whatever an earlier test asked for; compiled code of another test is forgotten."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
    torch.compiler.reset()


def move(x):
    return None if x is None else x.to(DEVICE)


def run(case, problem, fused=True, place=lambda x: x.clone()):
    """[o, dq, dk, dv, dq_gain, dk_gain] on the card. place: puts q, k, v where the kernels shall find them."""
    q, k, v = (place(move(x)).requires_grad_() for x in (problem.q, problem.k, problem.v))
    gains = [None if x is None else move(x).requires_grad_() for x in (problem.q_gain, problem.k_gain)]
    position, cos, sin = (move(x) for x in (problem.position, problem.cos, problem.sin))
    rope = None if cos is None else Rope(cos, sin)
    angles = None if fused or rope is None else (cos[position][:, None], sin[position][:, None])
    seen = Sight(fused, (move(problem.sees), move(problem.seen_by)), position, angles)
    qk_norm = None if gains[0] is None else QKNorm(*gains, problem.numbers["eps"])
    o = attention(q, k, v, documents=Documents(None, None, case.n), causal=case.causal, rope=rope, qk_norm=qk_norm, seen=seen,
                  softcap=case.softcap or None, scale=case.scale)
    leaves = [x for x in (q, k, v, *gains) if x is not None]
    found = iter(torch.autograd.grad(o, leaves, move(problem.do)))
    return [o.detach()] + [None if x is None else next(found) for x in (q, k, v, *gains)]


def check(case, dtype=None, **options):
    """The error rule; dtype: the one whose rounding is the measure, that of the case unless given."""
    problem = case.problem()
    found = [x if x is None else x.cpu() for x in run(case, problem, **options)]
    ratios = excess(found, problem, dtype or case.dtype)
    assert max(ratios) <= 1.0, ratios


# ---- right


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT16, FLOAT32], ids=str)
@pytest.mark.parametrize("head_dim", [32, 48, 64, 128])
@pytest.mark.parametrize("features", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_equals_float64(dtype, head_dim, features):
    check(Case(EDGES, head_dim=head_dim, dtype=dtype, **features))


@pytest.mark.parametrize("dtype, head_dim", [(BFLOAT16, 64), (FLOAT16, 128), (FLOAT32, 48)], ids=str)
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES)
def test_features(dtype, head_dim, features):
    check(Case(EDGES, head_dim=head_dim, dtype=dtype, **features))


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT32], ids=str)
def test_norm_and_rotation_before_the_kernel(dtype):
    check(Case(EDGES, head_dim=64, dtype=dtype, **EVERYTHING), fused=False)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 300])
def test_long_documents(causal, window):
    check(Case((2100, 3, 2049), heads=(1, 1), head_dim=64, dtype=BFLOAT16, causal=causal, window=window))


def test_tf32_is_as_exact_as_float16_which_has_as_many_bits():
    torch.set_float32_matmul_precision("high")
    check(Case(EDGES, head_dim=64, dtype=FLOAT32, **EVERYTHING), dtype=FLOAT16)


def test_one_token():
    check(Case((1,), head_dim=64, dtype=BFLOAT16, heads=(2, 1)))


def test_the_rule_notices_a_wrong_gradient():
    case = Case(EDGES, head_dim=64, dtype=BFLOAT16, **EVERYTHING)
    problem = case.problem()
    found = [x.cpu() for x in run(case, problem)]
    for number in range(len(found)):
        wrong = [x * (1.25 if i == number else 1.0) for i, x in enumerate(found)]
        assert excess(wrong, problem, BFLOAT16)[number] > 1.0, number


# ---- memory


def test_views_of_one_projection_give_the_same_bits():
    case = Case(EDGES, heads=(4, 2), head_dim=64, causal=True, dtype=BFLOAT16)
    problem = case.problem()
    o, dq, dk, dv, *_ = run(case, problem)
    fused_NP = torch.cat([move(x).flatten(1) for x in (problem.q, problem.k, problem.v)], 1)
    parts = iter(x.unflatten(1, (-1, 64)) for x in fused_NP.split([256, 128, 128], 1))
    views = run(case, problem, place=lambda x: next(parts).detach())
    assert fused_NP.stride(0) == 512 and all(torch.equal(a, b) for a, b in zip(views, (o, dq, dk, dv)))
    transposed = run(case, problem, place=lambda x: x.transpose(0, 1).contiguous().transpose(0, 1))  # heads first
    backwards = run(case, problem, place=lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))   # the last stride is not 1
    for other in (transposed, backwards):
        assert all(torch.equal(a, b) for a, b in zip(other, (o, dq, dk, dv)))


@pytest.mark.parametrize("head_dim", [48, 64])
def test_nan_in_neighbouring_memory_does_not_leak(head_dim):
    def among_nan(x):
        n, heads, k = x.shape
        buffer = torch.full((n + 256, heads + 1, k + 8), float("nan"), dtype=x.dtype, device=x.device)
        return buffer[128:-128, :-1, 4:-4].copy_(x)

    check(Case(EDGES, head_dim=head_dim, dtype=BFLOAT16, **EVERYTHING), place=among_nan)


def test_more_than_two_to_the_31_elements():
    """The last document of 2^31 + 2^18 elements a tensor has the same bits as alone."""
    n, heads, k, length = 2**20 + 128, 16, 128, 128
    if torch.cuda.mem_get_info()[0] < 56 * 2**30:
        pytest.skip("needs 56 GiB of free memory on the card")
    new = lambda: torch.randn(n, heads, k, dtype=BFLOAT16, device=DEVICE, generator=generator)
    generator = torch.Generator(DEVICE).manual_seed(0)
    q, k_, v, do = (new() for _ in range(4))
    found = []
    for first in (0, n - length):
        leaves = [x[first:].detach().requires_grad_() for x in (q, k_, v)]
        o = attention(*leaves, documents=Documents(None, None, length), causal=True)
        found.append([x[-length:].clone() for x in (o, *torch.autograd.grad(o, leaves, do[first:]))])
        del o, leaves
    assert n * heads * k > 2**31 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(x.isfinite().all() and x.any() for x in found[0])


# ---- the same every time, waiting for nothing


@pytest.mark.parametrize("fused", [True, False])
def test_twenty_repeats_give_the_same_bits(fused):
    case = Case((700, 1, 300, 1047), heads=(4, 2), head_dim=64, causal=False, dtype=BFLOAT16)
    problem = case.problem()
    first = run(case, problem, fused)
    for _ in range(19):
        assert all(torch.equal(a, b) for a, b in zip(run(case, problem, fused), first))


@contextlib.contextmanager
def no_synchronisation():
    """Waiting for the card is an error inside."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Packed:
    """Leaves of a small problem in rows of ``row``, and documents that may change."""

    def __init__(self, row, n=2048, heads=2, head_dim=64):
        torch.manual_seed(0)
        self.row, self.n = row, n
        self.leaves = [torch.randn(n, heads, head_dim, device=DEVICE, dtype=BFLOAT16, requires_grad=True) for _ in range(3)]
        self.leaves += [torch.ones(head_dim, device=DEVICE, requires_grad=True) for _ in range(2)]
        self.rope = Rope.table(row, head_dim, 10000.0, DEVICE)

    def documents(self, length):
        """Documents of this length, cut at the rows."""
        index = torch.arange(self.n, dtype=torch.int32)
        start = index // self.row * self.row + index % self.row // length * length
        end = torch.minimum(start + length, index // self.row * self.row + self.row)
        return Documents(start.to(DEVICE), end.to(DEVICE), self.row)

    def loss(self, documents, q, k, v, q_gain, k_gain):
        seen = sight(documents, self.n, causal=True, window=None, rope=self.rope, backend="triton", device=DEVICE)
        o = attention(q, k, v, documents=documents, causal=True, rope=self.rope, qk_norm=QKNorm(q_gain, k_gain, 1e-6),
                      seen=seen)
        return o.float().square().sum()


@pytest.mark.parametrize("row", [256, 1024])  # norm and rotation in the kernel, and before it
def test_nothing_waits_for_the_card(row):
    packed = Packed(row)
    documents = packed.documents(100)
    for waiting in (contextlib.nullcontext(), no_synchronisation()):  # the first call compiles the kernels
        with waiting:
            torch.autograd.grad(packed.loss(documents, *packed.leaves), packed.leaves)
    torch.cuda.synchronize()


@pytest.mark.parametrize("row", [256, 1024])
def test_compiled_as_one_graph_once_for_all_documents(row):
    packed = Packed(row)
    compiled = torch.compile(packed.loss, fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (100, row, 1, 37):
            documents = packed.documents(length)
            eager, whole = (torch.autograd.grad(loss(documents, *packed.leaves), packed.leaves)
                            for loss in (packed.loss, compiled))
            for a, b in zip(eager, whole, strict=True):
                assert (a - b).float().norm() <= 0.02 * b.float().norm() + 1e-3, length


# ---- a model


def gradients(attention, row, causal, autocast):
    """Mean loss and gradients of a small model over packed documents."""
    config = load("demo", [f"model.attention={attention}", "model.width=128", "model.heads=2", "model.qk_norm=true",
                           "model.zero_init=false",
                           "model.kv_heads=1"])
    model = build(config.model, 512, causal, seed=0).to(DEVICE)
    assert model.backend == attention
    ids = torch.randint(0, 512, (2048,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    positions = None if causal else torch.arange(0, 2048, 3, device=DEVICE)
    labels = ids.roll(-1) if causal else ids[positions]
    with torch.autocast(DEVICE, BFLOAT16, enabled=autocast):
        x_KD = select(model(ids, Packed(row).documents(90)), positions)
        loss = cross_entropy(model, x_KD, labels, z_loss=0.0, chunked=False)[0] / len(labels)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("row", [128, 1024])
def test_a_model_learns_the_same_with_triton_and_sdpa(row, causal):
    exact = gradients("sdpa", row, causal, autocast=False)
    for a, b in zip(gradients("triton", row, causal, autocast=False), exact, strict=True):
        assert (a - b).norm() <= 1e-3 * b.norm() + 1e-6
    rounded = {name: gradients(name, row, causal, autocast=True) for name in ("triton", "sdpa")}
    for ours, theirs, true in zip(rounded["triton"], rounded["sdpa"], exact, strict=True):
        assert (ours - true).norm() <= 2 * (theirs - true).norm() + 0.005 * true.norm() + 1e-6
