"""Tensors that several processes share (``torch.distributed.tensor.DTensor``), seen whole or in part.

Plain tensors pass through untouched, so an optimizer is written once: elementwise work on ``local`` parts, work on a
whole matrix between ``whole`` and ``part_of``.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory with the tensor. Call under ``torch.no_grad``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, gathered from every process; a collective when the tensor is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of ``full``, cut as ``like`` is. No communication: every process must hold the same ``full``."""
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()


def by_mesh(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors grouped by the mesh that shares them, plain ones together: those of a group may meet in one operation."""
    groups: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.device_mesh if isinstance(tensor, DTensor) else None, []).append(tensor)
    return list(groups.values())
