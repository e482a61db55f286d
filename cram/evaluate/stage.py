"""The evaluate stage: ``scores.json`` and ``samples.json`` from the newest checkpoint. Outside the budget.

Benchmarks (``evaluate.tasks``) come last; each result is kept as soon as it is there (results.py).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

from cram.errors import CramError
from cram.evaluate.baselines import compression_baselines, token_baselines
from cram.evaluate.heldout import held_out_targets, score_heldout
from cram.evaluate.minimal_pairs import score_minimal_pairs
from cram.evaluate.reading import halving
from cram.evaluate.results import score_tasks
from cram.evaluate.samples import fill_blanks, generate
from cram.evaluate.subject import choose, open_run
from cram.evaluate.table import score_lines
from cram.evaluate.tasks import choose_tasks
from data_prep.files import replace_durably
from data_prep.shards import Shards

TEMPERATURES = (0.0, 0.8)
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


def evaluate(config: Any, text_dir: Path, data_dir: Path, tokenizer_dir: Path, pretrain_dir: Path, out: Path,
             say: Callable[[str], None]) -> None:
    """Score the run in ``pretrain_dir`` on held-out text, beside baselines on the same text, in float32; then on benchmarks.

    Writes ``samples.json`` and ``scores.json`` into ``out``. Raises CramError or DataError when an input is missing
    or does not fit the others.
    """
    device = choose(config.train.device)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    shards = Shards(data_dir, "validation")
    subject = open_run("run", pretrain_dir, tokenizer_dir, device=device, say=say)
    model, tokenizer = subject.model, subject.tokenizer
    if model.vocab_size != shards.vocab_size:
        raise CramError(f"{pretrain_dir}: the model has {model.vocab_size} tokens, the data in {data_dir} "
                        f"{shards.vocab_size}; run the pretrain stage again")
    seconds: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        result = call()
        seconds[name] = round(time.monotonic() - begin, 3)
        return result

    hybrid = config.objective.type == "hybrid"
    ask = dict(mask_rate=config.evaluate.mask_rate, max_tokens=config.evaluate.tokens)
    row = config.train.sequence_length
    held_out, _ = timed("held_out", lambda: halving(lambda tokens: score_heldout(
        model, shards, row=row, hybrid=hybrid, batch_tokens=tokens, device=device, **ask), BATCH_TOKENS[device], row, say))
    targets = held_out_targets(shards, causal=model.causal, **ask)
    held_out |= {"documents": targets.documents, "tokens": len(targets.inputs_N)}

    def baselines() -> dict[str, dict]:
        counts_V = np.load(data_dir / "token_counts.npy")
        found = token_baselines(targets, shards, counts_V, causal=model.causal)
        if hybrid:
            masked = token_baselines(held_out_targets(shards, causal=False, **ask), shards, counts_V, causal=False)
            found = {name: row | {"masked_loss": masked[name]["loss"]} for name, row in found.items()}
        return found | compression_baselines(targets, data_dir / "validation.jsonl") if model.causal else found

    scores = {
        "version": 1, "objective": config.objective.type, "device": device, "held_out": held_out,
        "baselines": timed("baselines", baselines),
        "minimal_pairs": timed("minimal_pairs", lambda: _minimal_pairs(config, model, tokenizer, shards.special, device)),
    }
    scores["gain_over_unigram"] = 1 - held_out["loss"] / scores["baselines"]["unigram"]["loss"]
    samples = timed("samples", lambda: _samples(config, model, tokenizer, device))
    tasks = choose_tasks(config.evaluate.tasks) if config.evaluate.tasks else []
    scores["benchmarks"] = timed("benchmarks", lambda: score_tasks(subject, tasks, config, out.parent / "scores", say,
                                                                   text_dir))
    scores["seconds"] = seconds
    for name, content in (("samples.json", samples), ("scores.json", scores)):
        replace_durably(out / name, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    for line in score_lines(scores):
        say(line)


def _minimal_pairs(config: Any, model: Any, tokenizer: Any, special: dict[str, int], device: str) -> dict:
    mirror = config.evaluate.mirror or config.data.mirror
    if not config.evaluate.minimal_pairs:
        return {"skipped": "evaluate.minimal_pairs is 0"}
    if not mirror:
        return {"skipped": "no mirror; set evaluate.mirror to a folder with nyu-mll/blimp"}
    return score_minimal_pairs(model, tokenizer, Path(mirror), config.evaluate.minimal_pairs, special,
                               batch_tokens=BATCH_TOKENS[device], device=device)


def _samples(config: Any, model: Any, tokenizer: Any, device: str) -> list[dict]:
    """Continued prompts (causal), filled blanks (masked), or both (hybrid)."""
    kind, samples = config.objective.type, []
    if kind != "masked":
        wanted = [(prompt, temperature) for prompt in config.evaluate.prompts for temperature in TEMPERATURES]
        samples += [{"prompt": prompt, "temperature": temperature, "text": generate(
                        model, tokenizer, prompt, tokens=config.evaluate.sample_tokens, temperature=temperature,
                        seed=config.seed + number, device=device)}
                    for number, (prompt, temperature) in enumerate(wanted)]
    if kind != "causal":
        samples += [{"sentence": sentence, "blanks": fill_blanks(model, tokenizer, sentence, device=device)}
                    for sentence in config.evaluate.blanks]
    return samples
