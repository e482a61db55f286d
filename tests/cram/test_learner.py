"""A step of the learner: it never waits for the device, and it is the step of the plain formula."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cram.bench.step import make_batch
from cram.config import load
from cram.device import Device
from cram.learner import Learner
from cram.parallel import World

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.is_nonzero.default, aten.nonzero.default, aten.masked_select.default,
         aten.equal.default, aten._unique2.default}  # what makes the host wait for a card


class NeverWait(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        assert function not in WAITS, f"{function} waits for the device"
        return function(*arguments, **(options or {}))


def learner(*overrides, dtype=torch.float32):
    config = load("demo", ["model.width=32", "model.heads=2", "train.sequence_length=32", "train.batch_tokens=512",
                           "tokenizer.vocab_size=300", "train.deterministic=false", *overrides])
    device = Device("cpu", "CPU", dtype, False, None)
    return Learner(config, device, World(), 300), make_batch(config, device, 512, 256)


def step(made, batch):
    predicted = sum(micro.predicted for micro in batch)
    loss = made.backward(batch, {False: 1 / predicted, True: 1 / predicted})
    return (loss, *made.update(loss))


@pytest.mark.parametrize("overrides, dtype", [
    ((), torch.float32), (("objective.type=causal",), torch.float32), (("train.ema=0.9",), torch.float32),
    (("train.precision=fp16",), torch.float16), (("optimizer.type=adamw", "optimizer.cautious=true"), torch.float32),
    (("optimizer.type=adalomo",), torch.float32), (("train.recompute=selective",), torch.float32),
    (("model.value_embeddings=true", "model.residual_scalars=true", "objective.z_loss=1e-4"), torch.float32)])
def test_the_host_never_waits_within_a_step(overrides, dtype):
    made, batch = learner(*overrides, dtype=dtype)
    step(made, batch)  # optimizers make their state at the first
    with NeverWait():
        step(made, batch)
    with pytest.raises(AssertionError, match="waits for the device"), NeverWait():
        made.guard.calm()


def test_a_step_skipped_changes_nothing_but_the_loss_scale():
    made, batch = learner("train.precision=fp16", "optimizer.type=adamw", dtype=torch.float16)
    step(made, batch)
    before, scale = [p.detach().clone() for p in made.model.parameters()], float(made.loss_scale.scale)
    made.loss_scale.scale.fill_(float("inf"))  # every gradient overflows
    _, norm, skip = step(made, batch)
    assert skip == 1 and not norm.isfinite()
    assert all(torch.equal(p, b) for p, b in zip(made.model.parameters(), before)) and scale > 1


def test_the_gradient_is_that_of_the_mean_over_all_micro_batches():
    made, batch = learner("optimizer.type=adamw", "optimizer.clip=null")
    predicted = sum(micro.predicted for micro in batch)
    loss = made.backward(batch, {False: 1 / predicted})
    found = [p.grad.clone() for p in made.model.parameters()]
    made.optimizers.zero_grad()
    total = sum(made.loss(m.ids_N, m.documents, m.positions_K, m.labels_K, m.causal)[0] for m in batch) / predicted
    total.backward()
    torch.testing.assert_close(loss, total.detach())
    for parameter, gradient in zip(made.model.parameters(), found):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
