"""Techniques that cannot work together, each refused when a configuration is loaded, with the reason and the remedy.

The README shows this table; a test holds the two together and tries every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

from cram.schema import Config


@dataclass(frozen=True)
class Combination:
    """keys: what it is about; what: in words; because: why it cannot be; remedy: what to do; refused: whether a
    configuration has it; example: overrides of ``demo`` that have it."""

    keys: tuple[str, ...]
    what: str
    because: str
    remedy: str
    refused: Callable[[Config], bool]
    example: tuple[str, ...]

    def told(self) -> str:
        return f"{self.what}: {self.because}; {self.remedy}"


def _accumulates(c: Config) -> bool:
    return c.train.batch_ramp > 0 or (c.train.micro_batch_tokens or c.train.batch_tokens) != c.train.batch_tokens


COMBINATIONS = (
    Combination(
        ("optimizer.fused_backward", "optimizer.type"), "optimizer.fused_backward without AdaLomo",
        "the update of AdamW or Muon needs all gradients of the step", "set optimizer.type=adalomo",
        lambda c: c.optimizer.fused_backward and c.optimizer.type != "adalomo", ("optimizer.fused_backward=true",)),
    Combination(
        ("optimizer.fused_backward", "train.micro_batch_tokens", "train.batch_ramp"),
        "optimizer.fused_backward with several micro-batches", "a parameter is updated by the first of them",
        "make train.micro_batch_tokens the whole train.batch_tokens, without train.batch_ramp, or set it to false",
        lambda c: c.optimizer.fused_backward and _accumulates(c),
        ("optimizer.type=adalomo", "optimizer.clip=null", "optimizer.fused_backward=true", "train.micro_batch_tokens=1024")),
    Combination(
        ("optimizer.fused_backward", "optimizer.clip"), "optimizer.fused_backward with optimizer.clip",
        "the norm of the whole gradient is known only when the updates are done",
        "set optimizer.clip=null (AdaLomo bounds each update itself)",
        lambda c: c.optimizer.fused_backward and c.optimizer.clip is not None,
        ("optimizer.type=adalomo", "optimizer.fused_backward=true")),
    Combination(
        ("optimizer.fused_backward", "train.precision"), "optimizer.fused_backward with train.precision=fp16",
        "an overflow shows after the updates", "use bf16 or fp32",
        lambda c: c.optimizer.fused_backward and c.train.precision == "fp16",
        ("optimizer.type=adalomo", "optimizer.clip=null", "optimizer.fused_backward=true", "train.precision=fp16")),
    Combination(
        ("optimizer.state_bits", "optimizer.type"), "optimizer.state_bits=8 without AdamW",
        "Muon and AdaLomo keep no two moments to shrink", "set optimizer.type=adamw",
        lambda c: c.optimizer.state_bits == 8 and c.optimizer.type != "adamw", ("optimizer.state_bits=8",)),
    Combination(
        ("optimizer.state_bits", "optimizer.cautious"), "optimizer.state_bits=8 with optimizer.cautious",
        "the sign of the update is hidden in 8-bit blocks", "choose one",
        lambda c: c.optimizer.state_bits == 8 and c.optimizer.cautious,
        ("optimizer.type=adamw", "optimizer.state_bits=8", "optimizer.cautious=true")),
    Combination(
        ("optimizer.offload", "optimizer.type"), "optimizer.offload with AdaLomo",
        "it has next to no state to move away", "use AdamW, or Muon, whose matrices stay on the card",
        lambda c: c.optimizer.offload and c.optimizer.type == "adalomo",
        ("optimizer.type=adalomo", "optimizer.offload=true")),
    Combination(
        ("optimizer.offload", "optimizer.state_bits"), "optimizer.offload with optimizer.state_bits=8",
        "both shrink what the moments take of the card, offload to nothing", "choose one",
        lambda c: c.optimizer.offload and c.optimizer.state_bits == 8,
        ("optimizer.type=adamw", "optimizer.offload=true", "optimizer.state_bits=8")),
    Combination(
        ("train.parallel", "optimizer.fused_backward"), "train.parallel with optimizer.fused_backward",
        "a parameter would be updated before its gradient is summed over the processes", "set optimizer.fused_backward=false",
        lambda c: c.train.parallel != "none" and c.optimizer.fused_backward,
        ("train.parallel=ddp", "optimizer.type=adalomo", "optimizer.clip=null", "optimizer.fused_backward=true")),
    Combination(
        ("train.parallel", "optimizer.state_bits"), "train.parallel=fsdp or tp with optimizer.state_bits=8",
        "blocks of 8-bit states would be cut by the shards", "use train.parallel=ddp",
        lambda c: c.train.parallel in ("fsdp", "tp") and c.optimizer.state_bits == 8,
        ("train.parallel=tp", "optimizer.type=adamw", "optimizer.state_bits=8")),
    Combination(
        ("train.parallel", "optimizer.offload"), "train.parallel=fsdp or tp with optimizer.offload",
        "the copies in the computer's memory are of whole parameters", "use train.parallel=ddp",
        lambda c: c.train.parallel in ("fsdp", "tp") and c.optimizer.offload,
        ("train.parallel=fsdp", "optimizer.type=adamw", "optimizer.offload=true")),
    Combination(
        ("train.parallel", "train.ema"), "train.parallel=fsdp or tp with train.ema",
        "the average would be of shards, which nothing can be validated with", "use train.parallel=ddp",
        lambda c: c.train.parallel in ("fsdp", "tp") and c.train.ema is not None, ("train.parallel=fsdp", "train.ema=0.9")),
    Combination(
        ("train.parallel", "train.fp8"), "train.parallel=fsdp or tp with train.fp8",
        "the scale of a shard is not that of the matrix", "use train.parallel=ddp",
        lambda c: c.train.parallel in ("fsdp", "tp") and c.train.fp8, ("train.parallel=tp", "train.fp8=true")),
    Combination(
        ("train.parallel", "model.value_embeddings"), "train.parallel=tp with model.value_embeddings",
        "their tables are not split by heads", "use ddp or fsdp",
        lambda c: c.train.parallel == "tp" and c.model.value_embeddings, ("train.parallel=tp", "model.value_embeddings=true")),
    Combination(
        ("train.fp8", "train.device"), "train.fp8 on the CPU", "a CPU has no 8-bit matrix products", "set train.fp8=false",
        lambda c: c.train.fp8 and c.train.device == "cpu", ("train.fp8=true", "train.device=cpu")),
    Combination(
        ("train.fp8", "train.precision"), "train.fp8 with train.precision=fp16 or fp32",
        "the results of its products are bf16", "use train.precision=bf16",
        lambda c: c.train.fp8 and c.train.precision in ("fp16", "fp32"), ("train.fp8=true", "train.precision=fp32")),
    Combination(
        ("train.workers", "train.compile"), "train.workers above 1 with train.compile=on",
        "compiled code is made by one thread for itself", "choose one; train.workers=null gives way",
        lambda c: (c.train.workers or 1) > 1 and c.train.compile == "on", ("train.workers=2", "train.compile=on")),
    Combination(
        ("train.workers", "train.parallel"), "train.workers above 1 with train.parallel",
        "gradients are summed over processes while one backward pass runs", "choose one; train.workers=null gives way",
        lambda c: (c.train.workers or 1) > 1 and c.train.parallel != "none", ("train.workers=2", "train.parallel=ddp")),
    Combination(
        ("train.workers", "optimizer.fused_backward"), "train.workers above 1 with optimizer.fused_backward",
        "a parameter would be updated before all workers' gradients are there", "choose one; train.workers=null gives way",
        lambda c: (c.train.workers or 1) > 1 and c.optimizer.fused_backward,
        ("train.workers=2", "optimizer.type=adalomo", "optimizer.clip=null", "optimizer.fused_backward=true")),
    Combination(
        ("distill.teacher", "train.loss"), "distill.teacher with train.loss=chunked",
        "the whole distributions of both models are compared", "use train.loss=plain",
        lambda c: c.distill.teacher is not None and c.train.loss == "chunked",
        ("distill.teacher=runs/big/pretrain", "train.loss=chunked")),
    Combination(
        ("distill.teacher", "train.replay"), "distill.teacher with train.replay",
        "the teacher's steps count in the budget, the record has only the student's", "replay runs without a teacher",
        lambda c: c.distill.teacher is not None and c.train.replay is not None,
        ("distill.teacher=runs/big/pretrain", "train.replay=README.md")),
    Combination(
        ("distill.teacher", "train.parallel"), "distill.teacher with train.parallel=fsdp or tp",
        "the teacher would be split with the student", "use train.parallel=ddp",
        lambda c: c.distill.teacher is not None and c.train.parallel in ("fsdp", "tp"),
        ("distill.teacher=runs/big/pretrain", "train.parallel=fsdp")),
    Combination(
        ("model.rope_base_end", "train.sequence_schedule"), "model.rope_base_end without train.sequence_schedule",
        "rows never become longer", "give a train.sequence_schedule, or set model.rope_base",
        lambda c: c.model.rope_base_end is not None and not c.train.sequence_schedule, ("model.rope_base_end=40000",)),
    Combination(
        ("model.rope_base_end", "model.position"), "model.rope_base_end without rotary positions",
        "there is no base to change", "use model.position=rope",
        lambda c: c.model.rope_base_end is not None and c.model.position != "rope",
        ("model.rope_base_end=40000", "model.position=none", "train.sequence_schedule=[[0, 64], [0.5, 128]]")),
    Combination(
        ("data.packing", "train.sequence_schedule"), "data.packing=best-fit with train.sequence_schedule",
        "documents were fitted into whole rows, and would be cut again", "use data.packing=stream",
        lambda c: c.data.packing == "best-fit" and bool(c.train.sequence_schedule),
        ("data.packing=best-fit", "train.sequence_schedule=[[0, 64], [0.5, 128]]")),
)


def table() -> str:
    """The combinations as a Markdown table."""
    rows = [f"| {each.what} | {each.because} | {each.remedy} |" for each in COMBINATIONS]
    return "\n".join(["| refused | because | instead |", "|---|---|---|", *rows])
