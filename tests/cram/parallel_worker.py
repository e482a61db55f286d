"""What test_parallel.py trains, in a process of its own or, as a program, in one of several under torchrun.

    python -m torch.distributed.run --nproc-per-node 2 tests/cram/parallel_worker.py FOLDER
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cram.config import load
from cram.errors import CramError
from cram.model import build
from cram.objective import IGNORE
from cram.ops import Documents, linear_cross_entropy
from cram.optim import partition
from cram.parallel import World

MODES = ("ddp", "fsdp", "tp")
VOCABULARY, ROW, MICRO_BATCHES, STEPS, SAVED_AT = 40, 16, 4, 5, 3
MODELS = {  # between them: tied and not, biases, grouped heads, both kinds of feed-forward layer
    False: dict(),
    True: dict(mlp="relu2", tied=False, bias=True, kv_heads=2, norm="layernorm"),
}


def config(causal, **more):
    settings = dict(layers=2, width=32, heads=4, mlp_width=64, qk_norm=True, zero_init=False, init_std=0.2) | MODELS[causal] | more
    return load("demo", [f"model.{key}={value}" for key, value in settings.items()]).model


class Loss(nn.Module):
    """As cram.objective.Loss: (total, nats) of a micro-batch, both summed over the labels."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.resting = nn.Parameter(torch.zeros(2))  # gets no gradient, as a block of train.layer_schedule that does not run

    def forward(self, ids_N, documents, positions_K, labels_K, causal):
        x_ND = self.model(ids_N, documents)
        if positions_K is None:
            total = F.cross_entropy(self.model.logits(x_ND), labels_K, ignore_index=IGNORE, reduction="sum")
        else:  # reads the head's weight instead of calling the head
            total = linear_cross_entropy(x_ND[positions_K], self.model.head.weight, labels_K, ignore_index=IGNORE)
        return total, total.detach()


def apart(tensors):
    """The plain tensors and the distributed ones: torch's functions for lists take no mixture."""
    plain, distributed = [], []
    for tensor in tensors:
        (distributed if hasattr(tensor, "full_tensor") else plain).append(tensor)
    return [part for part in (plain, distributed) if part]


def total_norm(tensors):
    """Over all numbers of plain and distributed tensors, as a plain tensor []."""
    norms = [torch.nn.utils.get_total_norm(part) for part in apart(tensors)]
    return torch.linalg.vector_norm(torch.stack([n.full_tensor() if hasattr(n, "full_tensor") else n for n in norms]))


def orthogonalise(matrix):
    """Newton-Schulz, five steps of the cubic iteration."""
    x = matrix / matrix.norm().clamp(min=1e-7)
    for _ in range(5):
        x = 1.5 * x - 0.5 * x @ x.mT @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum of each matrix, whole, orthogonalised; plain and distributed parameters."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 0.05)
                if not hasattr(momentum, "full_tensor"):
                    parameter.sub_(group["lr"] * orthogonalise(momentum))
                    continue
                from torch.distributed.tensor import distribute_tensor

                update = orthogonalise(momentum.full_tensor())
                parameter.sub_(group["lr"] * distribute_tensor(
                    update, parameter.device_mesh, parameter.placements, src_data_rank=None))


def make_optimizers(model):
    groups = partition(model)
    adamw = apart(groups["embeddings"] + groups["vectors"])
    return [Muon(groups["matrices"], dict(lr=0.02)),
            torch.optim.AdamW([dict(params=part) for part in adamw], lr=0.01, weight_decay=0.01, fused=True)]


def micro_batch(causal, step, index):
    """Arguments of the loss, and how many labels count: a different number in each."""
    rng = torch.Generator().manual_seed(100 * step + index)
    ids_N = torch.randint(0, VOCABULARY, (2 * ROW,), generator=rng)
    lengths = [5 + index, ROW - 5 - index, 9, ROW - 9]
    ends = torch.tensor(lengths).cumsum(0).int()
    counts = torch.tensor(lengths)
    documents = Documents((ends - counts.int()).repeat_interleave(counts), ends.repeat_interleave(counts), ROW)
    if causal:
        labels = torch.cat([ids_N[1:], torch.tensor([IGNORE])])
        return (ids_N, documents, None, labels, True), 2 * ROW - 1
    positions = torch.randperm(2 * ROW, generator=rng)[:4 + index].sort().values
    return (ids_N, documents, positions, ids_N[positions], False), 4 + index


class Traffic(TorchDispatchMode):
    """Counts the collective operations by name."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            self.calls[function._schema.name.partition("::")[2]] += 1
        return function(*arguments, **(options or {}))


class Run:
    """The loop of a few steps, as cram/train.py makes them."""

    def __init__(self, world, causal, seed=0):
        self.world, self.causal, self.step, self.losses = world, causal, 0, []
        self.model = build(config(causal), VOCABULARY, causal, seed=seed)
        self.loss = world.wrap(Loss(self.model))
        self.optimizers = make_optimizers(self.model)

    def train(self, until):
        while self.step < until:
            self.optimizer_step()
        return self

    def optimizer_step(self):
        world, each = self.world, MICRO_BATCHES // self.world.data_world
        micros = [micro_batch(self.causal, self.step, world.data_rank * each + i) for i in range(each)]
        predicted = world.sum(sum(count for _, count in micros))
        nats_sum = torch.zeros(())
        for i, (arguments, _) in enumerate(micros):
            with world.micro(self.loss, last=i == each - 1):
                total, nats = self.loss(*arguments)
                (total * (world.scale / predicted)).backward()
                nats_sum += nats
        gradients = [parameter.grad for parameter in self.model.parameters()]
        norm = total_norm(gradients)
        for part in apart(gradients):
            torch._foreach_mul_(part, (0.5 / norm).clamp(max=1.0))
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.losses.append((float(world.reduce(nats_sum)) / predicted, float(norm)))
        self.step += 1

    def evaluate(self):
        """The loss of one micro-batch without a backward pass, by the model itself."""
        (ids_N, documents, positions_K, labels_K, _), _ = micro_batch(self.causal, 77, 0)
        with torch.no_grad(), self.world.evaluation(self.model):
            x_ND = self.model(ids_N, documents)
            x_KD = x_ND if positions_K is None else x_ND[positions_K]
            return float(F.cross_entropy(self.model.logits(x_KD), labels_K, ignore_index=IGNORE))

    def state(self):
        return {"model": self.world.model_state(self.model),
                "optimizers": self.world.optimizer_states(self.model, self.optimizers), "step": self.step}

    def load(self, state):
        self.world.load_model_state(self.model, state and state["model"])
        self.world.load_optimizer_states(self.model, self.optimizers, state and state["optimizers"])
        self.step = self.world.share(state and state["step"])
        return self


def everything(world, causal):
    """All that one mode is asked for; the same calls on every process."""
    run = Run(world, causal)
    first = run.state()  # before any step: must change nothing
    before = run.evaluate()
    with Traffic() as traffic:
        run.train(1)
    run.train(SAVED_AT)
    middle, evaluated = run.state(), run.evaluate()
    run.train(STEPS)
    again = Run(world, causal, seed=1).load(middle if world.main else None).train(STEPS)
    return {"losses": run.losses, "again": again.losses, "first": first, "middle": middle, "last": run.state(),
            "again_last": again.state(), "evaluated": (before, evaluated), "calls": dict(traffic.calls)}


def conversation(world):
    """What the processes tell each other."""
    return {"rank": world.rank, "size": world.size, "data": (world.data_rank, world.data_world),
            "agree": (world.agree(0.1 + world.rank), world.agree(None if world.main else 3.0), world.agree(float(world.rank))),
            "any": (world.any(world.rank == 1), world.any(False)), "sum": world.sum(10 + world.rank),
            "share": world.share({"step": 7, "tensor": torch.arange(3)} if world.main else None)}


def refusal(world):
    """What each mode says to what it cannot do."""
    try:
        if world.mode == "tp":
            world.wrap(Loss(build(config(False, kv_heads=1), VOCABULARY, False)))
        else:  # offloaded: works on copies, kept by the parameters they are of
            run = Run(world, causal=False)
            masters = {parameter: nn.Parameter(torch.zeros(1)) for parameter in run.model.parameters()}
            offloaded = torch.optim.AdamW(masters.values())
            offloaded.masters = masters
            world.optimizer_states(run.model, [offloaded])
    except CramError as error:
        return str(error)
    return None


def main(folder):
    torch.use_deterministic_algorithms(True)
    started = World.start(load("demo", [f"train.parallel={MODES[0]}"]).train, "cpu")
    for mode in MODES:
        world = replace(started, mode=mode, resting=True)
        result = {"said": conversation(world), "runs": {causal: everything(world, causal) for causal in (False, True)}}
        result["refused"] = refusal(world)
        torch.save(result, Path(folder) / f"{mode}-{world.rank}.pt")
    started.close()
    started.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
