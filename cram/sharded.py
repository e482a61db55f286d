"""Tensors that several processes share (``torch.distributed.tensor.DTensor``), seen whole or in part.

Plain tensors pass through untouched, so an optimizer is written once: elementwise work on ``local`` parts, work on a
whole matrix between ``whole`` and ``part_of``.
"""

from __future__ import annotations

from torch import Tensor


def is_shared(tensor: Tensor) -> bool:
    """Whether it is a DTensor; told by its methods, since importing the class takes half a second."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory with the tensor. Call under ``torch.no_grad``."""
    return tensor.to_local() if is_shared(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, gathered from every process; a collective when the tensor is sharded."""
    return tensor.full_tensor() if is_shared(tensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of ``full``, cut as ``like`` is. No communication: every process must hold the same ``full``."""
    if not is_shared(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()


def by_mesh(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors grouped by the mesh that shares them, plain ones together: those of a group may meet in one operation."""
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device_mesh if is_shared(tensor) else None, []).append(tensor)
    return list(groups.values())
