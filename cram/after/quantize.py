"""Quantization after the day: each scheme's size, held-out loss and speed beside those of the model as it was trained.

Weight-only: the matrices of the blocks (``cram.after.quantized.matrices``); all else stays float32. ``int8``: rounded to
nearest, symmetric, one scale a row (so that the CPU's kernel takes it). ``int4``, ``int3``: to nearest, asymmetric, in groups.
``gptq4``, ``gptq3``: the same by GPTQ. ``kv4``: not the weights but the key/value cache in 4 bits.

The held-out text is cut in two: the first documents are scored, the calibration text of GPTQ comes after them.
"""

from __future__ import annotations

import copy
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import torch

from cram.after.cache import Cache, RoundedCache
from cram.after.gptq import gptq_blocks
from cram.after.quantized import QuantLinear, file_bytes, matrices, replace_linear
from cram.after.round_to_nearest import encode, find_levels
from cram.batches import document_bounds
from cram.errors import CramError
from cram.evaluate.heldout import evaluating, held_out_targets, score_heldout
from cram.evaluate.subject import Subject, open_run
from cram.layers import View
from cram.model import Transformer
from cram.ops import Documents
from cram.schema_after import SCHEMES
from data_prep.files import replace_durably
from data_prep.shards import Shards

CACHE_SCHEME = "kv4"
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}
SPEED_TOKENS = 64


class Part:
    """The held-out documents first to last of a split, with what scoring asks of ``data_prep.shards.Shards``."""

    def __init__(self, shards: Any, first: int, last: int):
        self._shards, self._begin = shards, int(shards.document_starts[first])
        self.document_starts = shards.document_starts[first:last + 1] - self._begin
        self.document_bytes, self.n_documents = shards.document_bytes[first:last], last - first
        self.n_tokens, self.vocab_size = int(self.document_starts[-1]), shards.vocab_size
        self.special, self.lossless = shards.special, shards.lossless

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._shards.read(self._begin + start, self._begin + stop)


def split_heldout(shards: Any, tokens: int, calibration_tokens: int, say: Callable[[str], None]) -> tuple[Part, Part]:
    """What is scored and what GPTQ looks at: whole documents, none of them in both. When there is less text than asked
    for, both get less, in proportion, and that is said. Raises CramError for fewer than two documents."""
    if shards.n_documents < 2:
        raise CramError("quantize: one part of the held-out text is scored and another one calibrates, but it has "
                        f"{shards.n_documents} document; raise data.validation_fraction")
    share = min(1.0, shards.n_tokens / (tokens + calibration_tokens))
    if share < 1:
        say(f"quantize: {shards.n_tokens:,} held-out tokens are there, {tokens + calibration_tokens:,} were asked for: "
            f"{share:.0%} of quantize.tokens and quantize.calibration_tokens")

    def upto(wanted: float) -> int:
        return int(np.searchsorted(shards.document_starts, wanted, side="right")) - 1

    last = min(max(upto(tokens * share), 1), shards.n_documents - 1)
    end = max(upto(int(shards.document_starts[last]) + calibration_tokens * share), last + 1)
    return Part(shards, 0, last), Part(shards, last, end)


def calibration_views(subject: Subject, text: Part, mask_rate: float) -> list[View]:
    """The calibration text as the model sees text: in rows, and with masks when it fills masks."""
    model, device = subject.model, subject.device
    ids_N = held_out_targets(text, causal=model.causal, mask_rate=mask_rate, max_tokens=text.n_tokens, seed=1).inputs_N
    row = min(subject.row, len(ids_N))
    ids_RT = ids_N[:len(ids_N) // row * row].reshape(-1, row)
    step, views = max(1, BATCH_TOKENS[torch.device(device).type] // row), []
    for begin in range(0, len(ids_RT), step):
        rows = ids_RT[begin:begin + step]
        bounds = document_bounds(rows, text.special["cls"])
        documents = Documents(*(torch.from_numpy(bound).to(device) for bound in bounds), row)
        views.append(View(model.config, torch.from_numpy(rows.reshape(-1)).to(device), documents, causal=model.causal,
                          window=model.window, rope_base=model.rope_base, backend=model.backend))
    return views


@torch.no_grad()
def quantize_model(subject: Subject, scheme: str, group: int, calibration: Optional[list[View]] = None) -> Subject:
    """A copy of the subject with its blocks' matrices in few bits. calibration: for gptq, see ``calibration_views``.

    Raises CramError for an unknown scheme, a model that is not cram's, and inputs that fall into no groups (``group_of``).
    """
    if scheme not in SCHEMES or scheme == CACHE_SCHEME:
        raise CramError(f"quantize.schemes: '{scheme}' is none of {', '.join(SCHEMES)}, or none for weights")
    if not isinstance(subject.model, Transformer):
        raise CramError(f"{subject.name} is not a model of cram's; cram quantize is for runs")
    if any(isinstance(layer, QuantLinear) for layer in matrices(subject.model).values()):
        raise CramError(f"{subject.name} is quantized already; quantize the run it was made from")
    bits, model = int(scheme[-1]), copy.deepcopy(subject.model)
    groups = {name: linear.in_features if scheme == "int8" else group_of(name, linear.in_features, group)
              for name, linear in matrices(model).items()}
    if scheme.startswith("gptq"):
        if not calibration:
            raise CramError(f"{scheme} needs calibration text; raise quantize.calibration_tokens")
        gptq_blocks(model, calibration, bits, groups, lambda block, name, codes, levels: replace_linear(
            block, name, bits, codes, levels))
    else:
        for name, linear in matrices(model).items():
            levels = find_levels(linear.weight, bits, groups[name], scheme == "int8")
            replace_linear(model, name, bits, encode(linear.weight, levels, bits), levels)
    return replace(subject, name=f"{subject.name}-{scheme}", model=model.eval(), notes={**subject.notes, "scheme": scheme},
                   identity={**subject.identity, "scheme": scheme, "group": group})


def group_of(name: str, inputs: int, group: int) -> int:
    """Weights that share a scale: ``group``, or the greatest common divisor where that does not divide the inputs.

    Raises CramError when this leaves fewer than 8, whose scales would take as much as their weights.
    """
    found = math.gcd(inputs, group)
    if found < min(8, group):
        raise CramError(f"{name} has {inputs} inputs, which fall into no groups of {group} or a divisor of it; set "
                        f"quantize.group to a divisor of {inputs}, or model.mlp_width to a multiple of {group}")
    return found


@dataclass(frozen=True)
class Bench:
    """What every scheme goes through."""

    scored: Part
    mask_rate: float
    hybrid: bool

    def row(self, subject: Subject, scheme: str, kv_bits: Optional[int] = None) -> dict[str, Any]:
        """Size, loss and speed of a subject: one line of the table."""
        layers = matrices(subject.model).values()
        numbers = sum(layer.in_features * layer.out_features for layer in layers)
        held = sum(layer.bytes if isinstance(layer, QuantLinear) else layer.weight.nbytes for layer in layers)
        model = subject.model if kv_bits is None else RoundedCache(subject.model)
        ask = dict(row=subject.row, mask_rate=self.mask_rate, max_tokens=self.scored.n_tokens, device=subject.device,
                   batch_tokens=BATCH_TOKENS[torch.device(subject.device).type])
        score_heldout(model, self.scored, **ask | {"max_tokens": 1})  # what is done once is not timed
        begin = time.perf_counter()
        scores = score_heldout(model, self.scored, **ask, hybrid=self.hybrid and kv_bits is None)
        speed = self.scored.n_tokens / (time.perf_counter() - begin)
        cache = {}
        if subject.model.causal:
            speed, kept = generation_speed(subject.model, self.scored.special["cls"], kv_bits)
            cache = {"cache_bytes_per_token": kept}
        return {"scheme": scheme, "bits_per_weight": 8 * held / numbers, "matrix_bytes": held,
                "file_bytes": file_bytes(subject.model), **scores, "tokens_per_second": speed, **cache}


@torch.no_grad()
def generation_speed(model: Transformer, first: int, kv_bits: Optional[int], rounds: int = 3) -> tuple[float, float]:
    """Tokens a second of one text, likeliest token first, the fastest of some rounds; and bytes of cache a token."""
    best = 0.0
    with evaluating(model):
        for _ in range(rounds):
            cache, token = Cache(model, 1, SPEED_TOKENS, kv_bits), first
            begin = time.perf_counter()
            for _ in range(SPEED_TOKENS):
                token = int(model.logits(cache.extend([[token]])).argmax())
            best = max(best, SPEED_TOKENS / (time.perf_counter() - begin))
    return best, cache.bytes / SPEED_TOKENS


def quantize_run(config: Any, data_dir: Path, tokenizer_dir: Path, pretrain_dir: Path, out: Path,
                 say: Callable[[str], None]) -> None:
    """Measure ``config.quantize.schemes`` on the run in ``pretrain_dir``; writes ``quantize.json`` into ``out``.

    Raises CramError or DataError when an input is missing or does not fit the others.
    """
    device = "cuda" if config.train.device != "cpu" and torch.cuda.is_available() else "cpu"
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    subject = open_run(config.name, pretrain_dir, tokenizer_dir, device=device, say=say)
    result, _ = measure(subject, Shards(data_dir, "validation"), config.quantize, config.evaluate.mask_rate, say)
    replace_durably(out / "quantize.json", (json.dumps(result, indent=1) + "\n").encode())
    for line in quantize_lines(result):
        say(line)


def measure(subject: Subject, shards: Any, wanted: Any, mask_rate: float,
            say: Callable[[str], None]) -> tuple[dict[str, Any], Optional[Subject]]:
    """The table, and the last subject with quantized weights. wanted: ``cram.schema.Quantize``."""
    if unknown := [scheme for scheme in wanted.schemes if scheme not in SCHEMES]:
        raise CramError(f"quantize.schemes: '{unknown[0]}' is none of {', '.join(SCHEMES)}")
    model = subject.model
    if model.vocab_size != shards.vocab_size:
        raise CramError(f"{subject.name}: the model has {model.vocab_size} tokens, the data in {shards.folder} "
                        f"{shards.vocab_size}; run the pretrain stage again")
    if not wanted.schemes:
        return {"version": 1, "rows": [], "skipped": {"all": "quantize.schemes is empty"}}, None
    scored, text = split_heldout(shards, wanted.tokens, wanted.calibration_tokens, say)
    bench = Bench(scored, mask_rate, subject.kind == "hybrid")
    needed = any(scheme.startswith("gptq") for scheme in wanted.schemes)
    calibration = calibration_views(subject, text, mask_rate) if needed else None
    rows, skipped, last = [bench.row(subject, "none")], {}, None
    for scheme in wanted.schemes:
        begin = time.perf_counter()
        if scheme == CACHE_SCHEME:
            if model.causal:
                rows.append(bench.row(subject, scheme, kv_bits=4))
            else:
                skipped[scheme] = "a masked model reads a text at once and has no key/value cache"
            continue
        try:
            last = quantize_model(subject, scheme, wanted.group, calibration)
        except CramError as error:
            skipped[scheme] = str(error)
            continue
        seconds = time.perf_counter() - begin
        rows.append(bench.row(last, scheme) | {"seconds": round(seconds, 3)})
    return {"version": 1, "objective": subject.kind, "device": subject.device, "group": wanted.group,
            "scored_tokens": scored.n_tokens, "calibration_tokens": text.n_tokens if calibration else 0,
            "speed": "generation" if model.causal else "scoring", "rows": rows, "skipped": skipped}, last


def quantize_lines(result: dict[str, Any]) -> list[str]:
    """The table for the terminal."""
    skipped = [f"{scheme}: skipped, {reason}" for scheme, reason in result["skipped"].items()]
    if not result["rows"]:
        return skipped
    header, rows = quantize_table(result)
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = ["  ".join(cell.ljust(width) if place == 0 else cell.rjust(width)
                       for place, (cell, width) in enumerate(zip(row, widths))) for row in table]
    return lines + skipped


def quantize_table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    causal = result["rows"][0].get("bits_per_byte") is not None
    cache = "cache_bytes_per_token" in result["rows"][0]
    head = ["scheme", "bits/weight", "matrices", "file", "loss", *(["bits/byte"] if causal else []),
            *(["cache/token"] if cache else []), f"{result['speed']}, tokens/s"]
    table = []
    for row in result["rows"]:
        table.append([row["scheme"], f"{row['bits_per_weight']:.2f}", _size(row["matrix_bytes"]), _size(row["file_bytes"]),
                      f"{row['loss']:.4f}", *([f"{row['bits_per_byte']:.4f}"] if causal else []),
                      *([_size(row["cache_bytes_per_token"])] if cache else []), f"{row['tokens_per_second']:,.0f}"])
    return head, table


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} B"
