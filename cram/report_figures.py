"""The figures of a run's page: loss against budget and tokens, pace over time, where the budget went. SVG text, INK where the
page's text colour belongs.

rows: of ``read_metrics``. Curves are means over parts of the run, so that pages stay small.
"""

from __future__ import annotations

from typing import Any, Mapping, Optional

import numpy as np

from cram.drawing import BLUE, BROWN, COLOURS, GREEN, INK, ORANGE, RED, drawing
from cram.errors import CramError

BINS = 200  # points of the smoothed training curve
LEAST = 0.005  # share of the account below which a category gets no label
SHAPES = {"batch_tokens": "batch, tokens", "row": "sequence, tokens", "layers": "layers", "mask_rate": "mask rate",
          "window": "window, tokens"}  # what may change during a run
COLOUR_OF = {"setup": "#8c6d4f", "compile": "#8d6fc0", "steps": BLUE, "validation": ORANGE, "saving": GREEN,
             "data_wait": "#d9a441", "teacher": "#5bb0b0", "lost": RED}


def training(rows: list[dict]) -> list[dict]:
    """The logged steps that have a loss. CramError without one."""
    train = [row for row in rows if row["kind"] == "train" and row["loss"] is not None]  # None: every step was skipped
    if not train:
        raise CramError("metrics.jsonl holds no training step; run the pretrain stage again with a larger budget")
    return train


def draw_curves(rows: list[dict], unigram: float) -> str:
    """Loss, learning rate and whatever of a step's shape changed, against the share of the budget spent.

    The training loss is the mean over 1/200 of the budget.
    """
    train, validation = training(rows), [row for row in rows if row["kind"] == "validation"]
    changing = [name for name in SHAPES if len({row.get(name) for row in train} - {None}) > 1]
    with drawing(6.2, 5 + 0.9 * len(changing)) as made:
        loss, rate, *shapes = made.figure.subplots(2 + len(changing), 1, sharex=True,
                                                   height_ratios=[3, 1] + [0.7] * len(changing))
        loss.plot(*smooth(train, "loss"), color=BLUE, label="training (mean over 0.5% of the budget)")
        loss.plot([100 * row["progress"] for row in validation], [row["loss"] for row in validation], "o-", markersize=4,
                  color=ORANGE, label="validation")
        loss.axhline(unigram, color=INK, linestyle="--", linewidth=1, label="unigram, held-out text")
        loss.set_ylabel("nats per predicted token")
        loss.legend(frameon=False, labelcolor=INK)
        for name, label, colour in (("lr", "AdamW", BLUE), ("muon_lr", "Muon", GREEN)):
            points = [row for row in train if row.get(name) is not None]
            peak = max((row[name] for row in points), default=0.0)
            if peak > 0:
                rate.plot([100 * row["progress"] for row in points][::_stride(points)],
                          [row[name] / peak for row in points][::_stride(points)], color=colour,
                          label=f"{label}, peak {peak:.3g}", linewidth=4 if name == "lr" else 1.5)
        rate.set(ylabel="learning rate\n/ peak", xlim=(0, 100))
        if rate.lines:
            rate.legend(frameon=False, loc="lower left", labelcolor=INK)
        for axes, name, colour in zip(shapes, changing, COLOURS):
            points = [row for row in train if row.get(name) is not None][::_stride(train)]
            axes.step([100 * row["progress"] for row in points], [row[name] for row in points], color=colour, where="post")
            axes.set_ylabel(SHAPES[name].replace(", ", "\n"))
        (shapes or [rate])[-1].set_xlabel("budget spent, %")
    return made.svg


def draw_tokens(rows: list[dict]) -> Optional[str]:
    """Loss against the tokens read, on a logarithmic axis: as papers on scaling show it. None where tokens were not logged."""
    train = [row for row in training(rows) if row.get("tokens")]
    if len(train) < 2:
        return None
    tokens, looks = [row["tokens"] for row in train], [row for row in rows if row["kind"] == "validation"]
    read = tokens_read(train, [row["step"] for row in looks])
    with drawing(6.2, 3.2) as made:
        axes = made.figure.subplots()
        axes.plot(*_parts(tokens, [row["loss"] for row in train]), color=BLUE, label="training")
        axes.plot(read, [row["loss"] for row in looks], "o-", markersize=4, color=ORANGE, label="validation")
        axes.set(xscale="log", xlabel="tokens read", ylabel="nats per predicted token")
        axes.legend(frameon=False, labelcolor=INK)
    return made.svg


def tokens_read(train: list[dict], steps: list[int]) -> list[float]:
    """Tokens read by each of these steps, on a line between the training rows before and after it."""
    return np.interp(steps, [0, *(row["step"] for row in train)], [0, *(row["tokens"] for row in train)]).tolist()


def draw_pace(rows: list[dict]) -> Optional[str]:
    """Tokens a second over the seconds charged, with what happened on the way. None where speed was not logged."""
    train = [row for row in rows if row["kind"] == "train" and row.get("tokens_per_second")]
    if len(train) < 2:
        return None
    events = [(row["spent"], row.get("event", "resumed"), RED) for row in rows
              if row["kind"] == "event" or row["kind"] == "resume" and row["step"]]
    with drawing(6.2, 2.6) as made:
        axes = made.figure.subplots()
        axes.plot(*_parts([row["spent"] for row in train], [row["tokens_per_second"] for row in train]), color=BLUE)
        looks = [row["spent"] for row in rows if row["kind"] == "validation"]
        axes.plot(looks, [0] * len(looks), "|", color=ORANGE, markersize=9, label="validation", clip_on=False)
        for name, colour in {name: colour for _, name, colour in events}.items():
            at = [spent for spent, each, _ in events if each == name]
            axes.vlines(at, 0, 1, transform=axes.get_xaxis_transform(), color=colour, linewidth=1, linestyle=":", label=name)
        axes.set(xlabel="seconds charged", ylabel="tokens per second", xlim=(0, None),
                 ylim=(0, 1.08 * max(row["tokens_per_second"] for row in train)))
        axes.legend(frameon=False, loc="lower left", labelcolor=INK, fontsize=9)
    return made.svg


def draw_account(account: Mapping[str, float]) -> str:
    """Where the charged seconds went: one bar from none to all."""
    with drawing(6.2, 1.5) as made:
        plot_account(made.figure, account)
    return made.svg


def plot_account(figure: Any, account: Mapping[str, float]) -> None:
    """The bar of ``draw_account`` on a matplotlib figure."""
    axes, left, whole = figure.subplots(), 0.0, sum(account.values()) or 1.0
    for name, seconds in (dict.fromkeys(COLOUR_OF, 0.0) | dict(account)).items():  # in the order of the day
        if seconds > 0:
            label = f"{name.replace('_', ' ')} {100 * seconds / whole:.1f}%" if seconds >= LEAST * whole else None
            axes.barh(0, 100 * seconds / whole, left=left, color=COLOUR_OF.get(name, BROWN), label=label)
            left += 100 * seconds / whole
    axes.set(xlim=(0, 100), xlabel="charged seconds, %", yticks=[])
    axes.spines["left"].set_visible(False)
    figure.legend(frameon=False, loc="outside upper left", ncols=4, labelcolor=INK, fontsize=9)


def smooth(rows: list[dict], name: str) -> tuple[list[float], list[float]]:
    """Means over 1/200 of the budget: percent spent, value."""
    bins: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        bins.setdefault(min(int(BINS * row["progress"]), BINS - 1), []).append((100 * row["progress"], row[name]))
    x, y = zip(*(map(lambda column: sum(column) / len(column), zip(*points)) for _, points in sorted(bins.items())))
    return list(x), list(y)


def _parts(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Means over equal numbers of rows."""
    each = -(-len(x) // BINS)
    parts = [slice(begin, begin + each) for begin in range(0, len(x), each)]
    return [sum(x[part]) / len(x[part]) for part in parts], [sum(y[part]) / len(y[part]) for part in parts]


def _stride(rows: list[dict]) -> int:
    return max(1, len(rows) // (2 * BINS))
