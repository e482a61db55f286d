"""Tensor parallelism: each layer split over processes, two sums a layer (Megatron-LM, Shoeybi et al. 2019, section 3).

    attention   q, k, v by output rows: every process has its own heads;   out by columns: partial sums, added up
    mlp         gate, up by output rows: its own inner columns;            down by columns: partial sums, added up

Between them everything is on every process: embeddings, norms, residual stream, head. Their gradients come out alike
everywhere. The exception are the gains of QK-norm: every process holds them whole and applies them to its own heads, so
its gradient is one addend of the whole.

Axes: N tokens, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn

from cram.errors import CramError


def split(model: nn.Module, mesh) -> None:
    """Split the blocks of a Transformer over ``mesh`` (``torch.distributed.DeviceMesh``, one axis), in place.

    Raises CramError when heads or feed-forward columns do not divide by the number of processes.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    _refuse(model, mesh.size())
    plan = {**{f"attention.{name}": ColwiseParallel() for name in "qkv"}, "attention.out": RowwiseParallel(),
            "mlp.gate": ColwiseParallel(), "mlp.up": ColwiseParallel(), "mlp.down": RowwiseParallel()}
    if model.blocks[0].mlp.gate is None:
        del plan["mlp.gate"]
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
        for layer in (block.attention, block.mlp):
            _replicate_input(layer, mesh)
        for norm in (block.attention.q_norm, block.attention.k_norm):
            if norm is not None:
                _sum_gradient(norm.weight, mesh)


def _refuse(model: nn.Module, size: int) -> None:
    config, inner = model.config, model.blocks[0].mlp.up.out_features
    for key, number in (("heads", config.heads), ("kv_heads", config.kv_heads or config.heads), ("mlp_width", inner)):
        if number % size:
            raise CramError(f"train.parallel=tp: model.{key} is {number}, which {size} processes cannot share equally; "
                            "choose a multiple, another number of processes, or train.parallel=fsdp")
    if config.value_embeddings:
        raise CramError("train.parallel=tp: model.value_embeddings cannot be split; use train.parallel=ddp or fsdp")


def _replicate_input(layer: nn.Module, mesh) -> None:
    """Tell the layer's projections that all of them read the same x_ND: its gradient is then summed over processes once,
    not once a projection."""
    from torch.distributed.tensor import DTensor, Replicate

    def replicate(module: nn.Module, inputs: tuple) -> tuple:
        return DTensor.from_local(inputs[0], mesh, [Replicate()], run_check=False), *inputs[1:]

    layer.register_forward_pre_hook(replicate)


def _sum_gradient(parameter: nn.Parameter, mesh) -> None:
    """Each gradient that reaches the parameter becomes the sum over processes."""
    from torch.distributed._functional_collectives import all_reduce, wait_tensor

    def sum_up(gradient: Tensor) -> Tensor:
        return wait_tensor(all_reduce(gradient, "sum", mesh))

    parameter.register_hook(sum_up)
