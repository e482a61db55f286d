"""The parameters of a model, partitioned, and the optimizers that move them.

Every parameter belongs to exactly one group: ``matrices`` (hidden weights, two axes), ``embeddings`` (input and output
tables) or ``vectors`` (gains, biases, scales). Weight decay is decoupled (Loshchilov & Hutter 2019) and spares the
vectors.

=========  ==========================  ==========================
type       matrices                    embeddings and vectors
=========  ==========================  ==========================
adamw      AdamW, 32 or 8 bits         AdamW
muon       Muon                        AdamW
adalomo    AdaLomo                     AdaLomo
=========  ==========================  ==========================

All share one convention of torch's fused optimizers: where the tensor ``found_inf`` is 1, a step changes nothing,
and the host never asks.
"""

from __future__ import annotations

from typing import Iterator, Optional

import torch
from torch import Tensor, nn

from cram.adalomo import AdaLomo
from cram.adamw import AdamW, adamw_8bit
from cram.muon import Muon
from cram.offload import OffloadedAdamW
from cram.sharded import by_mesh, local, whole


def partition(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters by kind; each trainable parameter of the model exactly once."""
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    tables |= {id(model.head.weight)}
    groups: dict[str, list[nn.Parameter]] = {"matrices": [], "embeddings": [], "vectors": []}
    for parameter in model.parameters():  # a tied weight appears once
        kind = "embeddings" if id(parameter) in tables else "matrices" if parameter.ndim == 2 else "vectors"
        groups[kind].append(parameter)
    return groups


def make_groups(model: nn.Module, config) -> dict[str, list[dict]]:
    """torch's parameter groups by kind: one for each mesh that shares parameters, none for a kind without parameters.

    config: ``cram.schema.Optimizer``. Each group knows its ``kind``, its ``peak_lr`` and its ``weight_decay``.
    """
    rates = {"matrices": config.muon_lr if config.type == "muon" else config.lr,
             "embeddings": config.lr if config.embedding_lr is None else config.embedding_lr, "vectors": config.lr}
    return {kind: [dict(params=together, kind=kind, lr=rates[kind], peak_lr=rates[kind],
                        weight_decay=0.0 if kind == "vectors" else config.weight_decay) for together in by_mesh(parameters)]
            for kind, parameters in partition(model).items()}


def make_optimizers(groups: dict[str, list[dict]], config, iteration: Optional[torch.dtype] = None
                    ) -> list[torch.optim.Optimizer]:
    """Each group in exactly one optimizer; those that would have none are left out. config: ``cram.schema.Optimizer``;
    iteration: dtype of Muon's, see ``cram.muon.orthogonalise``."""
    matrices, rest = groups["matrices"], [*groups["embeddings"], *groups["vectors"]]
    moments = dict(betas=(config.beta1, config.beta2), eps=config.eps)
    optimizers: list[torch.optim.Optimizer] = []
    if config.type == "adalomo":
        return [AdaLomo(matrices + rest, cautious=config.cautious, fused_backward=config.fused_backward)]
    if config.type == "muon" and matrices:
        optimizers.append(Muon(matrices, lr=config.muon_lr, momentum=config.momentum, cautious=config.cautious,
                               iteration=iteration))
    elif config.state_bits == 8 and matrices:  # not the tables: bitsandbytes keeps embeddings in 32 bits for stability
        optimizers.append(adamw_8bit(matrices, **moments))
    else:
        rest = matrices + rest
    if rest:
        optimizers.append((OffloadedAdamW if config.offload else AdamW)(rest, cautious=config.cautious, **moments))
    return optimizers


class Optimizers:
    """All optimizers of a model as one.

    config: ``cram.schema.Optimizer``; iteration: dtype of Muon's. ``fused``: updates happen in the backward pass, so
    ``before_backward`` takes the place of ``step``. Raises CramError when bitsandbytes is needed and missing.
    """

    def __init__(self, model: nn.Module, config, iteration: Optional[torch.dtype] = None):
        self.fused = config.fused_backward
        self.members = make_optimizers(make_groups(model, config), config, iteration)

    def groups(self) -> Iterator[dict]:
        """Every parameter group of every optimizer."""
        for optimizer in self.members:
            yield from optimizer.param_groups

    def set_learning_rate(self, share: float) -> None:
        """Every group's learning rate becomes ``share`` of its peak."""
        for group in self.groups():
            group["lr"] = group["peak_lr"] * share

    def rates(self) -> dict[str, Optional[float]]:
        """Learning rates now: ``lr`` of everything but embeddings and Muon's matrices, ``muon_lr`` of those or None."""
        muon = [group["lr"] for optimizer in self.members if isinstance(optimizer, Muon) for group in optimizer.param_groups]
        others = [group["lr"] for optimizer in self.members if not isinstance(optimizer, Muon)
                  for group in optimizer.param_groups if group["kind"] != "embeddings"]
        return {"lr": others[0] if others else None, "muon_lr": muon[0] if muon else None}

    def before_backward(self, skip: Tensor) -> None:
        """Fused: the flag for the updates that the next backward pass makes. skip: float32 [], 1 to change nothing."""
        for optimizer in self.members:
            optimizer.found_inf = skip

    def step(self, skip: Tensor) -> None:
        """One update by the gradients, or none where skip (float32 [], on the parameters' device) is 1. Nothing when fused."""
        if self.fused:
            return
        for optimizer in self.members:
            optimizer.found_inf = skip
            optimizer.step()

    def zero_grad(self) -> None:
        """Free the gradients."""
        for optimizer in self.members:
            optimizer.zero_grad(set_to_none=True)

    def memory(self, device: Optional[str] = None) -> int:
        """Bytes of this process's optimizer states; with ``device`` ("cpu", "cuda") only of those that live there."""
        tensors = [local(x) for optimizer in self.members for state in optimizer.state.values() for x in state.values()
                   if torch.is_tensor(x)]
        tensors += [master for o in self.members if isinstance(o, OffloadedAdamW) for master in o.masters.values()]
        distinct = {(x.device, x.data_ptr(), x.nbytes): x for x in tensors}  # bitsandbytes shares its tables
        return sum(x.nbytes for x in distinct.values() if device in (None, x.device.type))

    def copy_state(self, pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
        """The state of each pair's first parameter is cloned to the second, whose own is dropped, as when layers are
        stacked. Call after the weights have been copied."""
        for optimizer in self.members:
            keys: dict = {}
            if isinstance(optimizer, OffloadedAdamW):
                keys = optimizer.masters
                optimizer.refresh()
            held = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for source, target in ((keys.get(a, a), keys.get(b, b)) for a, b in pairs):
                if id(target) not in held:
                    continue
                optimizer.state.pop(target, None)
                if source in optimizer.state:
                    optimizer.state[target] = {name: value.clone() if torch.is_tensor(value) else value
                                               for name, value in optimizer.state[source].items()}

    def state_dict(self) -> list[dict]:
        """One state of each optimizer: plain tensors, numbers, lists and dicts, not copied."""
        return [optimizer.state_dict() for optimizer in self.members]

    def load_state_dict(self, states: list[dict]) -> None:
        """Raises ValueError when the states are those of other optimizers."""
        for optimizer, state in zip(self.members, states, strict=True):
            optimizer.load_state_dict(state)


@torch.no_grad()
def finish_gradients(parameters: list[nn.Parameter], scale: Tensor, clip: Optional[float]) -> Tensor:
    """Undo the loss scale, clip to the global norm; returns the norm before clipping, float32 [].

    scale: float32 [], on the parameters' device. Sharded gradients count as a whole. When no parameter has a gradient
    (a fused backward pass has used them up) the norm is 0.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros_like(scale)
    norms = [whole(torch.nn.utils.get_total_norm(together)) for together in by_mesh(gradients)]
    norm = (norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))) / scale
    share = 1.0 if clip is None else (clip / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([local(gradient) for gradient in gradients], share / scale)
    return norm
