"""Fine-tuning: a copy of the whole model with a small head learns a task of sentences or pairs of sentences.

Input without padding (``cram.evaluate.reading``). The copy always masks attention by document. For a model trained without that
mask (``model.document_mask=false``) this is the same as giving each sequence a row of its own: it sees itself alone, from
position 0.

Head, optimizer and schedule follow Geiping & Goldstein (2023, section 5) and their code: a linear layer, tanh, a linear layer
(theirs at [CLS]: ``pooling=token``);
AdamW(0.9, 0.98, eps 1e-6), warm-up, decay to 0; the last epoch counts, nothing is picked or stopped early. Theirs has dropout
and does not clip; our models have no dropout (a model of others keeps its own), and gradients are clipped to ``clip``.

Axes: N tokens, B examples, S sequences (B x ways), D width, K outputs of the head.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from functools import partial
from typing import Callable, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cram.errors import CramError
from cram.evaluate.heldout import evaluating
from cram.evaluate.reading import PASS_TOKENS, READINGS, Encoded, halving, passes, passes_of_one_size, pool
from cram.evaluate.subject import Subject
from cram.model import Transformer, build
from cram.schedule import learning_rate
from cram.schema import Schedule
from cram.schema_after import Finetune

SCHEDULES = {"cosine": "cosine", "linear": "one-cycle"}  # as cram.schedule calls them


def refuse(settings: Finetune) -> None:
    """CramError for settings that cannot be, or break the rules of the day."""
    if not 1 <= settings.epochs <= 5:
        raise CramError(f"evaluate.finetune.epochs={settings.epochs}: must be at least 1, and the rules of the day allow no "
                        "more than 5")
    for key, least in (("batch", 1), ("seeds", 1), ("length", 8)):
        if (value := getattr(settings, key)) < least:
            raise CramError(f"evaluate.finetune.{key}={value}: must be at least {least}")
    if not 0 <= settings.warmup <= 1:
        raise CramError(f"evaluate.finetune.warmup={settings.warmup}: must lie between 0 and 1, a share of the steps")
    for key in ("lr", "clip"):
        value = getattr(settings, key)
        if value is not None and not value > 0:
            raise CramError(f"evaluate.finetune.{key}={value}: must be more than 0")
    if settings.max_examples is not None and settings.max_examples < 1:
        raise CramError(f"evaluate.finetune.max_examples={settings.max_examples}: must be at least 1; null for all")


def learner(subject: Subject, seed: int, random_init: bool = False) -> nn.Module:
    """A copy of the subject's model to change, in float32; with ``random_init`` the same model as it was before training.

    Raises CramError when fresh weights are asked of a model that did not come from a run.
    """
    model = subject.model
    if random_init:
        if subject.config is None:
            raise CramError(f"{subject.name}: only a run can be built again with random weights; use "
                            "evaluate.finetune.control=false")
        fresh = build(subject.config.model, model.vocab_size, model.causal, seed)
        fresh.depth, fresh.window, fresh.rope_base = model.depth, model.window, model.rope_base
    else:
        fresh = copy.deepcopy(model)
    if isinstance(fresh, Transformer):
        fresh.config = replace(fresh.config, document_mask=True)
    return fresh.to(subject.device).float().requires_grad_(True)


class Head(nn.Module):
    """W2 tanh(W1 x + b1) + b2 in float32, [S, D] to [S, K]; weights normal with deviation 0.02 (Devlin et al. 2019)."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, outputs)
        for layer in (self.pooler, self.classifier):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x_SD: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.pooler(x_SD.float())))


class Tuner:
    """A model and its head that learn one task.

    classes: 0 to predict a number, else how many classes there are; with several ways the head gives each sequence one
    number, and the largest is chosen. Numbers are learned as deviations from the training mean, in its standard
    deviations; predictions are turned back.
    """

    def __init__(self, subject: Subject, classes: int, train: Encoded, settings: Finetune, seed: int,
                 say: Callable[[str], None], random_init: bool = False):
        self.settings, self.train_set, self.seed, self.say = settings, train, seed, say
        self.device, self.reading = subject.device, READINGS[subject.kind]
        self.classes = classes
        self.mean, self.scale = (train.labels_B.mean(), train.labels_B.std() or 1.0) if classes == 0 else (0.0, 1.0)
        self.tokens = PASS_TOKENS[torch.device(subject.device).type]
        self.least = train.ways * settings.length // 2
        self.model = learner(subject, seed, random_init)
        with torch.no_grad():
            width = self.pooled([train.sequences[0][:2]]).shape[1]
        self.head = Head(width, classes if classes and train.ways == 1 else 1).to(self.device)

    def outputs(self, data: Encoded, which: np.ndarray) -> Tensor:
        """Logits [B, classes or ways], or numbers [B, 1], of some examples in one forward pass."""
        sequences = [data.sequences[number * data.ways + way] for number in which for way in range(data.ways)]
        return self.head(self.pooled(sequences)).view(len(which), -1)

    def pooled(self, sequences: Sequence[np.ndarray]) -> Tensor:
        """What the head reads of each sequence, [S, D]."""
        return pool(self.model, sequences, self.reading, self.device, self.settings.pooling)

    def loss(self, data: Encoded, which: np.ndarray) -> Tensor:
        """The sum over examples of their cross-entropy, or squared error."""
        y_BK, labels_B = self.outputs(data, which), data.labels_B[which]
        if self.classes == 0:
            target_B = torch.from_numpy((labels_B - self.mean) / self.scale).to(y_BK)
            return (y_BK[:, 0] - target_B).square().sum()
        return F.cross_entropy(y_BK, torch.from_numpy(labels_B).long().to(y_BK.device), reduction="sum")

    def accumulate(self, batch: np.ndarray, tokens: int) -> float:
        """Gradients of the mean loss of a batch, in as many forward passes as ``tokens`` allows; returns that loss."""
        for parameter in (*self.model.parameters(), *self.head.parameters()):
            parameter.grad = None
        total = 0.0
        for which in passes(self.train_set, batch, tokens):
            loss = self.loss(self.train_set, which) / len(batch)
            loss.backward()
            total += loss.detach()
        return float(total)

    def train(self) -> None:
        """All epochs, each in an order of its own. CramError when the loss is no number any more."""
        settings, n = self.settings, len(self.train_set)
        parameters = [*self.model.parameters(), *self.head.parameters()]
        groups = [{"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
                  {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
        schedule = Schedule(type=SCHEDULES[settings.schedule], warmup=settings.warmup, start=0.0)
        steps, step = settings.epochs * -(-n // settings.batch), 0
        self.model.train()
        for epoch in range(settings.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(n)
            for begin in range(0, n, settings.batch):
                batch = order[begin:begin + settings.batch]
                loss, self.tokens = halving(partial(self.accumulate, batch), self.tokens, self.least, self.say)
                if not math.isfinite(loss):
                    raise CramError(f"fine-tuning: the loss is {loss} at step {step + 1} of {steps}; lower "
                                    f"evaluate.finetune.lr ({settings.lr})")
                if settings.clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
                for group in optimizer.param_groups:  # the rate of the middle of the step: neither end is a step of rate 0
                    group["lr"] = settings.lr * learning_rate((step + 0.5) / steps, schedule)
                optimizer.step()
                step += 1

    def predict(self, data: Encoded) -> np.ndarray:
        """The class of each example, int64 [B], or its number, float64 [B]."""
        def attempt(tokens: int) -> np.ndarray:
            groups = list(passes_of_one_size(data, tokens))
            y_BK = torch.cat([self.outputs(data, which) for which in groups]).cpu().numpy()
            return y_BK[np.argsort(np.concatenate(groups))]

        with evaluating(self.model):
            with torch.no_grad():
                y_BK, self.tokens = halving(attempt, self.tokens, self.least, self.say)
        return y_BK[:, 0].astype(np.float64) * self.scale + self.mean if self.classes == 0 else y_BK.argmax(1)


def finetune(subject: Subject, classes: int, train: Encoded, tests: dict[str, Encoded], settings: Finetune, seed: int,
             say: Callable[[str], None], random_init: bool = False) -> dict[str, np.ndarray]:
    """Learn ``train`` and predict each of ``tests``. The same numbers for the same seed; the subject, its model and torch's
    random state stay as they were."""
    cards = [torch.cuda.current_device()] if torch.device(subject.device).type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.manual_seed(seed)
        tuner = Tuner(subject, classes, train, settings, seed, say, random_init)
        tuner.train()
        return {name: tuner.predict(data) for name, data in tests.items()}


def choose_examples(n: int, most: Optional[int]) -> np.ndarray:
    """Which of n training examples are used: all in order, or the first ``most`` of one shuffle."""
    return np.arange(n) if most is None or most >= n else np.random.default_rng(0).permutation(n)[:most]


def over_seeds(subject: Subject, classes: int, train: Encoded, tests: dict[str, Encoded], settings: Finetune,
               measure: Callable[[dict[str, np.ndarray]], dict[str, float]], headline: str, say: Callable[[str], None],
               random_init: bool = False) -> dict:
    """Fine-tune with seeds 0, 1, ...: the median counts, beside the lowest and the highest.

    measure: predictions to metrics. {"metric", "score", "low", "high", "spread", "metrics": {name: {"median", "low", "high",
    "q1", "q3"}}, "runs": [{"seed", metrics, "seconds"}], "seconds"}.
    """
    runs = []
    for seed in range(settings.seeds):
        started = time.perf_counter()
        metrics = measure(finetune(subject, classes, train, tests, settings, seed, say, random_init))
        runs.append({"seed": seed, **metrics, "seconds": round(time.perf_counter() - started, 3)})
        say(f"{'random weights, ' * random_init}seed {seed}: {headline} {metrics[headline]:.4f} ({runs[-1]['seconds']:.0f} s)")
    spread = {name: dict(zip(("low", "q1", "median", "q3", "high"),
                             np.percentile([run[name] for run in runs], (0, 25, 50, 75, 100)).tolist())) for name in metrics}
    best = spread[headline]
    return {"metric": headline, "score": best["median"], "low": best["low"], "high": best["high"],
            "spread": f"median, lowest and highest of {len(runs)} seeds", "metrics": spread, "runs": runs,
            "seconds": round(sum(run["seconds"] for run in runs), 3)}
