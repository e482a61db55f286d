"""Linear + cross-entropy in chunks on a card: the error rule, memory, bits, no waiting. Run: scripts/test tests/gpu"""

import pytest
import torch
import torch.nn.functional as F

from cram.ops import linear_cross_entropy

pytestmark = pytest.mark.gpu
P, D, V = 700, 128, 5000


def problem(dtype):
    """x, weight (float32, as a parameter is), labels with some ignored."""
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(P, D, generator=generator, device="cuda").to(dtype)
    weight = torch.randn(V, D, generator=generator, device="cuda") * D ** -0.5
    labels = torch.randint(0, V, (P,), generator=generator, device="cuda")
    labels[::7] = -100
    return x, weight, labels


def plain(x, weight, labels, dtype, softcap, z_loss):
    """[loss, dx, dweight], matrix products in dtype and the rest in float32 (float64 stays float64)."""
    x, weight = x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    logits = F.linear(x, weight)
    logits = logits if dtype == torch.float64 else logits.float()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    loss = F.cross_entropy(logits, labels, reduction="sum") + z_loss * (logits.logsumexp(-1).square() * (labels >= 0)).sum()
    return [loss.detach(), *torch.autograd.grad(loss, (x, weight))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("softcap, z_loss", [(None, 0.0), (5.0, 0.01)])
def test_error_rule(dtype, softcap, z_loss):
    x, weight, labels = problem(dtype)
    torch.set_float32_matmul_precision("highest")
    exact = plain(x, weight.to(dtype), labels, torch.float64, softcap, z_loss)
    theirs = plain(x, weight, labels, dtype, softcap, z_loss)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    loss = linear_cross_entropy(x, weight, labels, softcap=softcap, z_loss=z_loss, chunk=256)
    ours = [loss.detach(), *torch.autograd.grad(loss, (x, weight))]
    for allowance, a, b, truth in zip((2, 3, 3), ours, theirs, exact, strict=True):
        size = truth.abs().max()
        assert (a - truth).abs().max() <= allowance * (b - truth).abs().max() + 8 * torch.finfo(dtype).eps * size


def test_the_same_bits_and_no_waiting():
    x, weight, labels = problem(torch.bfloat16)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    results = []
    for attempt in range(21):
        torch.cuda.set_sync_debug_mode("error" if attempt else "default")  # the first call compiles
        try:
            loss = linear_cross_entropy(x, weight, labels, chunk=256)
            results.append([loss.detach(), *torch.autograd.grad(loss, (x, weight))])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for result in results[1:] for a, b in zip(results[0], result))


def test_the_logits_are_never_held_whole():
    x = torch.randn(16384, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(32768, 256, device="cuda", requires_grad=True)
    labels = torch.randint(0, 32768, (16384,), device="cuda")
    linear_cross_entropy(x, weight, labels).backward()
    x.grad = weight.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    linear_cross_entropy(x, weight, labels).backward()
    assert torch.cuda.max_memory_allocated() - before < 16384 * 32768 * 2 / 4  # the logits alone: 1 GiB in bfloat16
