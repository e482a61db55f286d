"""Linear layer and cross-entropy in chunks, against autograd in float64 over whole logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from cram._kernels.loss import CACHED_ROWS, CHUNK_BYTES, linear_cross_entropy, linear_cross_entropy_op, rows_per_chunk
from cram.model import build
from cram.objective import IGNORE, cross_entropy, select
from cram.ops import Documents
from cram.schema import Model


def inputs(p=50, d=16, v=33, dtype=torch.float32, seed=0):
    """x, weight and labels, two rows in five without a label; logits of standard deviation 2."""
    generator = torch.Generator().manual_seed(seed)
    x_PD = torch.randn(p, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight_VD = (2 * d ** -0.5 * torch.randn(v, d, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    labels_P = torch.randint(0, v, (p,), generator=generator)
    labels_P[torch.rand(p, generator=generator) < 0.4] = IGNORE
    return x_PD, weight_VD, labels_P


def plain(x_PD, weight_VD, labels_P, softcap=None, z_loss=0.0):
    """The loss as the model and the objective compute it, over whole logits."""
    logits_PV = F.linear(x_PD, weight_VD)
    logits_PV = logits_PV if logits_PV.dtype is torch.float64 else logits_PV.float()
    if softcap is not None:
        logits_PV = softcap * torch.tanh(logits_PV / softcap)
    loss = F.cross_entropy(logits_PV, labels_P.long(), ignore_index=IGNORE, reduction="sum")
    return loss + z_loss * (torch.logsumexp(logits_PV, -1).square() * (labels_P != IGNORE)).sum()


def results(loss, x_PD, weight_VD):
    """Loss, d loss / dx, d loss / dweight."""
    return loss.detach(), *torch.autograd.grad(loss, (x_PD, weight_VD))


def exact(x_PD, weight_VD, labels_P, **how):
    x_PD, weight_VD = (t.detach().double().requires_grad_() for t in (x_PD, weight_VD))
    return results(plain(x_PD, weight_VD, labels_P, **how), x_PD, weight_VD)


def assert_as_good(ours, torch_same, true, floor=1e-6):
    """No further from float64 than twice (gradients: three times) what torch is in the same precision."""
    for factor, a, b, t in zip((2, 3, 3), ours, torch_same, true, strict=True):
        if t.numel():
            assert a.shape == t.shape
            error, allowed = (a.double() - t).abs().max(), factor * (b.double() - t).abs().max()
            assert error <= allowed + floor * t.abs().max(), (float(error), float(allowed))


def peak(function):
    """The largest sum of tensor bytes alive at once, and the largest single tensor, while function runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        function()
    sizes = [event.nbytes() for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns())
             if event.name() == "[memory]"]  # positive: allocated, negative: freed
    return max(torch.tensor(sizes).cumsum(0)), max(sizes)


HOW = [{}, {"softcap": 3.0}, {"z_loss": 0.01}, {"softcap": 3.0, "z_loss": 0.01}]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("chunk", [None, 1, 7, 50, 999])
def test_equals_float64(how, chunk):
    x_PD, weight_VD, labels_P = inputs()
    ours = results(linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=chunk, **how), x_PD, weight_VD)
    assert ours[0].dtype is torch.float32 and ours[0].shape == ()
    torch_same = results(plain(x_PD, weight_VD, labels_P, **how), x_PD, weight_VD)
    assert_as_good(ours, torch_same, exact(x_PD, weight_VD, labels_P, **how))


@settings(max_examples=60, deadline=None)
@given(p=st.integers(0, 40), d=st.integers(1, 9), v=st.integers(1, 40), how=st.sampled_from(HOW), chunk=st.integers(1, 50),
       seed=st.integers(0, 99))
@example(p=0, d=3, v=5, how=HOW[3], chunk=4, seed=0)
@example(p=8, d=1, v=1, how=HOW[3], chunk=8, seed=0)
def test_chunking_changes_nothing_but_rounding(p, d, v, how, chunk, seed):
    x_PD, weight_VD, labels_P = inputs(p, d, v, torch.float64, seed)
    ours = results(linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=chunk, **how), x_PD, weight_VD)
    for a, b in zip(ours, exact(x_PD, weight_VD, labels_P, **how), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes, z_loss", [({}, 0.0), ({"logit_softcap": 5.0}, 1e-2), ({"tied": False}, 1e-2)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_parameter_of_a_model_gets_the_gradient_of_the_plain_loss(changes, z_loss, precision):
    """Tied weights too, which are used twice: as the embedding and as the last layer."""
    model = build(Model(layers=1, width=32, heads=2, init_std=0.3, zero_init=False, **changes), 50, True, seed=0)
    ids, positions = torch.arange(24), torch.tensor([1, 3, 8, 21, 0])
    labels, documents = torch.tensor([5, 2, 49, 0, IGNORE]), Documents(None, None, 8)
    losses, gradients = [], []
    for chunked in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            if chunked:
                loss = linear_cross_entropy(model(ids, documents).index_select(0, positions), model.head.weight, labels,
                                            softcap=model.config.logit_softcap, z_loss=z_loss, chunk=2)
            else:
                loss = cross_entropy(model, select(model(ids, documents), positions), labels, z_loss, chunked=False)[0]
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss * 0.37, list(model.parameters())))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if precision is torch.float32 else {"rtol": 0.03, "atol": 0.03}
    torch.testing.assert_close(losses[1], losses[0], **tolerance)
    for (name, parameter), a, b in zip(model.named_parameters(), gradients[1], gradients[0], strict=True):
        assert a.dtype == parameter.dtype
        torch.testing.assert_close(a, b, **tolerance, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", HOW)
def test_autocast_multiplies_in_its_dtype_and_adds_in_float32(x_dtype, how):
    """Like F.linear: both factors become bfloat16, gradients come back in the dtypes of what was given."""
    x_PD, weight_VD, labels_P = inputs(p=300, d=64, v=200)
    x_PD = x_PD.detach().to(x_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        torch_same = results(plain(x_PD, weight_VD, labels_P, **how), x_PD, weight_VD)
        ours = results(linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=100, **how), x_PD, weight_VD)
    true = exact(x_PD.bfloat16(), weight_VD.bfloat16(), labels_P, **how)
    assert [t.dtype for t in ours] == [torch.float32, x_dtype, torch.float32]
    assert_as_good(ours, torch_same, true)
    assert not torch.allclose(true[0], exact(x_PD, weight_VD, labels_P, **how)[0], rtol=1e-6)  # bfloat16 was used at all
    assert not torch.equal(ours[2], ours[2].bfloat16().float())  # but not for the sum over chunks


def test_autocast_leaves_float64_alone():
    x_PD, weight_VD, labels_P = inputs(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        ours = results(linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=7), x_PD, weight_VD)
    for a, b in zip(ours, exact(x_PD, weight_VD, labels_P), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_weight_of_another_dtype_follows_x():
    x_PD, weight_VD, labels_P = inputs()
    x_PD = x_PD.detach().bfloat16().requires_grad_()
    ours = results(linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=7), x_PD, weight_VD)
    torch_same = results(plain(x_PD, weight_VD.bfloat16(), labels_P), x_PD, weight_VD)
    assert [t.dtype for t in ours] == [torch.float32, torch.bfloat16, torch.float32]
    assert_as_good(ours, torch_same, exact(x_PD, weight_VD.bfloat16(), labels_P))

    x_PD, weight_VD = x_PD.detach().float().requires_grad_(), weight_VD.detach().bfloat16().requires_grad_()
    for function in (linear_cross_entropy, torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")):
        ours = results(function(x_PD, weight_VD, labels_P), x_PD, weight_VD)
        assert [t.dtype for t in ours] == [torch.float32, torch.float32, torch.bfloat16]
        torch_same = results(plain(x_PD, weight_VD.float(), labels_P), x_PD, weight_VD)
        assert_as_good(ours, torch_same, exact(x_PD, weight_VD, labels_P))


@pytest.mark.parametrize("ignore", [IGNORE, 0, 7])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_ignored_rows_count_for_nothing(ignore, dtype):
    x_PD, weight_VD, labels_P = inputs()
    labels_P = torch.where(labels_P == IGNORE, 7, labels_P)
    labels_P[::3] = ignore
    ours = results(linear_cross_entropy(x_PD, weight_VD, labels_P.to(dtype), ignore_index=ignore, z_loss=0.1, chunk=7), x_PD,
                   weight_VD)
    kept = labels_P != ignore
    loss, dx_KD, dweight_VD = exact(x_PD[kept], weight_VD, labels_P[kept], z_loss=0.1)
    torch.testing.assert_close(ours[0].double(), loss)
    torch.testing.assert_close(ours[1][kept].double(), dx_KD, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[2].double(), dweight_VD, rtol=1e-5, atol=1e-5)
    assert not ours[1][~kept].any()


def test_any_strides_will_do():
    x_PD, weight_VD, labels_P = inputs()
    strided = [t.detach().repeat_interleave(2, -1)[..., ::2] for t in (x_PD, weight_VD, labels_P)]
    strided[1] = strided[1].t().contiguous().t()
    x, weight, labels = strided[0].requires_grad_(), strided[1].requires_grad_(), strided[2]
    assert not (x.is_contiguous() or weight.is_contiguous() or labels.is_contiguous())
    ours = results(linear_cross_entropy(x, weight, labels, chunk=7), x, weight)
    assert_as_good(ours, results(plain(x, weight, labels), x, weight), exact(x_PD, weight_VD, labels_P))


@pytest.mark.parametrize("p", [0, 9])
def test_nothing_to_predict_gives_zero(p):
    x_PD, weight_VD, labels_P = inputs(p=p)
    loss, dx_PD, dweight_VD = results(linear_cross_entropy(x_PD, weight_VD, torch.full_like(labels_P, IGNORE), softcap=3.0,
                                                           z_loss=0.1, chunk=4), x_PD, weight_VD)
    assert loss == 0 and not dx_PD.any() and not dweight_VD.any()
    assert dx_PD.shape == x_PD.shape and dweight_VD.shape == weight_VD.shape


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_extreme_logits_overflow_nothing(softcap):
    x_PD, weight_VD = (torch.tensor(column)[:, None].requires_grad_() for column in ([1e4, -1e4, 1.0], [1.0, -1.0, 0.5]))
    labels_P = torch.tensor([1, 1, 2])
    ours = results(linear_cross_entropy(x_PD, weight_VD, labels_P, softcap=softcap, z_loss=1e-4), x_PD, weight_VD)
    for a, b in zip(ours, exact(x_PD, weight_VD, labels_P, softcap=softcap, z_loss=1e-4), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-6)


def test_the_logits_are_never_held_whole():
    p, d, v, chunk, number = 1024, 8, 512, 128, 4  # bytes of a float32
    x_PD, weight_VD, labels_P = inputs(p, d, v)
    logits, one_chunk, gradients = number * p * v, number * chunk * v, number * (p * d + v * d)

    whole, largest = peak(lambda: plain(x_PD, weight_VD, labels_P).backward())
    assert largest == logits and whole > 2 * logits  # the ruler can see whole logits
    x_PD.grad = weight_VD.grad = None
    chunked, largest = peak(lambda: linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=chunk).backward())
    assert largest == one_chunk  # and only one of them: what else is alive are the gradients, before and after scaling,
    assert chunked < one_chunk + number * CACHED_ROWS * v + 2 * gradients + 50 * p  # and the rows at work
    capped, largest = peak(lambda: linear_cross_entropy(x_PD, weight_VD, labels_P, softcap=3.0, chunk=chunk).backward())
    assert largest == one_chunk and capped < one_chunk + 2 * number * CACHED_ROWS * v + 3 * gradients + 50 * p
    assert peak(lambda: linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=9 * p))[1] == logits  # never more than asked for


def test_without_gradients_none_are_made():
    p, d, v, chunk = 64, 128, 1024, 8  # the weight is far larger than a chunk of logits
    x_PD, weight_VD, labels_P = inputs(p, d, v)
    wanted = linear_cross_entropy(x_PD, weight_VD, labels_P, chunk=chunk)
    for grad_mode, x, weight in ((False, x_PD, weight_VD), (True, x_PD.detach(), weight_VD.detach())):
        with torch.set_grad_enabled(grad_mode):
            most, _ = peak(lambda: linear_cross_entropy(x, weight, labels_P, chunk=chunk))
            loss = linear_cross_entropy(x, weight, labels_P, chunk=chunk)
        assert torch.equal(loss, wanted.detach()) and not loss.requires_grad
        assert most < 4 * (4 * chunk * v) < 4 * v * d


def test_frozen_inputs_get_no_gradient():
    x_PD, weight_VD, labels_P = inputs()
    loss, *gradients = linear_cross_entropy_op(x_PD, weight_VD, labels_P, IGNORE, None, 0.0, 7, True)
    assert loss.requires_grad and not any(t.requires_grad for t in gradients)
    _, dx_PD, dweight_VD = results(linear_cross_entropy(x_PD, weight_VD, labels_P), x_PD, weight_VD)
    linear_cross_entropy(x_PD, weight_VD.detach(), labels_P).backward()
    assert weight_VD.grad is None and torch.equal(x_PD.grad, dx_PD)
    linear_cross_entropy(x_PD.detach(), weight_VD, labels_P).backward()
    assert torch.equal(x_PD.grad, dx_PD) and torch.equal(weight_VD.grad, dweight_VD)


def test_backward_may_run_again_but_not_be_differentiated():
    x_PD, weight_VD, labels_P = inputs()
    loss = linear_cross_entropy(x_PD, weight_VD, labels_P)
    first, again = (torch.autograd.grad(loss, x_PD, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    dx_PD, = torch.autograd.grad(loss.square(), x_PD, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        dx_PD.sum().backward()


@pytest.mark.parametrize("how", HOW)
def test_gradcheck(how):
    x_PD, weight_VD, labels_P = inputs(p=9, d=4, v=6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *xw: linear_cross_entropy(*xw, labels_P, chunk=4, **how), (x_PD, weight_VD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(dtype, gradients):
    x_PD, weight_VD, labels_P = inputs(dtype=dtype)
    x_PD, weight_VD = (t.detach().requires_grad_(gradients) for t in (x_PD, weight_VD))
    torch.library.opcheck(linear_cross_entropy_op, (x_PD, weight_VD, labels_P, IGNORE, 3.0, 0.1, 7, gradients))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiles_whole_and_once(precision):
    """No break in the graph; other labels of the same shape do not compile again."""
    x_PD, weight_VD, labels_P = inputs()

    def loss(labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
            return 2 * linear_cross_entropy(x_PD, weight_VD, labels, softcap=3.0, z_loss=0.01)

    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend="aot_eager")
    compiled(labels_P).backward()
    x_PD.grad = weight_VD.grad = None
    with torch.compiler.set_stance("fail_on_recompile"):
        for labels in (labels_P, labels_P.flip(0), torch.full_like(labels_P, IGNORE)):
            ours = results(compiled(labels), x_PD, weight_VD)
            for a, b in zip(ours, results(loss(labels), x_PD, weight_VD), strict=True):
                assert torch.equal(a, b)


def test_shapes_on_a_card_are_known_without_one():
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        x_PD = torch.empty(100, 16, device="cuda", dtype=torch.bfloat16)
        weight_VD, labels_P = torch.empty(50, 16, device="cuda"), torch.empty(100, device="cuda", dtype=torch.int64)
        ours = linear_cross_entropy_op(x_PD, weight_VD, labels_P, IGNORE, None, 0.0, 128, True)
    assert [(t.device.type, t.dtype, tuple(t.shape)) for t in ours] == [
        ("cuda", torch.float32, ()), ("cuda", torch.bfloat16, (100, 16)), ("cuda", torch.float32, (50, 16))]


@pytest.mark.parametrize("v, dtype, rows", [
    (32768, torch.float32, 512), (32768, torch.bfloat16, 1024), (4096, torch.float32, 4096), (46000, torch.bfloat16, 640),
    (10**6, torch.float32, 128)])
def test_chunks_of_64_megabytes(v, dtype, rows):
    assert rows_per_chunk(v, dtype) == rows
    assert rows == 128 or CHUNK_BYTES * 0.8 < rows * v * dtype.itemsize <= CHUNK_BYTES


@pytest.mark.parametrize("changes, message", [
    ({"x_PD": torch.zeros(5, 4, 3)}, r"\[P, D\], \[V, D\], \[P\]"), ({"x_PD": torch.zeros(5, 4)}, r"\(5, 4\)"),
    ({"weight_VD": torch.zeros(7)}, r"\(7,\)"), ({"weight_VD": torch.zeros(0, 3)}, r"\(0, 3\)"),
    ({"labels_P": torch.zeros(4, dtype=torch.int64)}, r"labels \(4,\)"), ({"labels_P": torch.zeros(5)}, "expected integers"),
    ({"labels_P": torch.zeros(5, dtype=torch.bool)}, "expected integers"),
    ({"x_PD": torch.zeros(5, 3).int()}, "floating-point"), ({"weight_VD": torch.zeros(7, 3).int()}, "floating-point"),
    ({"chunk": 0}, "chunk=0"), ({"chunk": -1}, "chunk=-1"), ({"softcap": 0.0}, "softcap=0.0"),
    ({"softcap": -1.0}, "softcap=-1.0"), ({"softcap": float("nan")}, "softcap=nan")])
def test_what_does_not_fit_is_refused(changes, message):
    good = {"x_PD": torch.zeros(5, 3), "weight_VD": torch.zeros(7, 3), "labels_P": torch.zeros(5, dtype=torch.int64)}
    assert linear_cross_entropy(**good) > 0
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**good | changes)


@pytest.mark.parametrize("label", [7, -1])
def test_a_label_outside_the_vocabulary_is_an_error(label):
    with pytest.raises(RuntimeError, match="out of bounds"):
        linear_cross_entropy(torch.zeros(1, 3), torch.zeros(7, 3), torch.tensor([label]))
