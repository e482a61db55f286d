"""Memory by phase and module, from the storages that operations make: how much lives, and who made it.

A storage counts from the operation that returned it until nothing holds it. What an operation allocates and frees inside
itself, and what the allocator keeps in reserve, is not seen; on a card torch's own peak stands beside (``torch.cuda``).
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from functools import partial
from typing import Iterable

from torch import Tensor

from cram.insight.profile.watch import LOOKING, Label


class Storages:
    """at_rest: tensors that are there before and after; ``rest``: their bytes. ``peak``: most that lived at a time in each
    phase, with those; ``kept``: most that a module's forward pass has left when a backward pass begins."""

    def __init__(self, at_rest: Iterable[Tensor]):
        self._live: dict[int, tuple[weakref.ref, int, Label]] = {}
        self.bytes, self.peak, self.kept = 0, defaultdict(int), defaultdict(int)
        self._phase = LOOKING.phase
        for tensor in at_rest:
            self.saw(tensor, LOOKING)
        self.rest = self.bytes

    def saw(self, tensor: Tensor, label: Label) -> None:
        """A tensor that an operation has returned; known storages count once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        self._live[key] = weakref.ref(storage, partial(self._freed, key)), size, label
        self.bytes += size
        self._reach(label.phase, self.bytes)

    def briefly(self, size: int, label: Label) -> None:
        """Bytes that an operation held while it ran."""
        self._reach(label.phase, self.bytes + size)

    def switched(self, label: Label) -> None:
        """Another's turn; before a backward pass, what the forward pass left is noted by module."""
        if label.phase == "backward" and self._phase != "backward":
            left: dict[Label, int] = defaultdict(int)
            for _, size, made in self._live.values():
                if made.phase == "forward":
                    left[made] += size
            for made, size in left.items():
                self.kept[made] = max(self.kept[made], size)
        if label.phase in ("data", "forward", "backward", "optimizer"):
            self._phase = label.phase
        self._reach(label.phase, self.bytes)

    def _reach(self, phase: str, size: int) -> None:
        self.peak[phase] = max(self.peak[phase], size)

    def _freed(self, key: int, reference: weakref.ref) -> None:
        self.bytes -= self._live.pop(key)[1]
