"""What makes a run outlive its process: checkpoints, the record of its steps, and the way back to both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Callable, Optional

import torch

from cram import checkpoint
from cram.errors import Exploded
from cram.learner import Learner
from cram.ledger import Ledger
from cram.model import Transformer
from cram.pace import Pace
from cram.parallel import Follower, World
from cram.record import Position, Record


def prove_room(config, run_dir: Path, vocab_size: int) -> None:
    """Before the clock starts: CramError unless the disk can hold all checkpoints at once."""
    with torch.device("meta"):
        outline = Transformer(config.model, vocab_size, config.objective.type != "masked")
    largest = checkpoint.most_bytes(outline, config)
    checkpoint.refuse_full_disk(run_dir / "checkpoints", (config.train.keep_checkpoints + 1) * largest)


class Keeper:
    """Saves and restores one run. The position ``at`` is the one object that the loop moves and checkpoints hold."""

    def __init__(self, config, run_dir: Path, run_id: str, world: World, ledger: Ledger, learner: Learner, pace: Pace,
                 say: Callable[[str], None]):
        self.config, self.world, self.ledger, self.learner, self.pace, self.say = config, world, ledger, learner, pace, say
        self.folder, self.run_id = run_dir / "checkpoints", run_id
        self.at = Position()
        self.saved_step: Optional[int] = None
        state = self._newest()
        if state is not None:
            self._restore(state)
            pace.load_state_dict(state["pace"])
        self.lost = ledger.resume(self.at.step)  # since that checkpoint: spent, and stays charged
        self.record = Record(run_dir, self.at.step, say) if world.main else Follower(ledger.budget, run_dir)

    def save(self) -> None:
        """A durable checkpoint of this moment, charged; the same moment is not saved twice."""
        if self.saved_step == self.at.step:
            return
        started = time.perf_counter()
        with self.ledger.account("saving"):
            self.record.sync(self.at.jumps)
            state = {**self.learner.state_dict(), "at": self.at.state_dict(), "pace": self.pace.state_dict()}
            if self.world.main:
                self.ledger.checkpoint(self.at.step)
                checkpoint.save(self.folder, state, step=self.at.step, run_id=self.run_id,
                                keep=self.config.train.keep_checkpoints, say=self.say)
        self.saved_step = self.at.step
        self.pace.saved(time.perf_counter() - started)

    def roll_back(self) -> float:
        """Go back to the newest checkpoint, or, where that has not helped, to the one before it, and skip the text read
        since. Returns the seconds lost. Raises CramError when the run has done so too often, or no checkpoint is left."""
        at, train = self.at, self.config.train
        if at.rollbacks < train.rollback_limit:
            stuck = at.jumps and at.jumps[-1][0] == self.saved_step
            if stuck and self.world.main and len(checkpoint.list_checkpoints(self.folder)) > 1:  # the last one stays
                checkpoint.set_aside(self.folder, at.jumps[-1][0], "exploded")
            if (state := self._newest()) is not None:
                first_row, rollbacks = at.first_row, at.rollbacks + 1
                self._restore(state)
                at.first_row, at.rollbacks = first_row, rollbacks
                at.jumps = [*(jump for jump in at.jumps if jump[0] < at.step), [at.step, first_row]]
                self.record.cut(at.step)
                self.learner.guard.pardon()
                lost, self.saved_step = self.ledger.roll_back(at.step), None
                self.save()  # a run killed now must not read that text again
                return lost
        exact = "" if self.learner.device.dtype is torch.float32 else ", or use train.precision=fp32"
        raise Exploded(f"step {at.step}: the loss keeps exploding; lower optimizer.lr and optimizer.muon_lr{exact}: that is a "
                       "new run with a budget of its own")

    def _newest(self) -> Optional[dict]:
        """The newest good checkpoint, which the first process reads; the others get all of it but the large tensors."""
        state = checkpoint.load_newest(self.folder, self.run_id, self.say) if self.world.main else None
        large = ("model", "optimizers")
        small = self.world.share(state and {name: value for name, value in state.items() if name not in large})
        return small and {**small, **{name: state and state[name] for name in large}}

    def _restore(self, state: dict) -> None:
        self.learner.load_state_dict(state)
        self.at.load_state_dict(state["at"])
        self.saved_step = self.at.step
