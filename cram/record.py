"""Where a run stands, and the record by which it can be replayed.

``progress.f64``: float64, the progress of each step, eight bytes a step. ``jumps.json``: [[step, row], ...], where the text
was taken up after a roll-back; absent when there was none. The two, a step budget and the configuration give the same bits
again.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

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
    """Writes the record of a run, from the step that it continues at. say: prints a line when steps are missing."""

    def __init__(self, folder: Path, step: int, say: Callable[[str], None] = print):
        self.folder, self._say = folder, say
        self._file = open(folder / "progress.f64", "ab")
        self.cut(step)

    def add(self, progress: float) -> None:
        """One more step."""
        self._file.write(np.float64(progress).tobytes())

    def cut(self, step: int) -> None:
        """The steps after this one are not part of the run any more. Where earlier ones are missing, NaN keeps their places."""
        self._file.flush()
        held = os.fstat(self._file.fileno()).st_size // 8
        self._file.truncate(8 * min(held, step))
        if held < step:
            self._say(f"{self._file.name}: holds {held} of {step} steps: the run goes on, but cannot be replayed")
            self._file.write(np.full(step - held, np.nan).tobytes())

    def sync(self, jumps: list[list[int]]) -> None:
        """Force all of it to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if jumps:
            replace_durably(self.folder / JUMPS, json.dumps(jumps).encode())
        else:
            (self.folder / JUMPS).unlink(missing_ok=True)

    def close(self) -> None:
        # A full disk must not hide the error that ends the run: what the last checkpoint forced to disk is what counts.
        with contextlib.suppress(OSError):
            self._file.close()


@dataclass(frozen=True)
class Replay:
    """The record of an earlier run. progress: float64 [steps]; jumps: step -> first row of the text from there on."""

    progress: np.ndarray
    jumps: dict[int, int]

    @staticmethod
    def read(path: Optional[str], budget: Budget) -> Optional["Replay"]:
        """The record that ``path`` (a progress.f64) and the jumps.json beside it hold.

        Raises CramError unless each is what a run writes, and the record fits the budget.
        """
        if path is None:
            return None
        progress = _read_progress(Path(path))
        if budget.kind != "steps" or len(progress) != budget.amount:
            raise CramError(f"train.replay={path}: holds {len(progress)} steps; set budget='{len(progress)} steps'")
        return Replay(progress, _read_jumps(Path(path).with_name(JUMPS)))


def _read_progress(path: Path) -> np.ndarray:
    """float64 [steps], in (0, 1] and never falling; anything else is a CramError."""
    remedy = "give the progress.f64 of a finished run"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CramError(f"train.replay={path}: {error.strerror}; {remedy}") from error
    if not content or len(content) % 8:
        raise CramError(f"train.replay={path}: {len(content)} bytes are not eight for each step; {remedy}, whole")
    progress = np.frombuffer(content, dtype=np.float64)
    if np.isnan(progress).any():
        raise CramError(f"train.replay={path}: step {int(np.isnan(progress).argmax()) + 1} is missing, since the file was "
                        f"shortened while that run was stopped; {remedy}, whole")
    outside = (progress <= 0) | (progress > 1)
    if outside.any():
        step = int(outside.argmax())
        raise CramError(f"train.replay={path}: step {step + 1} has progress {progress[step]:g}, outside (0, 1]; {remedy}")
    if (falls := np.diff(progress) < 0).any():
        raise CramError(f"train.replay={path}: progress falls after step {int(falls.argmax()) + 1}; {remedy}")
    return progress


def _read_jumps(path: Path) -> dict[int, int]:
    """step -> row of the text; {} where there is no such file."""
    try:
        jumps = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CramError(f"{path}: cannot be read ({error}); copy it again from the recorded run") from error
    if not isinstance(jumps, list) or not all(_is_jump(jump) for jump in jumps):
        raise CramError(f"{path}: not a list of [step, row] pairs of whole numbers; copy it again from the recorded run")
    return dict(jumps)


def _is_jump(jump: Any) -> bool:
    return isinstance(jump, list) and len(jump) == 2 and all(type(number) is int and number >= 0 for number in jump)
