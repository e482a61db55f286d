"""Two processes that share every matrix move as one process that holds it whole."""

import copy
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from cram.ema import EMA
from cram.model import build
from cram.optim import Optimizers, finish_gradients
from cram.schema import Model, Optimizer

KINDS = {"adamw": {}, "cautious adamw": dict(type="adamw", cautious=True), "muon": dict(type="muon"),
         "cautious muon": dict(type="muon", cautious=True), "adalomo": dict(type="adalomo"), "offload": dict(offload=True)}


def small() -> nn.Module:
    return build(Model(layers=2, width=18, heads=3, tied=False, mlp_width=31), vocab_size=23, causal=True, seed=0)


def shard(model: nn.Module, mesh) -> None:
    """Rows to one process and the other, but columns of ``down``; gains stay plain, as tensor parallelism leaves them."""
    from torch.distributed.tensor import Shard, distribute_tensor

    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 2:
                axis = 1 if parameter.shape[1] == 31 else 0
                setattr(module, name, nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Shard(axis)])))


def steps(model: nn.Module, config: Optimizer) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """Weights, their averages and gradient norms after a taken, a skipped and two more steps."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    optimizers, ema, norms = Optimizers(model, config), EMA(model, 0.5), []
    for step, skip in enumerate((0.0, 1.0, 0.0, 0.0)):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, parameter.device_mesh, parameter.placements)
            parameter.grad = gradient
        norms.append(finish_gradients(list(model.parameters()), torch.tensor(2.0), clip=0.5))
        if step == 2:  # a state goes through a state_dict
            optimizers.load_state_dict(copy.deepcopy(optimizers.state_dict()))
        optimizers.step(torch.tensor(skip))
        optimizers.zero_grad()
        ema.update(model)
    full = [[x.full_tensor() if isinstance(x, DTensor) else x for x in held]
            for held in (list(model.parameters()), list(ema.weights().values()))]
    return *full, norms


def process(rank: int, port: int, results) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    for kind, settings in KINDS.items():
        model = small()
        shard(model, mesh)
        outcome = steps(model, Optimizer(**{"type": "adamw", "weight_decay": 0.1} | settings))
        if rank == 0:
            results[kind] = [[x.detach().numpy().copy() for x in tensors] for tensors in outcome]
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.get_context("spawn").Manager() as manager:
        results = manager.dict()
        mp.spawn(process, (port, results), nprocs=2)
        yield dict(results)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sharded_equals_whole(two_processes, kind):
    expected = steps(small(), Optimizer(**{"type": "adamw", "weight_decay": 0.1} | KINDS[kind]))
    for ours, theirs in zip(two_processes[kind], expected):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b.detach(), rtol=1e-5, atol=1e-6)
