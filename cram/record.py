"""Where a run stands, and the record by which it can be replayed.

``progress.f64``: float64, the progress of each step, eight bytes a step. ``jumps.json``: [[step, row], ...], where the text
was taken up after a roll-back; absent when there was none. The two, a step budget and the configuration give the same bits
again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np

from cram.budget import Budget
from cram.errors import CramError
from data_prep.files import replace_durably

JUMPS = "jumps.json"


@dataclass
class Position:
    """What a checkpoint knows of the loop itself.

    step: finished optimizer steps; first_row: rows of the text consumed; progress: of the last finished step;
    micro_tokens: per forward/backward, frozen at the first start; jumps: as in jumps.json; rollbacks: how many there were.
    """

    step: int = 0
    first_row: int = 0
    progress: float = 0.0
    micro_tokens: Optional[int] = None
    jumps: list[list[int]] = field(default_factory=list)
    rollbacks: int = 0

    def state_dict(self) -> dict:
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class Record:
    """Writes the record of a run, from the step that it continues at."""

    def __init__(self, folder: Path, step: int):
        self.folder = folder
        self._file = open(folder / "progress.f64", "ab")
        self.cut(step)

    def add(self, progress: float) -> None:
        """One more step."""
        self._file.write(np.float64(progress).tobytes())

    def cut(self, step: int) -> None:
        """The steps after this one are not part of the run any more."""
        self._file.flush()
        self._file.truncate(8 * step)

    def sync(self, jumps: list[list[int]]) -> None:
        """Force all of it to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if jumps:
            replace_durably(self.folder / JUMPS, json.dumps(jumps).encode())

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Replay:
    """The record of an earlier run. progress: float64 [steps]; jumps: step -> first row of the text from there on."""

    progress: np.ndarray
    jumps: dict[int, int]

    @staticmethod
    def read(path: Optional[str], budget: Budget) -> Optional["Replay"]:
        """The record that ``path`` (a progress.f64) and the jumps.json beside it hold; CramError unless it fits the budget."""
        if path is None:
            return None
        try:
            recorded = np.fromfile(path, dtype=np.float64)
        except OSError as error:
            raise CramError(f"train.replay={path}: {error.strerror}; give the progress.f64 of a finished run") from error
        if budget.kind != "steps" or len(recorded) != budget.amount:
            raise CramError(f"train.replay={path}: holds {len(recorded)} steps; set budget='{len(recorded)} steps'")
        beside = Path(path).with_name(JUMPS)
        return Replay(recorded, dict(json.loads(beside.read_text())) if beside.exists() else {})
