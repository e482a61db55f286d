"""All runs of a question in one TensorBoard: each once, by arm and seed, with its curves, and as hparams only what differs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cram.budget import Budget
from cram.insight.ablate.arms import times
from cram.insight.ablate.trials import run_name
from cram.telemetry import TAGS, read_metrics


def write_board(record: dict[str, Any], runs: Path, folder: Path) -> None:
    """Fill ``folder`` with one run for each finished row of the record; runs: the folder with their links."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    budget = Budget.parse(record["budget"])
    for row in record["rows"]:
        if "value" not in row:
            continue
        arm = next(each for each in record["arms"] if each["name"] == row["arm"])
        name = run_name(row["arm"], row["seed"], row["factor"])
        writer = SummaryWriter(str(folder / name))
        for metrics in read_metrics(runs / name / "pretrain" / "metrics.jsonl"):
            tags = TAGS.get(metrics["kind"], {})
            points = [Summary.Value(tag=tag, simple_value=metrics[key]) for key, tag in tags.items()
                      if metrics.get(key) is not None]
            if points:
                writer.file_writer.add_summary(Summary(value=points), metrics["step"], metrics["time"])
        differs = dict(arm["values"])
        if len({each["factor"] for each in record["rows"]}) > 1:
            differs["budget"] = times(budget, row["factor"]).text
        # run_name ".": the default would open a second, time-stamped run
        writer.add_hparams({"arm": row["arm"], "seed": row["seed"], **differs},
                           {f"final/{record['metric']['name']}": row["value"]}, run_name=".", global_step=row["steps"])
        writer.close()
