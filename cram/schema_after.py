"""The part of the configuration about what follows the day: evaluation, fine-tuning, quantization (see schema.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

from cram.schema_data import key


@dataclass
class Finetune:
    """Fine-tuning on GLUE and SuperGLUE: one set of hyperparameters for all tasks (Geiping & Goldstein 2023, section 5)."""

    epochs: int = key(5, "passes over a task's training examples; at most 5")
    batch: int = key(16, "examples an optimizer step")
    lr: float = key(4e-5, "peak learning rate of AdamW")
    pooling: Literal["mean", "token"] = key(
        "mean", "what stands for a sequence: the mean of its tokens; token: [CLS], as in BERT, or the last of causal models")
    schedule: Literal["cosine", "linear"] = key("cosine", "decay to 0 after the warm-up")
    warmup: float = key(0.1, "share of the steps")
    weight_decay: float = key(0.0, "per unit of learning rate, of matrices")
    clip: Optional[float] = key(1.0, "gradient norm at most, as run_glue of transformers; null: none, as the paper")
    length: int = key(128, "tokens of an example at most; the longer of two sentences is cut first")
    seeds: int = key(5, "fine-tunings a task, each with its own order and head; the median counts")
    max_examples: Optional[int] = key(None, "training examples used at most, the first of a seeded shuffle; null: all")
    control: bool = key(False, "also fine-tune the same model with random weights: what pretraining gains")


@dataclass
class Evaluate:
    """The last look, outside the budget."""

    tokens: int = key(500_000, "held-out tokens scored at most (whole documents)")
    mask_rate: float = key(0.15, "masked: share of tokens hidden in evaluation, whatever training used")
    tasks: list[str] = key(
        [], "benchmarks scored once the model is safe: blimp, hellaswag, lambada, glue.mrpc, glue, probe.sst2 ... (cram evaluate "
        "--list); read from the mirror or the hub")
    mirror: Optional[str] = key(None, "folder laid out as data.mirror, with the benchmarks; null: data.mirror")
    minimal_pairs: int = key(20, "minimal pairs scored per BLiMP phenomenon file (of 1,000); 0: skip")
    finetune: Finetune = field(default_factory=Finetune)
    prompts: list[str] = key(
        ["Returns the number of", "This function", "The first"], "causal: beginnings of the generated samples")
    blanks: list[str] = key(
        ["Returns the [MASK] of the array.", "If True, the [MASK] is returned.", "The [MASK] of the input tensor."],
        "masked: sentences to fill; [MASK] stands for one token")
    sample_tokens: int = key(60, "causal: tokens generated per sample")


SCHEMES = ("int8", "int4", "int3", "gptq4", "gptq3", "kv4")


@dataclass
class Quantize:
    """Fewer bits a weight after the day, outside the budget."""

    schemes: list[str] = key(
        ["int8", "int4", "gptq4"], "what the report compares: int8: round to nearest, one scale a row; int4, int3: in groups; "
        "gptq4, gptq3: GPTQ in groups (Frantar et al. 2023); kv4: 4-bit key/value cache (FlexGen, Sheng et al. 2023); []: none")
    group: int = key(64, "4 and 3 bits: weights of a row that share a scale")
    calibration_tokens: int = key(32768, "held-out tokens that GPTQ looks at; none of them is among those scored")
    tokens: int = key(32768, "held-out tokens scored per scheme")
