"""What the training loop itself costs: the wall time of a step, split by who spends it.

``PROBES`` names functions and methods and the category of each. For the time of one run they are exchanged for twins that
keep a stack of categories: every moment of the loop is charged to the innermost one (as the ledger charges its accounts),
so nothing is counted twice and nothing is left out. What the probes do not name is ``rest``. Only the thread of the loop is
looked at; the ledger's heartbeat and the making of the next batch work beside it.

A step that computes longer does not take longer here: the share of a step of 100 or 500 ms is arithmetic.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import statistics
import sys
import threading
import time
from collections import defaultdict
from typing import Any, Callable, Iterator, Sequence

from cram.audit import read_ledger
from cram.bench.measure import attempt
from cram.bench.runs import PLAIN, bring, workplace
from cram.errors import CramError

DEVICE, BATCH, LEDGER, TELEMETRY, PACE, REST = "device work", "batch wait", "ledger", "telemetry", "schedule, pace", "rest"
ASIDE = "saving, validation"            # paid by the clock, not by the step
STEP, LOOP = "cram.train:Day.optimizer_step", "cram.train:Day.run"
# (category, module:object). What waits for a card is device work, wherever it waits.
PROBES = (
    (REST, LOOP), (REST, STEP), (BATCH, "cram.batches:Batches.step"),
    (DEVICE, "cram.learner:Learner.backward"), (DEVICE, "cram.learner:Learner.update"), (DEVICE, "cram.device:Throttle.queued"),
    (DEVICE, "cram.guard:Guard.check"),
    (LEDGER, "cram.ledger:Ledger.switch"), (LEDGER, "cram.ledger:Ledger.account"), (LEDGER, "cram.ledger:Ledger.count"),
    (LEDGER, "cram.ledger:Ledger.spent"), (LEDGER, "cram.ledger:Ledger.account_seconds"),
    (TELEMETRY, "cram.logbook:Logbook.add"), (TELEMETRY, "cram.logbook:Logbook.write"),
    (TELEMETRY, "cram.telemetry:Telemetry.train"),
    (PACE, "cram.train:Day.next_progress"), (PACE, "cram.train:Day.next_shape"), (PACE, "cram.learner:Learner.flops"),
    (PACE, "cram.train:Day.has_room"), (PACE, "cram.pace:Pace.save_is_due"), (PACE, "cram.schedule:learning_rate"),
    (ASIDE, "cram.keeper:Keeper.save"), (ASIDE, "cram.train:Day.validate"))
CONFIGS = ("demo", "demo_gpt")
WARM_UP, STEPS = 10, 50                 # whole rows of metrics; the steps before are not counted
BASE = (*PLAIN, "train.validate_every=1", "evaluate.tokens=8192", "train.validation_tokens=512")
QUICK = ("tokenizer.vocab_size=512", "model.layers=1", "model.width=32", "model.heads=2", "train.batch_tokens=512")
VIEW = {"title": "What the training loop costs", "rounds": "Median over tens of steps of a run; the least of {repeats} run(s), "
        "since neighbours only add.",
        "panel": "{config}: {step_ms:.1f} ms a step of {batch_tokens:,} tokens; compile and steps are {charged:.1%} of the "
        "charged time", "x": "config", "line": "category", "kind": "bars", "baseline": "", "y": [["share", "share of a step"]],
        "columns": [["part of a step", "category", ""], ["µs a step", "us", ",.0f"], ["share of this step", "share", ".2%"],
                    ["of a 100 ms step", "share_100", ".3%"], ["of a 500 ms step", "share_500", ".3%"]]}
NOTES = [f"{DEVICE}: forward, backward, clipping and update, with what PyTorch itself costs on the host. Everything else is "
         "the loop's own; its sum is the last line.",
         "Shares of steps of 100 and 500 ms are arithmetic: the loop's own work does not grow with the model. There the "
         "device's part is what is left, so it has no figure.",
         f"Saving and validation lie outside the steps counted here ({STEPS} after {WARM_UP}); the ledger accounts for them."]
REPEATS = {"cpu": 3, "cuda": 3}


class Account:
    """Exclusive seconds by category, of one thread. steps: the account of each step, from its start to the next."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock, self.thread = clock, threading.get_ident()
        self.seconds: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self._stack, self._since = [REST], clock()

    def enter(self, category: str) -> None:
        self._settle()
        self._stack.append(category)

    def leave(self) -> None:
        self._settle()
        self._stack.pop()

    def new_step(self) -> None:
        """Close the account of the step before."""
        self._settle()
        self.steps.append(dict(self.seconds))
        self.seconds.clear()

    def _settle(self) -> None:
        now = self.clock()
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def twin(self, function: Callable, category: str, each_step: bool = False) -> Callable:
        """The function, charged to a category in this account's thread. each_step: a step begins with it."""
        @functools.wraps(function)
        def charged(*arguments, **options):
            if threading.get_ident() != self.thread:
                return function(*arguments, **options)
            if each_step:
                self.new_step()
            self.enter(category)
            try:
                return function(*arguments, **options)
            finally:
                self.leave()
        return charged


def find(path: str) -> tuple[Any, str, Any]:
    """(owner, name, object) of ``module:object``; CramError naming it when it is not there."""
    module, _, inside = path.partition(":")
    *owners, name = inside.split(".")
    try:
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        return owner, name, vars(owner)[name]
    except (ModuleNotFoundError, AttributeError, KeyError) as error:
        raise CramError(f"cram bench overhead looks for {path}, which is not there; correct PROBES in {__name__}") from error


@contextlib.contextmanager
def probed(account: Account, probes: Sequence[tuple[str, str]] = PROBES) -> Iterator[None]:
    """Charge these objects to the account for a while. A function of a module is exchanged wherever it was imported to.

    CramError for a name that is nowhere, before anything is exchanged.
    """
    found = [(category, find(path), path == STEP) for category, path in probes]
    with contextlib.ExitStack() as undo:
        for category, (owner, name, there), each_step in found:
            function = there.fget if isinstance(there, property) else there
            twin = account.twin(function, category, each_step)
            places = [(owner, name)] if isinstance(owner, type) else [
                (module, key) for module in list(sys.modules.values()) if getattr(module, "__name__", "").startswith("cram")
                for key, value in list(vars(module).items()) if value is there]
            for place, key in places:
                undo.callback(setattr, place, key, there)
                setattr(place, key, property(twin) if isinstance(there, property) else twin)
        yield


def measure(text: tuple[str, ...], repeats: int, device: str, quick: bool,
            say: Callable[[str], None]) -> Iterator[list[dict]]:
    """The rows of one configuration after another. text: settings that name it."""
    with workplace(None) as work:
        for config in CONFIGS:
            settings = (config, *BASE, *(QUICK if quick else ()), *text, f"out={work}", f"train.device={device}")
            rounds, error = attempt(lambda: [_run((*settings, f"name=overhead-{config}-{number}", f"seed={number}"))
                                             for number in range(repeats)])
            rows = [{"config": config, "category": "all", "error": error, "step_ms": 0.0, "batch_tokens": 0, "charged": 0.0}]
            if rounds is not None:
                rows = _rows(config, rounds)
            say(f"overhead: {config}: " + (error or ", ".join(f"{row['category']} {row['us']:,.0f} µs" for row in rows)))
            yield rows


def _run(settings: tuple[str, ...]) -> dict[str, Any]:
    """Seconds of each category a step, of a run made now."""
    account, steps = Account(), WARM_UP + STEPS + 1             # the last step's account is never closed
    bring(settings, "data")
    with probed(account):
        links = bring((*settings, f"budget={steps} steps"), "pretrain")
    counted = account.steps[1 + WARM_UP:]                       # the first account is what came before the first step
    ledger = read_ledger(links / "pretrain" / "ledger.jsonl")
    return {"seconds": {category: typical([step.get(category, 0.0) for step in counted])
                        for category in (DEVICE, BATCH, LEDGER, TELEMETRY, PACE, REST)},
            "charged": (ledger.account["compile"] + ledger.account["steps"]) / ledger.seconds,
            "batch_tokens": ledger.tokens // ledger.steps}


def typical(seconds: Sequence[float]) -> float:
    """Median of the means of ten steps each: one of ten writes a row of metrics, and a neighbour may hold up a few."""
    return statistics.median(statistics.mean(seconds[first:first + 10]) for first in range(0, len(seconds), 10))


def _rows(config: str, rounds: Sequence[dict]) -> list[dict]:
    """Each category's least seconds; the loop's own sum last."""
    least = {category: min(each["seconds"][category] for each in rounds) for category in rounds[0]["seconds"]}
    own = sum(seconds for category, seconds in least.items() if category != DEVICE)
    step = own + least[DEVICE]
    facts = {"config": config, "step_ms": 1e3 * step, "batch_tokens": rounds[0]["batch_tokens"],
             "charged": statistics.median(each["charged"] for each in rounds)}
    return [facts | {"category": category, "us": 1e6 * seconds, "share": seconds / step} | (
                {} if category == DEVICE else {"share_100": seconds / 0.1, "share_500": seconds / 0.5})
            for category, seconds in (least | {"the loop's own": own}).items()]
