"""The Triton kernel of the loss, run on the CPU by Triton's interpreter, against float64.

Needs a process of its own: TRITON_INTERPRET=1 python -m pytest tests/interpreter/test_loss_kernel.py
"""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("set TRITON_INTERPRET=1 before the process starts", allow_module_level=True)
pytest.importorskip("triton")

import torch
import torch.nn.functional as F

from cram._kernels.loss_triton import BLOCK, loss_rows_

IGNORE = -100
GUARD = 24  # elements of nan between and around the rows


def plain(logits_CV, labels_C, softcap, z_loss, dtype):
    """Loss of each row and d loss / d logits by autograd, computed in ``dtype``."""
    raw_CV = logits_CV.to(dtype).detach().requires_grad_()
    z_CV = raw_CV if softcap is None else softcap * torch.tanh(raw_CV / softcap)
    loss_C = F.cross_entropy(z_CV, labels_C, ignore_index=IGNORE, reduction="none")
    loss_C = loss_C + z_loss * torch.logsumexp(z_CV, -1).square() * (labels_C != IGNORE)
    return loss_C.detach(), torch.autograd.grad(loss_C.sum(), raw_CV)[0]


def launch(logits_CV, labels_C, softcap=None, z_loss=0.0, gradients=True):
    """Loss and what is in the buffer afterwards; fails when a byte outside rows and losses was written."""
    c, v = logits_CV.shape
    band = torch.full((GUARD + c * (v + GUARD),), float("nan"), dtype=logits_CV.dtype)
    buffer_CV = band.as_strided((c, v), (v + GUARD, 1), GUARD)
    buffer_CV.copy_(logits_CV)
    losses = torch.full((c + 2 * GUARD,), float("nan"))
    loss_rows_(buffer_CV, labels_C, losses[GUARD:-GUARD], ignore_index=IGNORE, softcap=softcap, z_loss=z_loss,
               gradients=gradients)
    assert losses[:GUARD].isnan().all() and losses[-GUARD:].isnan().all()
    assert band[:GUARD].isnan().all() and band[GUARD:].view(c, v + GUARD)[:, v:].isnan().all()
    return losses[GUARD:-GUARD].clone(), buffer_CV.clone()


def case(v, dtype, scale=3.0, rows=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits_CV = (scale * torch.randn(rows, v, generator=generator)).to(dtype)
    labels_C = torch.randint(0, v, (rows,), generator=generator)
    labels_C[1], labels_C[2], labels_C[3] = IGNORE, 0, v - 1
    return logits_CV, labels_C


def assert_close(ours, torch_same, exact, factor, floor):
    """No further from float64 than ``factor`` times torch in the same precision, in the largest error."""
    ours_error, torch_error = (ours.double() - exact).abs().max(), (torch_same.double() - exact).abs().max()
    assert ours_error <= factor * torch_error + floor, (float(ours_error), float(torch_error), floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("v", [1, 3, 300, BLOCK, 2 * BLOCK + 77])
@pytest.mark.parametrize("softcap, z_loss", [(None, 0.0), (5.0, 0.0), (None, 1e-2), (5.0, 1e-2)])
def test_equals_float64(v, dtype, softcap, z_loss):
    logits_CV, labels_C = case(v, dtype)
    exact_loss, exact_gradient = plain(logits_CV, labels_C, softcap, z_loss, torch.float64)
    torch_loss, torch_gradient = plain(logits_CV, labels_C, softcap, z_loss, torch.float32)
    loss_C, gradient_CV = launch(logits_CV, labels_C, softcap, z_loss)
    # tanh without libdevice errs by about 1e-7, the cap times that in a logit
    floor = 4 * torch.finfo(torch.float32).eps * (exact_loss.abs().max() + (softcap or 1.0))
    assert_close(loss_C, torch_loss, exact_loss, 2, floor)
    floor *= exact_gradient.abs().max()
    if dtype == torch.float32:
        assert_close(gradient_CV, torch_gradient, exact_gradient, 3, floor)
    else:  # one unit in the last place of every number: the interpreter cuts bits off where a card rounds
        step = torch.finfo(dtype).eps * exact_gradient.abs() + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((gradient_CV.double() - exact_gradient).abs() <= step + floor).all()
    assert loss_C[1] == 0 and not gradient_CV[1].any()


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # and meant to: see _tanh
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_extreme_logits_overflow_nothing(softcap):
    logits_CV, _ = case(300, torch.float32)
    logits_CV[:, 17], logits_CV[:, 18] = 1e4, -1e4
    logits_CV[4] = 1e4
    labels_C = torch.tensor([17, 18, IGNORE, 5, 9])
    exact_loss, exact_gradient = plain(logits_CV, labels_C, softcap, 1e-4, torch.float64)
    torch_loss, torch_gradient = plain(logits_CV, labels_C, softcap, 1e-4, torch.float32)
    loss_C, gradient_CV = launch(logits_CV, labels_C, softcap, 1e-4)
    assert loss_C.isfinite().all() and gradient_CV.isfinite().all()
    torch.testing.assert_close(loss_C.double(), exact_loss, rtol=1e-6, atol=1e-5)
    assert_close(gradient_CV, torch_gradient, exact_gradient, 3, 1e-6)


def test_repeats_to_the_bit_and_rows_do_not_meet():
    logits_CV, labels_C = case(BLOCK + 5, torch.float32, rows=7)
    first = launch(logits_CV, labels_C, 5.0, 1e-2)
    again = launch(logits_CV, labels_C, 5.0, 1e-2)
    backwards = launch(logits_CV.flip(0), labels_C.flip(0), 5.0, 1e-2)
    for a, b, c in zip(first, again, backwards):
        assert torch.equal(a, b) and torch.equal(a, c.flip(0))


def test_without_gradients_the_logits_stay():
    logits_CV, labels_C = case(300, torch.float32)
    loss_C, left_CV = launch(logits_CV, labels_C, 5.0, 1e-2, gradients=False)
    assert torch.equal(loss_C, launch(logits_CV, labels_C, 5.0, 1e-2)[0]) and torch.equal(left_CV, logits_CV)


def test_a_label_outside_the_row_gives_nan_and_reads_no_neighbour():
    logits_CV, _ = case(300, torch.float32)  # rows without bands between them
    labels_C, loss_C = torch.tensor([300, 3, -1, IGNORE, 5]), torch.empty(5)
    loss_rows_(logits_CV, labels_C, loss_C, ignore_index=IGNORE, softcap=None, z_loss=0.0, gradients=True)
    assert loss_C.isnan().tolist() == [True, False, True, False, False]


def test_a_row_may_begin_with_its_largest_logit():
    logits_CV, labels_C = case(2 * BLOCK, torch.float32)
    logits_CV[:, 3] = 200.0  # exp(200) would overflow if later, smaller logits were the measure
    exact_loss, exact_gradient = plain(logits_CV, labels_C, None, 0.0, torch.float64)
    loss_C, gradient_CV = launch(logits_CV, labels_C)
    torch.testing.assert_close(loss_C.double(), exact_loss)
    torch.testing.assert_close(gradient_CV.double(), exact_gradient, rtol=1e-5, atol=1e-6)


def test_rows_beyond_the_reach_of_32_bits():
    step, v = 2**30, 70  # untouched memory costs nothing: two gigabytes are asked for, three pages are used
    logits_CV = torch.empty(2 * step + v, dtype=torch.float16).as_strided((3, v), (step, 1))
    values_CV, labels_C = case(v, torch.float16, rows=4)
    logits_CV.copy_(values_CV[:3])
    loss_C = torch.empty(3)
    loss_rows_(logits_CV, labels_C[:3], loss_C, ignore_index=IGNORE, softcap=None, z_loss=0.0, gradients=True)
    near_C, near_CV = launch(values_CV, labels_C)
    assert torch.equal(loss_C, near_C[:3]) and torch.equal(logits_CV, near_CV[:3])
