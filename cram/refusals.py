"""What a configuration cannot be: ranges, and combinations that contradict each other."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any, Callable, Iterator

from cram.budget import Budget
from cram.combinations import COMBINATIONS
from cram.config import COMMAND_LINE, lookup
from cram.errors import CramError
from cram.explain import show
from cram.refusals_engine import idle, levels
from cram.schema import Config
from cram.schema_after import SCHEMES

# A rule is (what to say, test); values of null are never tested.
Rule = tuple[str, Callable[[Any], bool]]
COUNT: Rule = ("must be at least 1", lambda x: x >= 1)
NOT_NEGATIVE: Rule = ("must not be negative", lambda x: x >= 0)
POSITIVE: Rule = ("must be more than 0", lambda x: x > 0)
SHARE: Rule = ("must lie between 0 and 1", lambda x: 0 <= x <= 1)
INSIDE: Rule = ("must lie between 0 and 1, both excluded", lambda x: 0 < x < 1)
DECAY: Rule = ("must be at least 0 and less than 1", lambda x: 0 <= x < 1)
THREADS: Rule = ("must lie between 1 and 1,024: more than any machine has cores bring torch down", lambda x: 1 <= x <= 1024)
MEMORY: Rule = ("must lie between 8 and 100,000: few losses have no spread, very many no use", lambda x: 8 <= x <= 100_000)
LEVELS: Rule = ("must lie between 1 and 100, since each compiles once", lambda x: 1 <= x <= 100)
AN_HOUR: Rule = ("must be more than 0 and at most 3,600, the most that a crash is over-charged", lambda x: 0 < x <= 3600)

RANGES: dict[Rule, tuple[str, ...]] = {
    COUNT: (
        "data.max_bytes", "data.validation_max_bytes", "data.part_bytes", "data.workers", "data.filters.max_chars",
        "data.filters.max_word_length", "data.filters.max_words", "data.edits.min_line_words", "data.edits.max_line_word_chars",
        "data.near_dedup.shingle_words", "data.near_dedup.bands", "data.near_dedup.rows",
        "tokenizer.sample_bytes", "tokenizer.min_frequency", "model.layers",
        "model.width", "model.heads", "model.kv_heads", "model.mlp_width", "model.window", "model.bigram_rows",
        "train.sequence_length", "train.batch_tokens", "train.batch_start_tokens", "train.micro_batch_tokens",
        "train.skip_limit", "train.checkpoint_every_steps", "train.keep_checkpoints",
        "train.validation_tokens",
        "evaluate.tokens", "evaluate.sample_tokens", "telemetry.log_every",
        *(f"evaluate.finetune.{name}" for name in ("epochs", "batch", "length", "seeds", "max_examples")),
        "quantize.group", "quantize.calibration_tokens", "quantize.tokens"),
    NOT_NEGATIVE: (
        "seed", "data.filters.min_chars", "data.filters.min_words", "data.filters.min_sentences", "data.filters.min_stop_words",
        "data.filters.max_contaminated_ngrams", "data.filters.min_mean_word_length", "data.filters.max_hash_ratio",
        "data.filters.max_ellipsis_ratio", "data.filters.max_newline_ratio",
        "objective.z_loss", "optimizer.weight_decay", "train.reserve", "train.rollback_limit",
        "evaluate.minimal_pairs", "evaluate.finetune.weight_decay", "train.validation_pairs", "telemetry.usd_per_hour"),
    POSITIVE: (
        "data.filters.max_tokens_per_char", "data.filters.max_mean_word_length",
        "model.norm_eps", "model.rope_base", "model.rope_base_end", "train.spike_sigmas", "distill.temperature",
        "model.init_std", "model.logit_softcap",
        "optimizer.lr", "optimizer.embedding_lr", "optimizer.muon_lr", "optimizer.eps", "optimizer.clip",
        "train.checkpoint_every", "train.validate_every", "telemetry.print_every", "evaluate.finetune.lr"),
    SHARE: (
        "evaluate.finetune.warmup",
        "data.edits.max_line_uppercase", "data.edits.max_line_digits", "data.near_dedup.verify",
        *(f"data.filters.{name}" for name in (
            "max_replacement_fraction", "min_language_probability", "max_url_words", "max_removed_words", "max_bullet_lines",
            "max_ellipsis_lines", "min_alpha_words", "max_duplicate_lines", "max_duplicate_paragraphs",
            "max_duplicate_line_chars", "max_duplicate_paragraph_chars", "max_top_2gram_chars", "max_top_3gram_chars",
            "max_top_4gram_chars", *(f"max_duplicate_{n}gram_chars" for n in range(5, 11)), "min_punctuated_lines",
            "max_short_lines", "max_duplicated_line_chars")),
        "data.filters.min_alpha_fraction", "data.filters.max_repeated_line_fraction", "objective.mask_token_fraction",
        "objective.random_token_fraction", "schedule.warmup", "schedule.decay", "schedule.start", "train.batch_ramp",
        "distill.weight"),
    INSIDE: ("data.validation_fraction", "objective.mask_rate", "objective.mask_rate_end", "objective.causal_share",
             "evaluate.mask_rate", "train.ema"),
    DECAY: ("optimizer.beta1", "optimizer.beta2", "optimizer.momentum"),
    THREADS: ("train.threads", "train.workers"),
    MEMORY: ("train.spike_window",),
    LEVELS: ("objective.mask_rate_levels",),
    AN_HOUR: ("telemetry.heartbeat",),
}


def validate(config: Config, places: dict[str, str] | None = None) -> None:
    """Raise CramError for the first refusal, led by a place where one of its keys was set: the command line first."""
    places = places or {}
    for keys, problem in _refusals(config, places):
        known = [places[key] for key in keys if key in places]
        place = COMMAND_LINE if COMMAND_LINE in known else next(iter(known), None)
        raise CramError(f"{place}: {problem}" if place else problem)


def _refusals(config: Config, places: dict[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys concerned, what is wrong and the remedy)."""
    for (requirement, test), keys in RANGES.items():
        for key in keys:
            value = lookup(config, key)
            if value is not None and not test(value):
                yield (key,), f"{key} {requirement}, got {show(value)}"
    yield from _run(config)
    yield from _data(config, places)
    yield from _model(config)
    yield from _objective(config)
    yield from _evaluate(config)
    yield from _schedule(config)
    yield from _train(config)
    yield from levels(config)
    yield from idle(config, places)
    yield from ((each.keys, each.told()) for each in COMBINATIONS if each.refused(config))
    teacher = config.distill.teacher
    if teacher is not None and not (Path(teacher) / "ledger.jsonl").is_file():
        yield ("distill.teacher",), (f"distill.teacher: no ledger.jsonl in {teacher}; give the pretraining folder of a "
                                     "finished run, such as runs/big/pretrain")


def _run(config: Config):
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name) or config.name == "artifacts":
        yield ("name",), f"name '{config.name}' cannot be a folder's name; use letters, digits, '-' and '_' (not 'artifacts')"
    if not config.out.strip():
        yield ("out",), "out is empty; give a folder, such as out=runs"
    if config.seed >= 2**63:
        yield ("seed",), "seed must be less than 2^63"
    try:
        Budget.parse(config.budget)
    except CramError as error:
        yield ("budget",), str(error)


def _data(config: Config, places: dict[str, str]):
    data = config.data
    needed = {"files": "files", "hub": "dataset", "installed-docs": "packages"}
    for source, name in needed.items():
        key = f"data.{name}"
        if data.source == source and not getattr(data, name):
            yield ("data.source", key), f"data.source={source} needs {key}; add for example {key}=" + {
                "files": "'texts/*.jsonl'", "dataset": "HuggingFaceFW/fineweb-edu", "packages": "[numpy]"}[name]
        if data.source != source and places.get(key) == COMMAND_LINE:
            yield (key,), f"{key} is only read with data.source={source}, but it is {data.source}; add data.source={source}"
    filters = data.filters
    if filters.min_chars is not None and filters.max_chars is not None and filters.max_chars < filters.min_chars:
        yield (("data.filters.max_chars", "data.filters.min_chars"),
               f"data.filters.max_chars {filters.max_chars} is less than min_chars {filters.min_chars}: no document is left")
    if filters.languages and not data.identify_language:
        yield (("data.filters.languages", "data.identify_language"),
               "data.filters.languages needs data.identify_language=true, which measures them")
    if data.part_bytes > 1_000_000_000:
        yield (("data.part_bytes",),
               f"data.part_bytes {data.part_bytes:,} is over 1,000,000,000, more than one Arrow array may hold")
    if data.decontaminate and filters.max_contaminated_ngrams is None:
        yield (("data.filters.max_contaminated_ngrams", "data.decontaminate"),
               "data.decontaminate does nothing with data.filters.max_contaminated_ngrams=null; set it to 0")
    if filters.order:
        from data_prep.errors import DataError
        from data_prep.filters import check_order

        try:
            check_order(filters.order)
        except DataError as error:
            yield ("data.filters.order",), str(error)
    if data.near_dedup.bands > 100:
        yield ("data.near_dedup.bands",), f"data.near_dedup.bands {data.near_dedup.bands} is over 100, the most that are stored"
    if data.mirror is None and data.decontaminate:
        for name in data.decontaminate:
            if not Path(name).exists() and not glob.glob(name):
                yield (("data.decontaminate",), f"data.decontaminate: no file or folder {name}; correct the path, or give the "
                                                f"data.mirror that has it")
    if data.packing == "best-fit" and not config.model.document_mask:
        yield (("data.packing", "model.document_mask"),
               "data.packing=best-fit fills rows up with [PAD], which model.document_mask=false would let real tokens see; "
               "use data.packing=stream")
    if config.tokenizer.sample_bytes > 10_000_000_000:
        yield (("tokenizer.sample_bytes",),
               f"tokenizer.sample_bytes {config.tokenizer.sample_bytes:,} is over 10,000,000,000: the trainer counts pairs in "
               "32 bits, and beyond that the most frequent could overflow")
    size = config.tokenizer.vocab_size
    if size > 2**31:
        yield ("tokenizer.vocab_size",), f"tokenizer.vocab_size {size} is over 2^31, more than a token id can be"
    if config.tokenizer.type == "bpe" and size < 261:
        yield ("tokenizer.vocab_size",), f"tokenizer.vocab_size {size} is below 261: 256 bytes and 5 special tokens"
    if size < 6:
        yield ("tokenizer.vocab_size",), f"tokenizer.vocab_size {size} leaves no room beside the 5 special tokens"


def _model(config: Config):
    model = config.model
    if model.width % model.heads:
        yield ("model.width", "model.heads"), f"model.width {model.width} is not a multiple of model.heads {model.heads}"
    elif model.position == "rope" and model.width // model.heads % 2:
        yield (("model.heads", "model.width", "model.position"),
               "model.position=rope needs an even head dimension, "
               f"but model.width / model.heads is {model.width // model.heads}")
    if model.kv_heads and model.heads % model.kv_heads:
        yield (("model.kv_heads", "model.heads"),
               f"model.heads {model.heads} is not a multiple of model.kv_heads {model.kv_heads}")
    if not model.first_attention_norm and not model.embedding_norm:
        yield (("model.first_attention_norm", "model.embedding_norm"),
               "model.first_attention_norm=false leaves the first block's attention to the embedding norm, but "
               "model.embedding_norm is false; set one of them to true")
    if not model.first_attention_norm and config.train.layer_schedule:
        yield (("model.first_attention_norm", "train.layer_schedule"),
               "model.first_attention_norm=false with train.layer_schedule: the first block, which has no norm to copy, would be "
               "stacked; set it to true")
    if model.position == "scaled_sinusoidal" and model.width % 2:
        yield (("model.width", "model.position"),
               f"model.position=scaled_sinusoidal needs an even model.width, got {model.width}")


def _objective(config: Config):
    objective = config.objective
    if config.optimizer.state_bits not in (8, 32):
        yield ("optimizer.state_bits",), f"optimizer.state_bits must be 32 or 8, got {config.optimizer.state_bits}"
    if objective.mask_token_fraction + objective.random_token_fraction > 1:
        yield (("objective.mask_token_fraction", "objective.random_token_fraction"),
               "objective.mask_token_fraction and objective.random_token_fraction together exceed 1")
    if objective.mask_rate_end not in (None, objective.mask_rate) and objective.mask_rate_levels < 2:
        yield (("objective.mask_rate_levels", "objective.mask_rate_end"),
               "objective.mask_rate_levels must be at least 2 when objective.mask_rate_end differs from mask_rate")
    if objective.type != "causal":
        for blank in config.evaluate.blanks:
            if "[MASK]" not in blank:
                yield ("evaluate.blanks",), f"evaluate.blanks: '{blank}' has no [MASK] to fill"


def _evaluate(config: Config):
    mirror = config.evaluate.mirror
    if mirror is not None and not Path(mirror).is_dir():
        yield ("evaluate.mirror",), f"evaluate.mirror: no folder {mirror}; correct the path, or null to do without"
    if config.evaluate.finetune.epochs > 5:
        yield ("evaluate.finetune.epochs",), ("evaluate.finetune.epochs: at most 5, or scores could not be compared with those of "
                                              "the cramming paper")
    if config.train.validation_pairs and not (mirror or config.data.mirror):
        yield ("train.validation_pairs",), "train.validation_pairs needs BLiMP: set evaluate.mirror to a folder with nyu-mll/blimp"
    if unknown := [scheme for scheme in config.quantize.schemes if scheme not in SCHEMES]:
        yield ("quantize.schemes",), f"quantize.schemes: '{unknown[0]}' is none of {', '.join(SCHEMES)}"
    if config.evaluate.tasks:
        from cram.evaluate.tasks import choose_tasks  # only who asks for benchmarks waits for torch
        try:
            choose_tasks(config.evaluate.tasks)
        except CramError as error:
            yield ("evaluate.tasks",), str(error)


def _schedule(config: Config):
    schedule = config.schedule
    if schedule.type == "trapezoid" and schedule.warmup + schedule.decay > 1:
        yield (("schedule.warmup", "schedule.decay"),
               f"schedule.warmup {schedule.warmup} and schedule.decay {schedule.decay} together exceed 1")
    if schedule.type == "trapezoid" and schedule.decay == 0:
        yield ("schedule.decay",), "schedule.decay=0 leaves no fall to 0; use schedule.type=constant, or a decay above 0"
    if schedule.type in ("one-cycle", "triangle", "cosine") and schedule.warmup == 1:
        yield ("schedule.warmup",), f"schedule.warmup=1 leaves schedule.type={schedule.type} no room to fall to 0"


def _train(config: Config):
    train, row = config.train, config.train.sequence_length
    if row < 2:
        yield ("train.sequence_length",), f"train.sequence_length must be at least 2, got {row}"
    for name in ("batch_tokens", "batch_start_tokens", "micro_batch_tokens"):
        tokens = getattr(train, name)
        if tokens and tokens % row:
            yield ((f"train.{name}", "train.sequence_length"),
                   f"train.{name} {tokens} is not a multiple of train.sequence_length {row}; "
                   f"nearest: {max(round(tokens / row), 1) * row}")
    micro = train.micro_batch_tokens
    for name in ("batch_tokens", "batch_start_tokens"):
        tokens = getattr(train, name)
        if micro and tokens and tokens % micro:
            yield (("train.micro_batch_tokens", f"train.{name}"),
                   f"train.{name} {tokens} is not a multiple of train.micro_batch_tokens {micro}")
    for name in ("batch_tokens", "batch_start_tokens"):
        tokens = getattr(train, name)
        if train.workers and tokens and tokens // row % train.workers:
            yield (("train.workers", f"train.{name}"),
                   f"train.workers {train.workers} do not divide the {tokens // row} rows of train.{name} {tokens}; use a "
                   "divisor, or null")
    start = train.batch_start_tokens
    if train.batch_ramp > 0 and start is None:
        yield ("train.batch_ramp",), "train.batch_ramp needs train.batch_start_tokens, the batch at the beginning"
    if train.batch_ramp == 0 and start is not None:
        yield ("train.batch_start_tokens",), "train.batch_start_tokens is only used with train.batch_ramp above 0; set both"
    if start and start > train.batch_tokens:
        yield (("train.batch_start_tokens", "train.batch_tokens"),
               f"train.batch_start_tokens {start} is more than train.batch_tokens {train.batch_tokens}")
    if train.checkpoint_every is not None and train.checkpoint_every_steps is not None:
        yield (("train.checkpoint_every_steps", "train.checkpoint_every"),
               "train.checkpoint_every and train.checkpoint_every_steps exclude each other; set one to null")
    budget = Budget.parse(config.budget)
    if train.reserve is not None and budget.kind == "time" and train.reserve >= budget.amount:
        yield (("train.reserve", "budget"),
               f"train.reserve {train.reserve:g} s leaves nothing of budget={config.budget}; lower it (null: measured)")
    if train.validate_every > 1:
        yield ("train.validate_every",), f"train.validate_every is a share of the budget, at most 1, got {train.validate_every}"
    for key, tokens in (("train.validation_tokens", train.validation_tokens), ("evaluate.tokens", config.evaluate.tokens)):
        if tokens < row:
            yield (key, "train.sequence_length"), f"{key} {tokens} is less than one row (train.sequence_length {row})"
    if train.precision == "fp16" and train.device == "cpu":
        yield ("train.precision", "train.device"), "train.precision=fp16 needs a CUDA card; use fp32 with train.device=cpu"
    if train.replay is not None and not Path(train.replay).is_file():
        yield ("train.replay",), f"train.replay: no file {train.replay}; give the progress.f64 of a run"
