"""What a run tells while it trains: ``metrics.jsonl``, TensorBoard and one progress line.

``metrics.jsonl`` is the truth: one JSON object a line, appended and flushed,
never rewritten. TensorBoard is a view of it. When a run resumes, the work after
its checkpoint is lost and the rows that described it are superseded. Readers
drop them (``read_metrics``), and the event files are written anew from what is
left: TensorBoard's default data server ignores ``SessionLog.START``, which is
all that ``purge_step`` writes, so on its own that leaves lost points in every
curve until newer ones overtake them, and for ever on the budget axis.

Nothing of training is known here, and nothing here changes a result.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Callable

from cram.errors import CramError

TAGS = {  # kind of row -> its fields that are drawn, and under which TensorBoard tag
    "train": {
        "loss": "loss/train", "lr": "schedule/lr", "muon_lr": "schedule/muon_lr", "mask_rate": "schedule/mask_rate",
        "batch_tokens": "schedule/batch_tokens", "row": "schedule/sequence_length", "window": "schedule/window",
        "layers": "schedule/layers", "grad_norm": "train/grad_norm", "tokens": "train/tokens",
        "tokens_per_second": "speed/tokens_per_second", "mfu": "speed/mfu", "memory_bytes": "speed/memory_bytes",
        "progress": "budget/progress", "spent": "budget/seconds"},
    "validation": {
        "loss": "loss/validation", "accuracy": "validation/accuracy", "bits_per_byte": "validation/bits_per_byte",
        "masked_loss": "loss/validation_masked", "masked_accuracy": "validation/masked_accuracy",
        "minimal_pairs": "validation/minimal_pairs"},
}
LAYOUT = {  # the Custom Scalars tab: category -> chart; each name is a regular expression that begins a tag
    "loss": {
        "training and validation (nats per predicted token)": ["Multiline", ["loss/train", "loss/validation"]],
        "held-out bits per byte": ["Multiline", ["validation/bits_per_byte"]],
        "held-out accuracy": ["Multiline", ["validation/accuracy", "validation/masked_accuracy", "validation/minimal_pairs"]],
    },
    "schedule": {
        "learning rates": ["Multiline", ["schedule/lr", "schedule/muon_lr"]],
        "batch (tokens)": ["Multiline", ["schedule/batch_tokens"]],
        "sequence and window (tokens)": ["Multiline", ["schedule/sequence_length", "schedule/window"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
    },
    "speed": {
        "throughput (tokens per second)": ["Multiline", ["speed/tokens_per_second"]],
        "model FLOPs utilisation": ["Multiline", ["speed/mfu"]],
        "memory (bytes)": ["Multiline", ["speed/memory_bytes"]],
    },
    "budget": {
        "progress (share of the budget)": ["Multiline", ["budget/progress"]],
        "charged (seconds)": ["Multiline", ["budget/seconds"]],
    },
}
HPARAMS = ("budget", "seed", "model", "objective", "optimizer", "schedule", "train", "distill")  # what runs are compared by


def read_metrics(path: Path) -> list[dict]:
    """Rows of ``metrics.jsonl`` in order, without those of lost work.

    A ``resume`` row at step s supersedes every earlier row with a step beyond s, except events: they happened.
    A last line without its newline was torn by a crash and is ignored. Raises
    CramError (file and line) when any other line is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise CramError(f"{path}: no such file; run the pretrain stage first")
    rows: list[dict] = []
    lines = path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise CramError(f"{path}, line {number}: not JSON ({error}); delete the line") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise CramError(f"{path}, line {number}: not an object with a 'kind'; delete the line")
        if row["kind"] == "resume":
            rows = _until(rows, row["step"])
        rows.append(row)
    return rows


def _until(rows: list[dict], step: int) -> list[dict]:
    return [row for row in rows if row.get("step", 0) <= step or row["kind"] == "event"]


class Telemetry:
    """Writes ``folder/metrics.jsonl`` and ``folder/tensorboard``, and says how far the run is.

    Args:
        folder: the run; created when missing.
        config: the resolved config as nested dicts (shown as a table, and as hparams at the end).
        resume_step: step of the checkpoint the run goes on from; rows beyond it are lost work. 0: from the start.
        print_every: seconds between progress lines when stderr is no terminal.
        say: prints one line.

    Every row gets ``time``, seconds since 1970. Two axes: ``tensorboard/`` holds scalars
    against the step, ``tensorboard/by_budget/`` the same against whole charged seconds.
    """

    def __init__(self, folder: Path, *, config: dict, resume_step: int = 0, print_every: float,
                 say: Callable[[str], None]):
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._config, self._print_every, self._say = config, print_every, say
        self._latest: dict[str, float] = {}
        self._bar = None
        self._said_at: float | None = None
        path, board = folder / "metrics.jsonl", folder / "tensorboard"
        again = path.exists()
        _drop_torn_line(path)
        kept = _until(read_metrics(path), resume_step) if again else []
        self._file = open(path, "a", encoding="utf-8")
        for old in board.rglob("events.out.tfevents.*"):
            old.unlink()
        # purge_step=0: a reader that is open now forgets what it read from the old files
        purge = 0 if again else None
        self._by_step = SummaryWriter(str(board), purge_step=purge)
        self._by_budget = SummaryWriter(str(board / "by_budget"), purge_step=purge)
        for writer in (self._by_step, self._by_budget):
            writer.add_custom_scalars(LAYOUT)
        self._by_step.add_text("config", _table(_flatten(config)), 0)
        for row in kept:
            self._draw(row)
        self._flush()

    def plan(self, row: dict) -> None:
        """What was decided before the first step: device, parameters, micro-batch, precision, ..."""
        self._record("plan", row)

    def train(self, row: dict) -> None:
        """One logged step."""
        self._record("train", row)

    def validation(self, row: dict) -> None:
        """One look at held-out text."""
        self._record("validation", row)

    def sample(self, text: str, step: int) -> None:
        """Text of the model, for people to look at."""
        self._record("sample", {"step": step, "text": text})

    def event(self, row: dict) -> None:
        """Something out of the ordinary: ``event`` names it, ``told`` says it in words."""
        self._record("event", row)

    def resume(self, row: dict) -> None:
        """The run goes on from ``row["step"]``; earlier rows beyond it are superseded."""
        self._record("resume", row)

    def end(self, row: dict) -> None:
        """The last step was taken; hparams and final numbers go to TensorBoard."""
        self._record("end", row)
        hparams = {name: value if isinstance(value, (bool, int, float, str)) else json.dumps(value)
                   for name, value in _flatten(self._config).items() if name.split(".")[0] in HPARAMS}
        final = {f"final/{tag.replace('/', '_')}": value for tag, value in self._latest.items()}
        # run_name ".": the default would open a second, time-stamped run
        self._by_step.add_hparams(hparams, final, run_name=".", global_step=row["step"])

    def progress(self, *, fraction: float, left: str, loss: float, tokens_per_second: float, eta: float) -> None:
        """How far the run is. A bar on a terminal; else one plain line every ``print_every`` seconds.

        Args: share of the budget spent; what is left of it, in words; nats; tokens a second; seconds to the end.
        """
        line = f"{left} left, loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s, ETA {_duration(eta)}"
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=1.0, bar_format="{percentage:3.0f}%|{bar:24}| {desc}", leave=True)
            self._bar.n = min(fraction, 1.0)
            self._bar.set_description_str(line)
        elif self._said_at is None or time.monotonic() - self._said_at >= self._print_every:
            self._said_at = time.monotonic()
            self._say(f"{100 * fraction:3.0f}%  {line}")

    def close(self) -> None:
        """Flush and close everything; may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._by_step.close()
        self._by_budget.close()
        self._file.close()

    def _record(self, kind: str, row: dict) -> None:
        row = {"kind": kind, "time": round(time.time(), 3), **row}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self._draw(row)
        self._flush()

    def _draw(self, row: dict) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        kind, wall = row["kind"], row.get("time")
        if kind in TAGS:
            values = {tag: row[name] for name, tag in TAGS[kind].items() if row.get(name) is not None}
            self._latest.update((tag, value) for tag, value in values.items() if tag.startswith(("loss", "validation")))
            points = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
            self._by_step.file_writer.add_summary(points, row["step"], wall)
            self._by_budget.file_writer.add_summary(points, int(row["spent"]), wall)
        elif kind == "sample":
            shown = "\n".join("    " + line for line in row["text"].splitlines())  # Markdown: as it is
            self._by_step.add_text("sample", shown, row["step"], wall)
        elif kind == "plan":
            self._by_step.add_text("plan", _table({k: v for k, v in row.items() if k not in ("kind", "time")}), 0, wall)

    def _flush(self) -> None:
        self._by_step.flush()
        self._by_budget.flush()


def _drop_torn_line(path: Path) -> None:
    """Cut what follows the last newline, or the next row would be glued to it."""
    if path.exists():
        with open(path, "r+b") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _table(flat: dict[str, Any]) -> str:
    cells = [(name, json.dumps(value).replace("|", "\\|")) for name, value in flat.items()]
    return "\n".join(["| key | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in cells)])


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s" if minutes else f"{seconds}s"
