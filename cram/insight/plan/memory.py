"""Memory of training by part, before any is taken.

What is at rest follows from the parameters. What a forward pass keeps for the backward pass is counted on the very model, run
over torch's fake tensors: every operation says what it would save, nothing is computed (activations of eager code; a compiled
model keeps fewer, so this is its upper bound).
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, Iterator

import torch
from torch import nn

from cram.masking import IGNORE
from cram.model import Transformer
from cram.objective import Loss, predicted_fraction
from cram.ops import CHUNK_BYTES, Documents
from cram.optim import partition

PARTS = ("weights", "gradients", "optimizer", "moving average", "copies for autocast", "activations", "logits")


def memory(config, vocab_size: int, micro_tokens: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each part at the peak of a step, on the device. micro_tokens: of one forward and backward pass."""
    with _fake(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Transformer(config.model, vocab_size, config.objective.type != "masked")
        weights = _bytes(model.parameters())
        largest = max(parameter.nbytes for parameter in model.parameters())
        kept, logits, copies = _kept(config, model, micro_tokens, dtype)
        return {"weights": weights, "gradients": largest if config.optimizer.fused_backward else weights,
                "optimizer": optimizer_bytes(model, config.optimizer),
                "moving average": weights if config.train.ema is not None else 0,
                "copies for autocast": copies, "activations": kept, "logits": logits}


def optimizer_bytes(model: nn.Module, optimizer) -> int:
    """States of the optimizer on the device, after its first step. optimizer: ``cram.schema.Optimizer``."""
    groups = partition(model)
    numbers = {kind: sum(parameter.numel() for parameter in group) for kind, group in groups.items()}
    if optimizer.type == "adalomo":  # factored second moments of matrices, whole ones of vectors, float32
        return 4 * sum(sum(parameter.shape) if parameter.ndim == 2 else parameter.numel()
                       for group in groups.values() for parameter in group)
    if optimizer.offload:
        return 0
    of_matrices = 4 if optimizer.type == "muon" else 2 if optimizer.state_bits == 8 else 8
    return of_matrices * numbers["matrices"] + 8 * (numbers["embeddings"] + numbers["vectors"])


def _kept(config, model: Transformer, tokens: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Bytes that the backward pass needs of the layers, of the logits with their gradient, and whatever the number of
    tokens."""
    row, depth = config.train.sequence_length, model.depth
    total, of_logits, copies = _by_token(config, model, dtype)
    if config.train.recompute != "none":
        model.depth = 0
        outside, _, _ = _by_token(config, model, dtype)
        model.depth = depth
        block = (total - outside) / depth
        if config.train.recompute == "full":  # the inputs of all blocks, and one block at a time
            total = outside + depth * model.config.width * 4 + block
        else:  # what matrix products and attention give, of all blocks, and the rest of one
            total = outside + (depth - 1) * min(block, _products(model) * dtype.itemsize) + block
    if config.train.loss == "chunked":
        return round(total * tokens), CHUNK_BYTES, round(copies)
    predicted = 1.0 if model.causal else predicted_fraction(False, config.objective.mask_rate, row)
    of_logits += 4 * predicted * model.vocab_size  # the gradient of the logits, float32, is there beside what was saved
    return round(total * tokens), round(of_logits * tokens), round(copies)


def _by_token(config, model: Transformer, dtype: torch.dtype) -> tuple[float, float, float]:
    """Bytes a token saved without the logits, of the logits, and bytes that do not depend on the number of tokens."""
    row = config.train.sequence_length
    (few, few_logits), (many, many_logits) = (_saved(config, model, rows * row, dtype) for rows in (2, 4))
    each, each_logits = (many - few) / (2 * row), (many_logits - few_logits) / (2 * row)
    return each, each_logits, max(0.0, few + few_logits - 2 * row * (each + each_logits))


def _products(model: Transformer) -> int:
    """Numbers a token that the matrix products and the attention of a block give."""
    return sum(module.out_features for module in model.blocks[0].modules()
               if isinstance(module, nn.Linear)) + model.config.width


def _saved(config, model: Transformer, tokens: int, dtype: torch.dtype) -> tuple[int, int]:
    """(bytes saved in a forward pass without the logits, those of the logits)."""
    row, causal = config.train.sequence_length, model.causal
    ids_N = torch.zeros(tokens, dtype=torch.int64)
    start_N = torch.zeros(tokens, dtype=torch.int32)
    positions_K = None if causal else torch.zeros(round(tokens * config.objective.mask_rate), dtype=torch.int64)
    labels_K = ids_N if causal else torch.full_like(positions_K, IGNORE)
    storages: dict[int, tuple[Any, bool]] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = (storage, model.vocab_size in tensor.shape and tensor.ndim == 2)
        return tensor

    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    half = contextlib.nullcontext() if dtype is torch.float32 else torch.autocast("cpu", torch.bfloat16)
    with half, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        Loss(model, config.objective, False, None, config.distill).forward(
            ids_N, Documents(start_N, start_N + row, row), positions_K, labels_K, causal)
    sizes = [(storage.nbytes(), of_logits) for key, (storage, of_logits) in storages.items() if key not in own]
    return sum(size for size, logits in sizes if not logits), sum(size for size, logits in sizes if logits)


def _bytes(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@contextlib.contextmanager
def _fake() -> Iterator[None]:
    """Tensors made here have shapes and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        yield
