"""What our defaults are worth: each beside the value of cramming's final recipe, at the same budget, seed by seed.

Where a shipped recipe differs from ``configs/cramming2022.yaml``, a ``Switch`` says which keys belong together. Both values
are read from the configurations; where a day's figure has no meaning at the demo's size (a batch, an inner width), the
switch gives one in proportion. Each comparison changes one switch of the demo and nothing else. The budget is an amount of
FLOPs, so it is exact on any machine, busy or not; a default that computes the same more slowly shows in the ratio of times.

For each seed all arms are run in turn, and compared with the demo of that seed; ``paired.py`` holds the statistics. Keys
that follow from size or text are no technique and listed under ``NO_TECHNIQUE`` with the reason.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from cram.bench.measure import attempt
from cram.bench.paired import interval, show_gain, show_mean, verdict
from cram.bench.runs import PLAIN, finish, workplace
from cram.budget import Budget
from cram.config import load, lookup
from cram.explain import differences, show
from cram.schema import Config

BASELINE = "cramming2022"
RECIPES = ("demo", "demo_gpt", "bert_day", "gpt_day")
MASKED, CAUSAL, BOTH = ("demo",), ("demo_gpt",), ("demo", "demo_gpt")


@dataclasses.dataclass(frozen=True)
class Switch:
    """Keys that are decided together. of: shipped recipe whose values are the default on trial; on: configurations trained.

    scaled: key -> (default, other) in place of the recipes' values. both: settings of either arm; other: of that arm alone.
    """

    name: str
    keys: tuple[str, ...]
    of: str = "demo"
    on: tuple[str, ...] = MASKED
    scaled: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    both: tuple[str, ...] = ()
    other: tuple[str, ...] = ()

    def arms(self, trained: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(settings of the default, of cramming's value), without those that the trained configuration has anyhow."""
        here, sides = load(trained), []
        for side, recipe in enumerate((load(self.of), load(BASELINE))):
            values = {key: self.scaled[key][side] if key in self.scaled else lookup(recipe, key) for key in self.keys}
            sides.append((*self.both, *(f"{key}={show(value)}" for key, value in values.items() if lookup(here, key) != value)))
        return sides[0], (*sides[1], *self.other)


def _adamw(rate: float, on: tuple[str, ...] = MASKED) -> Switch:
    """AdamW has its own best rate, so it gets several; the tables keep the demo's, since they are not what differs."""
    return Switch(f"Muon (AdamW at {rate:g})", ("optimizer.type", "optimizer.lr", "optimizer.eps"), on=on,
                  scaled={"optimizer.lr": (0.03, rate)}, other=("optimizer.embedding_lr=0.03",))


_RAMP = ("train.batch_ramp", "train.batch_start_tokens")
_MICRO = ("train.micro_batch_tokens=256",)
SWITCHES = (
    Switch("RMSNorm", ("model.norm", "model.norm_eps")),
    Switch("rotary positions", ("model.position",), on=BOTH),
    Switch("QK-norm", ("model.qk_norm",), of="demo_gpt", on=CAUSAL),  # no default of masked models, which it did not help
    Switch("zero initialisation", ("model.zero_init",), on=BOTH),
    Switch("document mask", ("model.document_mask",)),
    Switch("inner width", ("model.mlp_width",), scaled={"model.mlp_width": (None, 256)}),           # twice the width
    _adamw(1e-3), _adamw(3e-3, BOTH), _adamw(1e-2, BOTH),
    Switch("rate of the tables", ("optimizer.lr",)),
    Switch("gradient clip", ("optimizer.clip",)),
    Switch("schedule", ("schedule.type", "schedule.warmup", "schedule.start", "schedule.decay")),
    Switch("mask rate", ("objective.mask_rate",)),
    Switch("falling mask rate", ("objective.mask_rate", "objective.mask_rate_end"), of="bert_day"),
    Switch("batch size", ("train.batch_tokens",), of="bert_day", scaled={"train.batch_tokens": (2048, 4096)}),
    Switch("no batch ramp", _RAMP, scaled={"train.batch_start_tokens": (None, 256)}, both=_MICRO),
    Switch("batch ramp of the day", _RAMP, of="bert_day", scaled={"train.batch_start_tokens": (512, 256)}, both=_MICRO),
    Switch("row length", ("train.sequence_length",), of="gpt_day", on=CAUSAL, scaled={"train.sequence_length": (512, 128)}),
    Switch("untied head", ("model.tied",), of="demo_gpt", on=CAUSAL),
    # not default: what gained most for peers, on trial
    *(Switch(f"on trial: {name}", (key,), on=CAUSAL, scaled={key: (value, off)}) for name, key, value, off in (
        ("squared ReLU", "model.mlp", "relu2", "geglu"),
        ("value embeddings", "model.value_embeddings", True, False),
        ("residual scalars", "model.residual_scalars", True, False), ("softcap 15", "model.logit_softcap", 15.0, None),
        ("cautious decay", "optimizer.cautious", True, False))),
)
# Keys (or sections) that may differ without a comparison, and why.
NO_TECHNIQUE = {
    "name": "a name", "budget": "equal in every comparison", "data": "the text, not the model (cram bench filters)",
    "evaluate": "after training", "telemetry": "changes nothing in the result", "train.validation_tokens": "changes nothing",
    "model.layers": "size", "model.width": "size", "model.heads": "size", "tokenizer.vocab_size": "size",
    "tokenizer.type": "losses over different tokens do not compare, and WordPiece is lossy: there is no bits per byte either",
    "objective.type": "the task"}
QUICK = ("tokenizer.vocab_size=512", "model.layers=1", "model.width=32", "model.heads=2", "train.batch_tokens=512",
         "train.validation_tokens=512")
SMALLER = ("tokenizer.vocab_size=2048",)    # a smaller head: more steps for the same FLOPs
QUICK_SWITCHES = (Switch("RMSNorm", ("model.norm", "model.norm_eps")), Switch("zero initialisation", ("model.zero_init",), on=BOTH),
                  Switch("no batch ramp", _RAMP, scaled={"train.batch_start_tokens": (None, 256)}, both=_MICRO))
SPEED, ASIDE = 4e10, 5.0    # FLOP/s of the demo on one core, and seconds a run takes besides: for the announcement alone
VIEW = {"title": "What the defaults are worth", "rounds": "{repeats} seed(s), each with every arm in turn.",
        "panel": "Gain by seed, {recipe}", "x": "switch", "line": "pair", "kind": "bars", "baseline": "",
        "y": [["gain", "less loss than with cramming's value"], ["time_ratio", "time, default / cramming's"]],
        "columns": [["default", "switch", ""], ["seed", "seed", ""], ["its settings", "default", ""],
                    ["cramming's settings", "other", ""], ["loss", "loss", ".4f"], ["loss, cramming's", "other_loss", ".4f"],
                    ["gain", "gain", "+.4f"], ["steps", "steps", ","], ["ms a step", "step_ms", ".1f"],
                    ["time, ratio", "time_ratio", ".2f"]]}
NOTES = ["Loss: nats a predicted held-out token (masked models: 15% hidden, whatever training used). Gain: the loss with "
         "cramming's value less ours, paired by seed; positive: the default is better.",
         "on trial: the default column is a switch that is off; a gain says that it might be on.",
         "Verdict: better or worse where Student's 95% interval of the mean gain leaves out 0, else cannot tell. Of so many "
         "comparisons one or two will be wrong.",
         "Time: seconds that the same FLOPs take at a run's median speed, default over cramming's, median over seeds; above 1 "
         "the default is slower. On a shared machine it is rough.",
         "A small model, a short budget, one text: evidence about the demo, a hint about the day."]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured. overrides: laid over every run, under the switch."""

    budget: str = "1.2e12 flops"
    switches: tuple[Switch, ...] = SWITCHES
    overrides: tuple[str, ...] = SMALLER

    def arms(self) -> dict[tuple[str, tuple[str, ...]], None]:
        """Every distinct (configuration, settings), in order; an arm that several switches share is run once."""
        return dict.fromkeys((on, arm) for switch in self.switches for on in switch.on for arm in switch.arms(on))

    def told(self) -> str:
        return f"Budget {self.budget} a run; settings of all: {' '.join((*PLAIN, *self.overrides))}."

    def expected(self, seeds: int) -> str:
        """How long it will take, before it is begun."""
        budget, runs = Budget.parse(self.budget), seeds * len(self.arms())
        seconds = {"flops": budget.amount / SPEED, "time": budget.amount}.get(budget.kind)
        return f"{runs} runs of {self.budget}" + (f", about {runs * (seconds + ASIDE) / 60:.0f} min" if seconds else "")


def uncovered(recipe: Config, baseline: Config, switches: Sequence[Switch] = SWITCHES) -> list[str]:
    """Keys of a recipe that differ from the baseline, are a technique, and are in no comparison."""
    compared = {key for switch in switches for key in switch.keys}
    return [key for key, *_ in differences(recipe, baseline) if key not in compared
            and key not in NO_TECHNIQUE and key.partition(".")[0] not in NO_TECHNIQUE]


def measure(plan: Plan, seeds: int, device: str, folder: Optional[Path], say: Callable[[str], None]) -> Iterator[list[dict]]:
    """The rows of one seed after another: one for each switch and configuration. folder: where runs are kept."""
    say(f"defaults: {plan.expected(seeds)}")
    began, done, total = time.monotonic(), 0, seeds * len(plan.arms())
    with workplace(folder) as work:
        for seed in range(seeds):
            found: dict[tuple, tuple[Optional[dict], Optional[str]]] = {}
            for number, (on, arm) in enumerate(plan.arms()):
                found[on, arm] = attempt(_run, (on, arm), number, seed, plan, (device, work))
                done += 1
                left = (time.monotonic() - began) / done * (total - done) / 60
                result, error = found[on, arm]
                say(f"defaults: {on} {' '.join(arm) or 'as it is'}, seed {seed}: "
                    + (error or f"{result['loss']:.4f}, {result['steps']} steps") + f"; {left:.0f} min left")
            yield [_row(switch, on, seed, found) for switch in plan.switches for on in switch.on]


def _run(arm: tuple[str, tuple[str, ...]], number: int, seed: int, plan: Plan, place: tuple[str, Path]) -> dict[str, Any]:
    """One run, or what is left of it."""
    (on, settings), (device, work) = arm, place
    run = finish((on, *PLAIN, "train.validate_every=1", *plan.overrides, *settings, f"seed={seed}",
                  f"budget={plan.budget}", f"name={on}-{number}-{seed}", f"out={work}", f"train.device={device}"))
    held_out = run.scores["held_out"]
    return {"loss": held_out["loss"], "predicted": held_out["predicted"], "steps": run.ledger.steps,
            "seconds": run.seconds}


def _row(switch: Switch, on: str, seed: int, found: Mapping[tuple, tuple[Optional[dict], Optional[str]]]) -> dict[str, Any]:
    """The default beside the other value: same configuration, same seed."""
    default, other = switch.arms(on)
    row = {"recipe": on, "switch": switch.name, "seed": seed, "pair": f"seed {seed}",
           "default": " ".join(default) or "as it is", "other": " ".join(other)}
    (ours, error), (theirs, their_error) = found[on, default], found[on, other]
    if ours is None or theirs is None:
        return row | {"error": error or their_error}
    if ours["predicted"] != theirs["predicted"]:
        return row | {"error": f"scored on other tokens: {ours['predicted']:,} and {theirs['predicted']:,}"}
    return row | {"loss": ours["loss"], "other_loss": theirs["loss"], "gain": theirs["loss"] - ours["loss"],
                  "steps": ours["steps"], "step_ms": 1e3 * ours["seconds"] / ours["steps"],
                  "other_step_ms": 1e3 * theirs["seconds"] / theirs["steps"], "time_ratio": ours["seconds"] / theirs["seconds"]}


def verdicts(rows: Sequence[dict]) -> list[dict]:
    """For each switch and configuration the verdict over all seeds; a comparison that failed on every seed has none."""
    pairs: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if "gain" in row:
            pairs.setdefault((row["recipe"], row["switch"]), []).append(row)
    return [{"recipe": recipe, "switch": switch, "seeds": len(each), "gains": [row["gain"] for row in each],
             "interval": interval([row["gain"] for row in each]), "verdict": verdict([row["gain"] for row in each]),
             "losses": [row["loss"] for row in each], "other_losses": [row["other_loss"] for row in each],
             "time_ratio": statistics.median(row["time_ratio"] for row in each)} for (recipe, switch), each in pairs.items()]


def tables(rows: Sequence[dict]) -> list[tuple[str, list[str], list[list[str]]]]:
    """The page's first table."""
    return [("Verdicts", ["default", "trained", "seeds", "loss (mean ± std)", "with cramming's value", "gain (95%)", "verdict",
                          "time, ratio"],
             [[each["switch"], each["recipe"], str(each["seeds"]), show_mean(each["losses"]), show_mean(each["other_losses"]),
               show_gain(each["gains"]), each["verdict"], f"{each['time_ratio']:.2f}"] for each in verdicts(rows)])]
