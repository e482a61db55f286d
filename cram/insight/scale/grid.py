"""The grid of a scaling study: sizes of one shape, budgets, the runs in every cell.

A size is ``<layers>x<width>``; heads, key/value heads and a configured inner width follow in proportion, learning rates and
batch stay the recipe's. Every cell is a whole run with a schedule of its own, through the stages: what is there is found again.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

from cram.budget import Budget
from cram.config import KEYS, load, lookup
from cram.errors import CramError
from cram.insight.plan.walk import Leg, Outline, walk

SIZES = ("1x32", "1x64", "2x96", "2x128")
BUDGETS = ("250e3 tokens", "500e3 tokens", "1e6 tokens", "2e6 tokens")     # below 100 steps no power law holds
WIDTHS = (32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768, 1024, 1280, 1536, 2048)   # of candidates
TINY_SIZES = ("1x16", "1x32", "2x32")
TINY_BUDGETS = ("8e3 tokens", "16e3 tokens", "32e3 tokens", "64e3 tokens")
TINY = ("data.packages=[networkx]", "tokenizer.vocab_size=1024", "train.batch_tokens=512", "evaluate.tokens=16384")
# Nothing but training and the held-out score: a study compares these alone.
QUIET = ("evaluate.minimal_pairs=0", "evaluate.prompts=[The]", "evaluate.sample_tokens=1", "evaluate.tasks=[]",
         "train.validate_every=1", "train.keep_checkpoints=1", "telemetry.print_every=60")
# Keys that make another recipe when they differ; those that set size, budget or the machine do not.
FREE = ("name", "out", "seed", "budget", "model.layers", "model.width", "model.heads", "model.kv_heads", "model.mlp_width",
        "model.attention", "evaluate", "quantize", "telemetry", "data.workers", "data.engine", "data.mirror", "train.device",
        "train.threads", "train.workers", "train.compile", "train.micro_batch_tokens", "train.checkpoint_every",
        "train.checkpoint_every_steps", "train.keep_checkpoints", "train.validate_every", "train.validation_tokens",
        "train.validation_pairs", "train.reserve", "train.replay", "train.recompute", "train.parallel", "train.deterministic",
        "train.loss")


@dataclass(frozen=True)
class Size:
    """A model of the family. flops_per_token: of training, the mean over a run; inner: parameters without tables."""

    name: str
    settings: tuple[str, ...]
    parameters: int
    inner: int
    flops_per_token: float


@dataclass(frozen=True)
class Cell:
    """A run that is due. tokens, flops: what it will read and compute, exactly."""

    size: Size
    budget: Budget
    held_out: bool
    steps: int
    tokens: int
    flops: float


def recipe(config) -> dict[str, Any]:
    """The keys by which runs of different size belong to one study."""
    return {key: lookup(config, key) for key in KEYS
            if not any(key == free or key.startswith(free + ".") for free in FREE)}


def study(settings: Sequence[str]):
    """The configuration all cells share. CramError for what a study cannot scale."""
    config = load([text for text in settings if "=" not in text] or "demo", [text for text in settings if "=" in text])
    if config.train.layer_schedule:
        raise CramError("cram scale: train.layer_schedule names blocks of one size; give train.layer_schedule=[]")
    if config.distill.teacher is not None:
        raise CramError("cram scale: a teacher's bill is no part of loss(N, D); give distill.teacher=null")
    return config


def make_size(name: str, config) -> Size:
    """The size ``<layers>x<width>`` of this recipe. CramError for a name that is none."""
    match = re.fullmatch(r"(\d+)x(\d+)", name)
    if not match or not int(match[1]) or not int(match[2]):
        raise CramError(f"--sizes {name}: not understood; write <layers>x<width>, such as 2x128")
    settings = proportions(config, int(match[1]), int(match[2]))
    outline = Outline(resized(config, settings))
    legs = walk_budget(outline, Budget.parse(f"{256 * config.train.batch_tokens} tokens"))
    return Size(name, settings, outline.parameters, outline.inner_parameters,
                sum(leg.flops for leg in legs) / sum(leg.tokens for leg in legs))


def proportions(config, layers: int, width: int) -> tuple[str, ...]:
    """The settings of a size: the head dimension stays as near the recipe's as whole, even heads allow."""
    model = config.model
    wanted = max(1, round(width * model.heads / model.width))
    heads = [number for number in range(1, width + 1) if width % number == 0 and width // number % 2 == 0]
    if not heads:
        raise CramError(f"--sizes {layers}x{width}: a width is an even number, since heads are")
    number = min(heads, key=lambda each: (abs(each - wanted), each))
    settings = [f"model.layers={layers}", f"model.width={width}", f"model.heads={number}"]
    if model.kv_heads is not None:
        groups = [each for each in range(1, number + 1) if number % each == 0]
        share = number * model.kv_heads / model.heads
        settings.append(f"model.kv_heads={min(groups, key=lambda each: abs(each - share))}")
    if model.mlp_width is not None:
        settings.append(f"model.mlp_width={max(1, round(model.mlp_width * width / model.width))}")
    return tuple(settings)


def resized(config, settings: Sequence[str]):
    """A copy of the configuration with a size's settings, all of which are whole numbers of the model."""
    model = dataclasses.replace(config.model, **{key.removeprefix("model."): int(value) for key, _, value in
                                                 (setting.partition("=") for setting in settings)})
    return dataclasses.replace(config, model=model)


def walk_budget(outline: Outline, budget: Budget) -> list[Leg]:
    """The steps that a token, FLOP or step budget buys."""
    train = outline.config.train
    cost = {"tokens": lambda shape, flops: shape.tokens, "flops": lambda shape, flops: flops,
            "steps": lambda shape, flops: 1}[budget.kind]
    unit = train.micro_batch_tokens or math.gcd(train.batch_tokens, train.batch_start_tokens or train.batch_tokens)
    return walk(outline.config, outline, unit, budget.amount, cost)


def make_cells(config, sizes: Sequence[str], budgets: Sequence[str]) -> list[Cell]:
    """Every size under every budget, cheapest budget first; the largest budget is held out. CramError for a budget that is
    time (it would make the data a matter of speed) or buys no step."""
    parsed = sorted({Budget.parse(text) for text in budgets}, key=lambda budget: budget.amount)
    if len({budget.kind for budget in parsed}) != 1 or parsed[0].kind == "time":
        raise CramError(f"--budgets {', '.join(budgets)}: give tokens, or give FLOPs, such as '1e6 tokens' '2e6 tokens'; time "
                        "would let the machine's mood decide what is read")
    made = [make_size(name, config) for name in dict.fromkeys(sizes)]
    if len(made) < 3 or len(parsed) < 4:
        raise CramError(f"{len(made)} sizes and {len(parsed)} budgets: a fit needs three --sizes and three --budgets, and one "
                        "more, the largest, to be predicted")
    return [_cell(config, size, budget, budget == parsed[-1]) for budget in parsed for size in made]


def _cell(config, size: Size, budget: Budget, held_out: bool) -> Cell:
    legs = walk_budget(Outline(resized(config, size.settings)), budget)
    steps = sum(leg.steps for leg in legs)
    if steps < 4:
        raise CramError(f"budget {budget.text}: buys {steps} steps of {config.train.batch_tokens:,} tokens for {size.name}, "
                        "which teach nothing; give larger --budgets or a smaller train.batch_tokens")
    return Cell(size, budget, held_out, steps, sum(leg.tokens for leg in legs), sum(leg.flops for leg in legs))


def run_cells(cells: Sequence[Cell], settings: Sequence[str], say: Callable[[str], None]) -> Iterator[dict]:
    """The row of one cell after another. settings: configurations and ``key=value``."""
    from cram.bench.runs import finish

    names, overrides = [text for text in settings if "=" not in text] or ["demo"], [text for text in settings if "=" in text]
    for number, cell in enumerate(cells, start=1):
        slug = re.sub("[^a-z0-9.]+", "-", cell.budget.text.lower())
        done = finish([*names, *QUIET, *overrides, *cell.size.settings, f"budget={cell.budget.text}",
                       f"name=scale-{cell.size.name}-{slug}"])
        loss = done.scores["held_out"]["loss"]
        say(f"{number}/{len(cells)}  {cell.size.name} {cell.budget.text}: loss {loss:.4f}")
        yield {"size": cell.size.name, "budget": cell.budget.text, "held_out": cell.held_out, "steps": done.ledger.steps,
               "tokens": done.ledger.tokens, "flops": done.ledger.flops, "loss": loss,
               "seconds": done.ledger.seconds, "tokens_per_second": done.ledger.tokens / done.seconds,
               "ledger": done.ledger.head}


def speeds(rows: Sequence[dict]) -> dict[str, float]:
    """Tokens a second by size: the median over its runs."""
    return {name: statistics.median(row["tokens_per_second"] for row in rows if row["size"] == name)
            for name in dict.fromkeys(row["size"] for row in rows)}


def family(config) -> list[Size]:
    """Candidate sizes, layers in proportion to width as in the recipe."""
    aspect = config.model.width / config.model.layers
    return [make_size(f"{max(1, round(width / aspect))}x{width}", config) for width in WIDTHS]
