"""Time by turns: each moment of a step is charged to whoever's turn it is, so that the parts add up to the whole."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any, Callable, Iterable, Iterator

from cram.insight.profile.marks import between, now
from cram.insight.profile.step import Step
from cram.insight.profile.watch import LOOKING, Label, Watch, places


class Tape:
    """Marks in time, and whose it was from each to the next. clock: as for ``marks.now``."""

    def __init__(self, clock: str):
        self.clock = clock
        self.marks: list[tuple[Label, Any]] = []

    def mark(self, label: Label) -> None:
        """What follows is this one's."""
        self.marks.append((label, now(self.clock)))

    def seconds(self) -> dict[Label, float]:
        """By label, without what the profiler took for itself. On a card: wait for it before."""
        total: dict[Label, float] = defaultdict(float)
        for (label, start), (_, end) in zip(self.marks, self.marks[1:]):
            if label != LOOKING:
                total[label] += between(start, end)
        return dict(total)


@contextlib.contextmanager
def watching(step: Step, switched: Callable[[Label], None]) -> Iterator[Watch]:
    """The watch over a step's functions, which begins with a turn of the rest."""
    watch = Watch(switched)
    with watch.on(places(step.learner, step.batches)):
        yield watch


def time_steps(step: Step, steps: int) -> tuple[list[float], list[dict[Label, float]]]:
    """Seconds of ``steps`` steps that nobody looks at, and as many, in turns with them, by label."""
    plain: list[float] = []
    looked_at: list[dict[Label, float]] = []
    for _ in range(steps):
        plain.append(step.seconds())
        tape = Tape(step.clock)
        with watching(step, tape.mark) as watch:
            watch.turn(Label("forward", "rest"))
            step()
            watch.turn(LOOKING)
        step.wait()
        looked_at.append(tape.seconds())
    return plain, looked_at


def fastest(plain: list[float], looked_at: list[dict[Label, float]]) -> tuple[float, dict[Label, float]]:
    """Mean seconds over the fastest quarter of the steps of each kind: neighbours only add, and means add up as medians do
    not."""
    best = sorted(looked_at, key=lambda labels: sum(labels.values()))[:quarter(len(looked_at))]
    labels = dict.fromkeys(label for labels in best for label in labels)
    return quickest(plain), {label: sum(labels.get(label, 0.0) for labels in best) / len(best) for label in labels}


def quickest(seconds: Iterable[float]) -> float:
    """Their mean over the fastest quarter."""
    taken = sorted(seconds)
    return sum(taken[:quarter(len(taken))]) / quarter(len(taken))


def quarter(count: int) -> int:
    """Of so many steps; two at least."""
    return max(2, count // 4)
