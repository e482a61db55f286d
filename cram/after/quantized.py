"""A linear layer whose weights are kept in few bits, and the folder that a model of such layers is saved in.

On the CPU, float32 inputs are multiplied by PyTorch's own kernels (``_weight_int4pack_mm_for_cpu``, also for 3 bits, and
``_weight_int8pack_mm``) where the shape allows, in bfloat16. Generating with 12 layers of width 768 on one thread, 4 bits
were twice as fast as float32 by the kernel, and half as fast without it, by reading all weights back for every token.
That is what is done elsewhere (on a card, in float64): right and smaller, but slower than an unquantized model. The kernels
keep a copy of the codes in an order of their own.

Not by torchao: its 4-bit layers on the CPU call the same kernel, its GPTQ may be removed (pytorch/ao issue 2089), and what
it has saved it reads for a few releases only (issue 2948).

Axes: N tokens, O outputs, C inputs.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cram.after.round_to_nearest import Levels, decode, pack, unpack
from cram.config import from_dict
from cram.errors import CramError
from cram.evaluate.subject import Subject
from cram.model import build
from data_prep.files import file_hash, replace_durably, sync
from data_prep.tokenizer import load_tokenizer

FORMAT = 1
INT4_GROUPS = (32, 64, 128, 256)  # what the kernel of 4 bits knows
TOKENIZER = ("tokenizer.json", "manifest.json")


class QuantLinear(nn.Module):
    """x W^T + b with W in ``bits`` bits. Gradients flow to x alone.

    codes: uint8 [O, C]. levels: float16 [O, C / group] each. bias: [O] or None.
    """

    def __init__(self, codes_OC: Tensor, levels: Levels, bits: int, bias_O: Optional[Tensor] = None):
        super().__init__()
        self.bits, (self.out_features, self.in_features) = bits, codes_OC.shape
        self.group = self.in_features // levels.scale.shape[1]
        self.register_buffer("packed", pack(codes_OC, bits))
        self.register_buffer("scale", levels.scale.contiguous())
        self.register_buffer("low", levels.low.contiguous())
        self.register_buffer("bias", None if bias_O is None else bias_O.detach().clone())
        self._ready: Optional[tuple[Tensor, Tensor]] = None  # the kernel's form of them, made when first used

    @classmethod
    def empty(cls, out_features: int, in_features: int, bits: int, group: int, bias: bool) -> QuantLinear:
        """A layer of zeros, to load a state into."""
        zeros = [torch.zeros(out_features, in_features // group, dtype=torch.float16) for _ in range(2)]
        return cls(torch.zeros(out_features, in_features, dtype=torch.uint8), Levels(*zeros), bits,
                   torch.zeros(out_features) if bias else None)

    @property
    def weight(self) -> Tensor:
        """W read back, float32 [O, C]."""
        return self.read_back(torch.float32)

    @property
    def bytes(self) -> int:
        """What W takes, its scales and lows included."""
        return self.packed.nbytes + self.scale.nbytes + self.low.nbytes

    def read_back(self, dtype: torch.dtype) -> Tensor:
        return decode(unpack(self.packed, self.bits), Levels(self.scale, self.low), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., O], in the dtype of x."""
        kernel = self._kernel(x)
        if kernel is None:
            return F.linear(x, self.read_back(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
        y = kernel(x.reshape(-1, self.in_features).bfloat16()).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias

    def _kernel(self, x: Tensor) -> Optional[Callable[[Tensor], Tensor]]:
        """The fast way from bfloat16 [N, C] to float32 [N, O]; None where there is none."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
            return None
        aten = torch.ops.aten
        if self.bits == 8 and self.group == self.in_features:
            if self._ready is None:  # codes count from low = -128 scale, the kernel's from zero
                self._ready = (unpack(self.packed, 8).to(torch.int16) - 128).to(torch.int8), torch.ones(
                    self.out_features, dtype=torch.bfloat16)
            return lambda x_NC: aten._weight_int8pack_mm(x_NC, *self._ready).float() * self.scale[:, 0].float()
        if self.bits in (3, 4) and self.group in INT4_GROUPS and self.out_features % 16 == 0:
            if self._ready is None:  # the kernel's weight is (code - 8) scale + zero
                codes = aten._convert_weight_to_int4pack_for_cpu(unpack(self.packed, self.bits).int(), 1)
                zero = self.low.float() + 8 * self.scale.float()
                self._ready = codes, torch.stack((self.scale.float(), zero), -1).transpose(0, 1).contiguous().bfloat16()
            return lambda x_NC: aten._weight_int4pack_mm_for_cpu(x_NC, self._ready[0], self.group, self._ready[1]).float()
        return None

    def _apply(self, *arguments, **options) -> QuantLinear:
        self._ready = None
        return super()._apply(*arguments, **options)

    def _load_from_state_dict(self, *arguments) -> None:
        self._ready = None
        super()._load_from_state_dict(*arguments)


def replace_linear(block: nn.Module, name: str, bits: int, codes_OC: Tensor, levels: Levels) -> None:
    """Put a ``QuantLinear`` in the place of the linear layer ``name`` of a block."""
    bias = block.get_submodule(name).bias
    block.set_submodule(name, QuantLinear(codes_OC, levels, bits, bias))


def matrices(model: Any) -> dict[str, nn.Module]:
    """The linear layers of the blocks that run, as they are, by their names in the model: q, k, v, out; gate, up, down.

    Embedding, head, norms and what else there is (gates of value embeddings, scalars) stay as they are.
    """
    return {f"blocks.{number}.{part}.{name}": linear for number, block in enumerate(model.blocks[:model.depth])
            for part in ("attention", "mlp") for name, linear in block.get_submodule(part).named_children()
            if isinstance(linear, (nn.Linear, QuantLinear))}


def tensors(model: Any) -> dict[str, Tensor]:
    """All that a file of this model holds; a tied head is the embedding and not written again."""
    state = model.state_dict()
    if model.config.tied:
        state.pop("head.weight")
    return {name: tensor.contiguous() for name, tensor in state.items()}


def file_bytes(model: Any) -> int:
    """The size of ``model.safetensors``."""
    from safetensors.torch import save

    return len(save(tensors(model)))


def save_quantized(subject: Subject, folder: Path, tokenizer_dir: Path) -> None:
    """Write ``model.safetensors``, ``quantized.json`` and the tokenizer into ``folder``; ``open_quantized`` reads them.

    Raises CramError when the folder has something else in it, or the model is not quantized.
    """
    from safetensors.torch import save

    if "scheme" not in subject.notes:
        raise CramError(f"{subject.name} is not quantized; there is nothing to save")
    if folder.exists() and any(folder.iterdir()) and not (folder / "quantized.json").exists():
        raise CramError(f"{folder}: is not empty and holds no quantized model; name another folder")
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        replace_durably(folder / "tokenizer" / name, (tokenizer_dir / name).read_bytes())
    replace_durably(folder / "model.safetensors", save(tensors(subject.model)))
    model = subject.model
    told = {"format": FORMAT, "name": subject.name, "scheme": subject.notes["scheme"],
            "layers": {name: [layer.bits, layer.group] for name, layer in matrices(model).items()},
            "shape": {"depth": model.depth, "window": model.window, "rope_base": model.rope_base},
            "identity": subject.identity, "model": file_hash(folder / "model.safetensors"), "config": asdict(subject.config)}
    replace_durably(folder / "quantized.json", (json.dumps(told, indent=1) + "\n").encode())
    sync(folder)


def open_quantized(folder: Path, *, device: str) -> Subject:
    """A subject from what ``save_quantized`` wrote. Raises CramError when a file is missing, damaged or of another format."""
    from safetensors.torch import load_file

    path = folder / "quantized.json"
    try:
        told = json.loads(path.read_text())
        if told["format"] != FORMAT:
            raise CramError(f"{path}: format {told['format']}, this version reads {FORMAT}; quantize the run again")
        if file_hash(folder / "model.safetensors") != told["model"]:
            raise CramError(f"{folder / 'model.safetensors'}: not what was written (its hash differs); quantize the run again")
        config, tokenizer = from_dict(told["config"]), load_tokenizer(folder / "tokenizer")
        model = build(config.model, tokenizer.get_vocab_size(), config.objective.type != "masked")
        for name, (bits, group) in told["layers"].items():
            old = model.get_submodule(name)
            model.set_submodule(name, QuantLinear.empty(old.out_features, old.in_features, bits, group, old.bias is not None))
        state = load_file(folder / "model.safetensors")
        model.load_state_dict(state | ({"head.weight": state["embedding.weight"]} if config.model.tied else {}))
        model.depth, model.window, model.rope_base = (told["shape"][name] for name in ("depth", "window", "rope_base"))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, CramError):
            raise
        raise CramError(f"{folder}: not a whole quantized model ({error}); quantize the run again") from error
    special = {name: tokenizer.token_to_id(f"[{name.upper()}]") for name in ("pad", "unk", "cls", "sep", "mask")}
    return Subject(told["name"], model.to(device).eval(), tokenizer, special, config.objective.type,
                   config.train.sequence_length, device, told["identity"], folder, config, {"scheme": told["scheme"]})
