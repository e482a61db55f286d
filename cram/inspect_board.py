"""The inspection as TensorBoard shows it: the funnel as scalars, the statistics as histograms, samples as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

GROUPS = ("kept", "dropped_here", "dropped_elsewhere")


def write_board(found: dict[str, Any], folder: Path) -> None:
    """Write event files into ``folder``, in the place of those that are there.

    found: of ``data_prep.inspection.inspect_text``. Scalars ``funnel/...``: what is left, by number of the step (their
    names stand in the text ``funnel``). Histograms ``<statistic>/kept`` and so on; scalars ``dropped/<reason>``.
    """
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.rglob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as board:
        for number, step in enumerate(found["funnel"]):
            for unit in ("documents", "bytes", "tokens"):
                if step[unit] is not None:
                    board.add_scalar(f"funnel/{unit}", step[unit], number)
        board.add_text("funnel", _funnel(found["funnel"]), 0)
        for group in found["samples"]:
            board.add_scalar(f"dropped/{group['fate']}" if group["fate"] not in ("train", "validation")
                             else f"kept/{group['fate']}", group["documents"], 0)
            for number, sample in enumerate(group["samples"]):
                board.add_text(f"samples/{group['fate']}", _as_it_is(sample), number)
        for row in found["statistics"]:
            for name in GROUPS:
                if any(row[name]):
                    board.add_histogram_raw(f"{row['name']}/{name}", **_raw(row["edges"], row[name]), global_step=0)


def _raw(edges: list[float], counts: list[int]) -> dict[str, Any]:
    """Arguments of add_histogram_raw; sums take each bin at its middle."""
    number, middle = np.array(counts), (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    filled = np.flatnonzero(number)
    return {"min": edges[filled[0]], "max": edges[filled[-1] + 1], "num": int(number.sum()), "sum": float(number @ middle),
            "sum_squares": float(number @ middle ** 2), "bucket_limits": edges[1:], "bucket_counts": counts}


def _funnel(steps: list[dict[str, Any]]) -> str:
    lines = [f"| {number} | {step['step']} | {step['documents']:,} | {step['bytes']:,} | "
             + ("" if step["tokens"] is None else f"{step['tokens']:,}") + " |" for number, step in enumerate(steps)]
    return "\n".join(["| | step | documents | bytes | tokens |", "|---|---|---:|---:|---:|", *lines])


def _as_it_is(sample: dict[str, Any]) -> str:
    """Markdown of a sample: indented, so that nothing in it is read as markup."""
    head = [f"{name}: {value}" for name, value in {"origin": sample["origin"], **sample["values"]}.items()]
    return "\n".join("    " + line for line in [*" ; ".join(head).splitlines(), "", *sample["text"].splitlines()])
