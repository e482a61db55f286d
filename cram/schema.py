"""The configuration schema: every key that a YAML file or the command line may set.

One dataclass a section, one line a field. The text in ``help`` is what
``cram config`` prints beside the value: meaning, unit, source. Nothing here
imports torch; loading, overriding and refusing live in ``cram/config.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Optional

from cram.schema_after import Evaluate, Finetune, Quantize
from cram.schema_data import Data, Edits, Filters, NearDedup, Tokenizer, key

__all__ = ["Config", "Data", "Distill", "Edits", "Evaluate", "Filters", "Finetune", "Model", "NearDedup", "Objective", "Optimizer",
           "Quantize", "Schedule", "Telemetry", "Tokenizer", "Train"]


@dataclass
class Model:
    """One Transformer (Vaswani et al. 2017), bidirectional or causal as the objective asks."""

    layers: int = key(12, "number of Transformer blocks")
    width: int = key(768, "model dimension D")
    heads: int = key(12, "query heads H; width / heads is the head dimension, an even number")
    kv_heads: Optional[int] = key(None, "key/value heads (grouped-query attention, Ainslie et al. 2023); null: same as heads")
    mlp: Literal["gelu", "geglu", "swiglu", "relu2"] = key(
        "geglu", "feed-forward activation; geglu and swiglu are gated (Shazeer 2020), relu2 is squared ReLU (So et al. 2021)")
    mlp_width: Optional[int] = key(None, "feed-forward inner dimension F; null: 4 D, or 8/3 D rounded up to 64 when gated")
    norm: Literal["rmsnorm", "layernorm"] = key("rmsnorm", "pre-normalisation (Zhang & Sennrich 2019; Ba et al. 2016)")
    norm_eps: float = key(1e-6, "added to the variance")
    position: Literal["rope", "scaled_sinusoidal", "none"] = key(
        "rope", "rope: rotary (Su et al. 2021), restarting at each document; scaled_sinusoidal: cramming's, one learned scale")
    rope_base: float = key(10000.0, "rope: base of the wavelengths")
    rope_base_end: Optional[float] = key(
        None, "rope: base once train.sequence_schedule has reached the full row (context extension by adjusted base frequency, "
        "Xiong et al. 2023, section 2.1); null: rope_base throughout")
    attention: Literal["auto", "triton", "sdpa", "flex", "varlen"] = key(
        "auto", "back end: triton (cram's fused kernels, Ampere cards and newer), sdpa (PyTorch's, everywhere), flex and "
        "varlen (PyTorch's, CUDA, for comparison); auto: triton where it runs, else sdpa")
    qk_norm: bool = key(True, "RMS-normalise queries and keys per head with a learned gain (Dehghani et al. 2023)")
    embedding_norm: bool = key(True, "normalise the embeddings before the first block")
    first_attention_norm: bool = key(
        True, "norm before the first block's attention; false: the embedding norm serves, as in ModernBERT (Warner et al. 2024)")
    tied: bool = key(True, "input embedding and output head share one matrix (Press & Wolf 2017)")
    bias: bool = key(False, "biases in linear layers")
    zero_init: bool = key(True, "residual branches start at zero: output projections are initialised to 0")
    init_std: float = key(0.02, "standard deviation of weight initialisation")
    logit_softcap: Optional[float] = key(None, "cap * tanh(logits / cap) (Gemma 2); null: none")
    value_embeddings: bool = key(
        False, "every other layer adds a gated embedding of its input token to its values (Zhou et al. 2024; modded-nanogpt)")
    residual_scalars: bool = key(
        False, "each block reads a x + b x0, x0 the embedded tokens, with learned a (from 1) and b (from 0) (modded-nanogpt)")
    bigram_rows: Optional[int] = key(
        None, "add an embedding of each token with the one before it, from a table of so many rows that pairs share by a hash "
        "(modded-nanogpt); in a masked model also with the one after it, from a second table; null: none")
    window: Optional[int] = key(None, "attend at most this many tokens to each side; null: whole document")
    document_mask: bool = key(True, "attention never crosses a document boundary; false: whole row, as cramming and nanoGPT")


@dataclass
class Objective:
    """What is predicted."""

    type: Literal["masked", "causal", "hybrid"] = key(
        "masked", "masked: BERT's cloze task; causal: next token; hybrid: one model learns both, each hidden token predicted "
        "by the position before it (GPT-BERT, Charpentier & Samuel 2024)")
    causal_share: float = key(0.5, "hybrid: share of the micro-batches that are causal; the others are masked")
    mask_rate: float = key(0.3, "masked: share of tokens predicted at the start (Wettig et al. 2023)")
    mask_rate_end: Optional[float] = key(None, "masked: share at the end, falling linearly in a few steps; null: constant")
    mask_rate_levels: int = key(4, "masked: number of distinct rates on the way (each compiles once)")
    mask_token_fraction: float = key(0.8, "masked: of the predicted tokens, share replaced by [MASK] (Devlin et al. 2019)")
    random_token_fraction: float = key(0.1, "masked: share replaced by a random token; the rest stays as it is")
    z_loss: float = key(0.0, "weight of log(Z)^2 (PaLM, Chowdhery et al. 2022); 0: off")


@dataclass
class Optimizer:
    """Update rule. Decoupled weight decay (Loshchilov & Hutter 2019) on everything but gains, biases and scales."""

    type: Literal["adamw", "muon", "adalomo"] = key(
        "muon", "adamw for all; muon for hidden matrices (Jordan 2024), adamw for the rest; adalomo for all, with factored "
        "second moments (Lv et al. 2023)")
    lr: float = key(1e-3, "peak learning rate of AdamW parameters; of all with AdaLomo, there relative to a parameter's size")
    embedding_lr: Optional[float] = key(None, "peak learning rate of embedding and head (AdamW); null: lr")
    muon_lr: float = key(
        0.02, "peak learning rate of Muon matrices (update has RMS 0.2 x this, as in Moonlight, Liu et al. 2025)")
    beta1: float = key(0.9, "AdamW: decay of the first moment")
    beta2: float = key(0.98, "AdamW: decay of the second moment")
    eps: float = key(1e-8, "AdamW: added to the root of the second moment")
    momentum: float = key(0.95, "Muon: Nesterov momentum")
    weight_decay: float = key(0.01, "per unit of learning rate")
    clip: Optional[float] = key(1.0, "clip the global gradient norm to this; null: never")
    cautious: bool = key(False, "cautious weight decay: only where the update has the weight's sign (Chen et al. 2025)")
    fused_backward: bool = key(
        False, "AdaLomo: update each parameter as soon as its gradient is there and free that (LOMO, Lv et al. 2023)")
    state_bits: int = key(32, "AdamW: bits of its two moments, 32 or 8 (Dettmers et al. 2022; needs bitsandbytes)")
    offload: bool = key(
        False, "AdamW: its moments and its step live in the computer's memory, not the card's (ZeRO-Offload, Ren et al. 2021)")


@dataclass
class Schedule:
    """Shapes over progress p = spent / budget in [0, 1]. All end at learning rate 0."""

    type: Literal["one-cycle", "triangle", "trapezoid", "cosine", "constant"] = key(
        "trapezoid", "one-cycle: up to peak at `warmup`, then linear to 0; triangle: cramming's budget-triangle2; "
        "trapezoid: warm-up, flat, linear to 0 over `decay`; cosine: warm-up, then half a cosine to 0; "
        "constant: warm-up, flat, 0 at the last step only")
    warmup: float = key(0.02, "share of the budget for the linear warm-up (triangle: position of the peak)")
    decay: float = key(0.5, "trapezoid: share of the budget for the final linear decay")
    start: float = key(0.0, "learning rate at p = 0 as a share of the peak")


@dataclass
class Train:
    """The loop."""

    sequence_length: int = key(128, "tokens per row T")
    order: Literal["shuffled", "short-first", "frequent-first", "rare-first"] = key(
        "shuffled", "order of the rows: shuffled: a seeded permutation each epoch; short-first: rows of short documents "
        "first; frequent-first: rows of frequent tokens first (cramming's unigram curriculum, Geiping & Goldstein 2023, "
        "section 4.4); rare-first")
    batch_tokens: int = key(16384, "tokens per optimizer step (global batch); a multiple of sequence_length")
    batch_ramp: float = key(0.0, "share of the budget over which the batch grows linearly from batch_start_tokens; 0: off")
    batch_start_tokens: Optional[int] = key(None, "batch at p = 0 when batch_ramp > 0, tokens")
    sequence_schedule: list[list[float]] = key(
        [], "[[0, 128], [0.7, 512]]: from these progresses on, rows are cut into pieces of so many tokens; ends at "
        "sequence_length, which is then the context extension of a model trained on short rows (LongRecipe, Hu et al. 2024)")
    window_schedule: list[list[float]] = key(
        [], "[[0, 32], [0.5, 128]]: from these progresses on, attention reaches so far to each side; ends at model.window, "
        "or at sequence_length when that is null")
    layer_schedule: list[list[float]] = key(
        [], "[[0, 6], [0.3, 12]]: start with so many blocks and stack copies of them on top (Gong et al. 2019); ends at "
        "model.layers")
    micro_batch_tokens: Optional[int] = key(
        None, "tokens per forward/backward; null: on CUDA the largest that fits, measured and charged; on CPU batch_tokens "
        "up to 8192, divided among the workers")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto: CUDA when there is a card")
    precision: Literal["auto", "native", "fp32", "bf16", "fp16"] = key(
        "auto", "auto: bf16 where the card has it, else fp16 with loss scaling, fp32 on CPU; native: the same, but bf16 on a "
        "CPU that multiplies it itself (AVX-512 BF16, AMX, Armv8.6)")
    loss: Literal["plain", "chunked"] = key(
        "plain", "last layer and cross-entropy: plain holds all logits; chunked a few rows at a time, gradient included: less "
        "memory (kernels/loss.py)")
    compile: Literal["auto", "on", "off"] = key("auto", "torch.compile; auto: on for CUDA, off for CPU")
    recompute: Literal["none", "selective", "full"] = key(
        "none", "what the backward pass computes again instead of keeping it: nothing; selective: all but matrix products and "
        "attention (Korthikanti et al. 2022); full: everything but the inputs of blocks (Chen et al. 2016)")
    fp8: bool = key(False, "matrix products of the blocks in 8-bit floats, e4m3 forward, e5m2 backward (Micikevicius et al. "
                    "2022); cards of compute capability 8.9 and newer")
    ema: Optional[float] = key(
        None, "keep an exponential moving average of the weights with this decay a step; it is what is validated and evaluated")
    parallel: Literal["none", "ddp", "fsdp", "tp"] = key(
        "none", "under torchrun: ddp: every process holds the model; fsdp: shards of it (FSDP2, ZeRO stage 3); tp: each layer "
        "is split (Megatron-LM). The budget is charged wall time x processes")
    spike_sigmas: Optional[float] = key(
        6.0, "skip a step whose loss lies more than so many standard deviations above the mean of the last spike_window steps; "
        "null: only what is not finite")
    spike_window: int = key(128, "steps of that memory; nothing is judged before it is full")
    skip_limit: int = key(10, "so many skipped steps in a row: go back to the newest checkpoint and skip the text since")
    rollback_limit: int = key(2, "so often at most; then the run stops with advice")
    threads: Optional[int] = key(None, "CPU threads of torch; null: torch's own choice")
    workers: Optional[int] = key(
        1, "CPU: so many micro-batches are computed side by side, each by its share of the threads, which suits small models; "
        "null: one a thread, where the batch can be divided so")
    deterministic: bool = key(True, "ask torch for deterministic algorithms (same bits on the same machine)")
    checkpoint_every: Optional[float] = key(
        None, "seconds between checkpoints; null: so that saving costs at most 1%, between 10 s and 10 min")
    checkpoint_every_steps: Optional[int] = key(None, "steps between checkpoints (instead of seconds)")
    keep_checkpoints: int = key(2, "newest checkpoints kept")
    validate_every: float = key(0.1, "share of the budget between validations")
    validation_tokens: int = key(32768, "held-out tokens per validation")
    validation_pairs: int = key(
        0, "minimal pairs of BLiMP (evaluate.mirror) scored at each validation as well, such as 500; 0: none")
    reserve: Optional[float] = key(
        None, "seconds kept back at the end; null: measured (slowest recent step, slowest save, margin)")
    replay: Optional[str] = key(None, "path of a recorded progress.f64: follow it instead of the clock, bit for bit")


@dataclass
class Distill:
    """Learning from a teacher (Hinton et al. 2015) that the same budget has paid for."""

    teacher: Optional[str] = key(
        None, "pretraining folder of a finished run with the same tokenizer, such as runs/big/pretrain; its whole ledger is "
        "charged to this budget first; null: no teacher")
    weight: float = key(0.5, "share of the teacher in the loss; the rest is cross-entropy with the text")
    temperature: float = key(1.0, "both distributions are softened by it; the term is multiplied by its square")


@dataclass
class Telemetry:
    """What is written while training; changes nothing in the result."""

    log_every: int = key(10, "steps between rows of metrics.jsonl and TensorBoard")
    print_every: float = key(10.0, "seconds between progress lines when the output is no terminal")
    heartbeat: float = key(5.0, "seconds between ledger heartbeats; a crash is charged one more, or more where they came late")
    energy: bool = key(True, "read NVML energy where a card has it")
    usd_per_hour: Optional[float] = key(None, "price of the device, for the report")


@dataclass
class Config:
    """The whole configuration."""

    name: str = key("run", "name of the run; results are linked from <out>/<name>")
    out: str = key("runs", "folder for artifacts and runs")
    seed: int = key(0, "seeds initialisation, data order and masking")
    budget: str = key("24h", "90s, 10m, 24h, 1h30m (device time), or '3e18 flops', '2e9 tokens', '500 steps'")
    data: Data = field(default_factory=Data)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    distill: Distill = field(default_factory=Distill)
    evaluate: Evaluate = field(default_factory=Evaluate)
    quantize: Quantize = field(default_factory=Quantize)
    telemetry: Telemetry = field(default_factory=Telemetry)
