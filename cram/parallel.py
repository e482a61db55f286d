"""Past one card: the only place that knows of processes.

``torchrun --nproc-per-node 4 -m cram pretrain ... train.parallel=ddp`` starts the same program four times; a ``World`` tells
each copy its part. All communication is PyTorch's own.

    ddp    Every process holds the model and takes a part of the batch; gradients are averaged while the backward pass
           still runs (DistributedDataParallel, Li et al. 2020).
    fsdp   The same, and weights, gradients and optimizer states are cut in equal shards; a block's weights are gathered
           just before it runs and let go after (FSDP2; ZeRO stage 3, Rajbhandari et al. 2020, section 5.3).
    tp     All processes take the whole batch; heads and feed-forward columns are split between them (``parallel_split.py``).

Decisions that read a clock or a file are taken by process 0 and told to the others (``agree``, ``share``), so all of them
take the same steps, save and stop at the same moment. Only process 0 writes; the others have a ``Follower`` in place of
ledger, telemetry and record. Distributed parts of torch are imported when they are needed: they take most of a second.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ContextManager, Iterable, Iterator, Optional

import torch
from torch import Tensor, nn

from cram import parallel_state, parallel_split
from cram.budget import Budget
from cram.errors import CramError
from cram.ledger import CATEGORIES

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what torchrun puts into the environment


def refuse_launch(train) -> tuple[int, int, int]:
    """This process's number, how many there are, its number on this machine: as torchrun says, 0, 1, 0 without it.

    CramError when train.parallel and the way the program was started do not fit. Touches no card.
    """
    launched = all(name in os.environ for name in TORCHRUN)
    rank, size, local = (int(os.environ[name]) for name in TORCHRUN) if launched else (0, 1, 0)
    if train.parallel == "none" and size > 1:
        raise CramError(f"train.parallel=none, but torchrun started {size} processes, which would all train the same "
                        "model into the same folder: set train.parallel=ddp, fsdp or tp, or start without torchrun")
    if train.parallel != "none" and not launched:
        raise CramError(f"train.parallel={train.parallel}: needs one process a card; set train.parallel=none, or start "
                        f"it with torchrun --nproc-per-node 2 -m cram pretrain NAME train.parallel={train.parallel}")
    return rank, size, local


@dataclass(frozen=True)
class World:
    """This process among the others. ``World()`` is a process on its own; ``World.start`` joins the others.

    mode: as train.parallel. kind: "cpu" or "cuda". resting: some blocks may get no gradient (train.layer_schedule).
    mesh: a ``DeviceMesh`` of one axis, or None without others.
    """

    mode: str = "none"
    kind: str = "cpu"
    rank: int = 0
    size: int = 1
    resting: bool = False
    mesh: Any = None

    @classmethod
    def start(cls, train, device_kind: str) -> World:
        """Join the processes that torchrun started. train: ``cram.schema.Train``; device_kind: "cpu" or "cuda".

        On CUDA the process takes card LOCAL_RANK, so call this before anything touches a card. Raises CramError when
        train.parallel and the way the program was started do not fit, or there are fewer cards than processes.
        """
        rank, size, local = refuse_launch(train)
        if train.parallel == "none":
            return cls(kind=device_kind)
        if device_kind == "cuda":
            cards = torch.cuda.device_count()
            if local >= cards:
                raise CramError(f"train.parallel={train.parallel}: process {local} of this machine has no card, there are "
                                f"{cards}; start torchrun with --nproc-per-node {cards}")
            torch.cuda.set_device(local)
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if device_kind == "cuda" else "gloo")
        mesh = torch.distributed.init_device_mesh(device_kind, (size,))
        return cls(train.parallel, device_kind, rank, size, bool(train.layer_schedule), mesh)

    @property
    def main(self) -> bool:
        """Whether this is process 0, the one that decides and writes."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of the batch is this process's."""
        return 0 if self.mode == "tp" else self.rank

    @property
    def data_world(self) -> int:
        """Into how many parts the batch is cut."""
        return 1 if self.mode == "tp" else self.size

    @property
    def scale(self) -> float:
        """Factor of the loss that makes the gradient the sum over the parts of the batch: DDP and FSDP take the mean."""
        return float(self.data_world)

    def agree(self, value: Optional[float]) -> Optional[float]:
        """Process 0's value, float64 or None, on every process: for each decision that reads a clock."""
        if self.size == 1:
            return value
        number = torch.tensor([value is None, value or 0.0], dtype=torch.float64)
        torch.distributed.broadcast(number, src=0)
        none, agreed = number.tolist()
        return None if none else agreed

    def share(self, value: Any) -> Any:
        """Process 0's value, whatever it is made of, on every process: for what it read from a file. Tensors on the CPU."""
        if self.size == 1:
            return value
        box = [value if self.main else None]
        torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process: for signals."""
        if self.size == 1:
            return flag
        highest = torch.tensor(int(flag))
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
        return bool(highest)

    def sum(self, number: int) -> int:
        """Sum over the parts of the batch of a number that the host knows."""
        if self.data_world == 1:
            return number
        total = torch.tensor(number)
        torch.distributed.all_reduce(total)
        return int(total)

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the parts of the batch of a tensor on the device; the host does not wait for it on CUDA."""
        if self.data_world == 1:
            return tensor
        total = tensor.clone()
        torch.distributed.all_reduce(total)
        return total

    def wrap(self, loss: nn.Module) -> nn.Module:
        """The module to call instead of ``loss`` (``cram.objective.Loss``: its ``model`` is the Transformer).

        Before this every process has built the same model, from the same seed, on its device. Build optimizers after it:
        fsdp and tp replace parameters by distributed ones. Raises CramError when tp cannot split the model.
        """
        if self.mode == "ddp":
            devices = [torch.cuda.current_device()] if self.kind == "cuda" else None
            return nn.parallel.DistributedDataParallel(loss, device_ids=devices, gradient_as_bucket_view=True,
                                                       find_unused_parameters=self.resting)
        if self.mode == "fsdp":
            from torch.distributed.fsdp import fully_shard

            # True of the last norm's output, and harmless: nothing is written into it.
            warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPTransformer\) returned a view", UserWarning)
            for block in loss.model.blocks:
                fully_shard(block, mesh=self.mesh)
            # What is left makes one group: embedding and head, which may be one matrix. As the root's group it stays
            # gathered from the forward to the backward pass, so the loss can use the head after the forward pass has ended.
            fully_shard(loss.model, mesh=self.mesh)
        if self.mode == "tp":
            parallel_split.split(loss.model, self.mesh)
        return loss

    def micro(self, module: nn.Module, last: bool) -> ContextManager:
        """Around forward and backward of one micro-batch: gradients stay on their process until the last one of a step.

        Under fsdp that keeps the whole gradient, unsharded, on every process while a step has further micro-batches.
        """
        if self.mode == "fsdp":
            module.model.set_requires_gradient_sync(last)
        if self.mode == "ddp" and not last:
            return module.no_sync()
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def evaluation(self, model: nn.Module) -> Iterator[None]:
        """Around forward passes that no backward pass follows. All processes make them alike; afterwards fsdp's weights
        are in shards again, as optimizers and moving averages expect them."""
        try:
            yield
        finally:
            self._reshard(model)

    def _reshard(self, model: nn.Module) -> None:
        if self.mode == "fsdp":
            for module in (model, *model.blocks):
                module.reshard()

    def whole(self, value: Any) -> Any:
        """A tensor, or a dict of them, put together from shards, on the CPU of process 0; None elsewhere. Other values pass
        unchanged. Every process must ask."""
        return parallel_state.whole(value, self.main)

    def model_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's weights as a single process would save them, on the CPU of process 0; {} elsewhere."""
        self._reshard(model)
        return parallel_state.model_state(model, self.main)

    def load_model_state(self, model: nn.Module, state: Optional[dict[str, Tensor]]) -> None:
        """Take up what ``model_state`` gave to a world of any size. state: process 0's counts, others may pass None."""
        parallel_state.load_model_state(model, state, self.share)

    def optimizer_states(self, model: nn.Module, optimizers: Iterable) -> dict[str, dict[str, Any]]:
        """State of every parameter that has one, by its name, on the CPU of process 0; {} elsewhere."""
        self._reshard(model)
        return parallel_state.optimizer_states(model, optimizers, self.main)

    def load_optimizer_states(self, model: nn.Module, optimizers: Iterable,
                              states: Optional[dict[str, dict[str, Any]]]) -> None:
        """Take up what ``optimizer_states`` gave to a world of any size. Learning rates and the like stay as configured."""
        parallel_state.load_optimizer_states(model, optimizers, states, self.share)

    def close(self) -> None:
        """Leave the others; may be called twice."""
        if self.mesh is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class Follower:
    """In place of ``Ledger``, ``Telemetry`` and ``Record`` on every process but 0: the same methods, no file, no cost."""

    spent = seconds = paid = 0.0
    sessions = 1

    def __init__(self, budget: Budget, path: Path):
        self.budget, self.path = budget, path

    @property
    def account_seconds(self) -> dict[str, float]:
        return dict.fromkeys(CATEGORIES, 0.0)

    def account(self, category: str) -> ContextManager:
        return contextlib.nullcontext()

    def _nothing(self, *_, **__) -> float:
        return 0.0

    switch = measure_energy = count = checkpoint = resume = roll_back = pay_for_teacher = close = _nothing  # of the ledger
    plan = train = validation = sample = event = end = progress = _nothing  # of telemetry
    add = cut = sync = _nothing  # of the record
