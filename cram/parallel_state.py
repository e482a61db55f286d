"""States without shards: a checkpoint does not tell how many processes wrote it.

Whatever a run was split into, its checkpoint holds every tensor whole, under its parameter's name, as a single process
writes it; so a run can go on with another number of processes, or another way to split. Process 0 alone reads and writes:
it gathers one tensor at a time, and tells the others one parameter at a time.

Optimizer states go by parameter name rather than by index: a distributed optimizer sorts its parameters into other groups.
(``torch.distributed.checkpoint.state_dict`` would do so too, but makes missing states by a real step of the optimizer: a
checkpoint before the first step would change the run.)
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Optional

import torch
from torch import Tensor, nn

from cram.errors import CramError

Share = Callable[[Any], Any]  # process 0's value to every process


def whole(value: Any, main: bool) -> Any:
    """A copy of a tensor, put together from its shards, on the CPU: on process 0, None elsewhere; other values unchanged.
    Of a dict, all that is in it."""
    if isinstance(value, dict):
        return {key: whole(part, main) for key, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    full = value.detach().full_tensor() if hasattr(value, "full_tensor") else value.detach()
    return full.to("cpu", copy=True) if main else None


def lay_out(full: Any, like: Optional[Tensor]) -> Any:
    """A copy of a whole value that every process has: cut like ``like`` when that is distributed and of the same shape."""
    if not isinstance(full, Tensor):
        return full
    if not hasattr(like, "full_tensor") or full.shape != like.shape:
        return full.clone()
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full.to(like.device, copy=True), like.device_mesh, like.placements, src_data_rank=None)


def model_state(model: nn.Module, main: bool) -> dict[str, Tensor]:
    """Whole weights by name; names of one matrix share one tensor. {} unless main."""
    state, gathered = {}, {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in gathered:
            gathered[id(tensor)] = whole(tensor, main)
        state[name] = gathered[id(tensor)]
    return state if main else {}


@torch.no_grad()
def load_model_state(model: nn.Module, state: Optional[dict[str, Tensor]], share: Share) -> None:
    """Copy whole weights, process 0's, into the model. CramError when they are another model's."""
    mine = model.state_dict(keep_vars=True)
    shapes = share(state and {name: tensor.shape for name, tensor in state.items()})
    if shapes != {name: tensor.shape for name, tensor in mine.items()}:
        raise CramError("the checkpoint holds another model: its weights have other names or shapes; use another output folder")
    loaded = set()
    for name, tensor in mine.items():
        if id(tensor) not in loaded:  # a tied matrix has two names
            tensor.copy_(lay_out(share(state and state[name]), tensor))
            loaded.add(id(tensor))


def optimizer_states(model: nn.Module, optimizers: Iterable, main: bool) -> dict[str, dict[str, Any]]:
    """Whole states by parameter name, of all optimizers together. {} unless main."""
    states = {}
    for optimizer in optimizers:
        names = _names(model, optimizer)
        for index, state in optimizer.state_dict()["state"].items():
            states[names[index]] = whole(state, main)
    return states if main else {}


def load_optimizer_states(model: nn.Module, optimizers: Iterable, states: Optional[dict[str, dict[str, Any]]],
                          share: Share) -> None:
    """Take up whole states, process 0's. A parameter without a state had no step yet.

    States in the shape of a distributed parameter are cut like it, unless the optimizer keeps whole ones on every process
    (its attribute ``whole_states`` is true).
    """
    parameters = dict(model.named_parameters())
    for optimizer in optimizers:
        mine, keeps_whole = {}, getattr(optimizer, "whole_states", False)
        for index, name in enumerate(_names(model, optimizer)):
            saved = share(states and states.get(name))
            if saved:
                like = None if keeps_whole else parameters[name]
                mine[index] = {key: lay_out(value, like) for key, value in saved.items()}
        optimizer.load_state_dict({"state": mine, "param_groups": optimizer.state_dict()["param_groups"]})


def _names(model: nn.Module, optimizer) -> list[str]:
    """Name of each parameter of an optimizer, in the order in which its state_dict counts them. An offloaded optimizer has
    copies of the parameters, its ``masters``; CramError when those are copies of shards."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, master in getattr(optimizer, "masters", {}).items():
        if hasattr(parameter, "full_tensor"):
            raise CramError("optimizer.offload=true: each process would keep a part that no checkpoint can hold; "
                            "use optimizer.offload=false, or train.parallel=ddp")
        names[id(master)] = names[id(parameter)]
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
