"""Whose turn it is: at every moment of a training step one module works, and the watch knows which.

Forward, the functions of modules are wrapped: who is called takes over, who returns gives back, so that what a module does
between its parts is its own. Backward there are no modules, only nodes of the graph. A node's number in the sequence of
all nodes tells under whose turn it was made, so it is told apart without touching the graph: a hook before each node takes
over and changes nothing. (torch's full backward hooks put nodes of their own around every module.)

What runs forward while the backward pass is on is recomputation (``cram.recompute``).
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from typing import Any, Callable, Iterator, NamedTuple, Optional

import torch
from torch import Tensor

PHASES = ("data", "forward", "backward", "recompute", "optimizer")
HEAD, ATTENTION, VIEW, REST, TEACHER = "head + loss", "attention", "mask, positions", "rest", "teacher"


class Label(NamedTuple):
    """Whose turn it is: phase as in PHASES, the kind of module, the block it is in (None: in none)."""

    phase: str
    module: str
    layer: Optional[int] = None


LOOKING = Label("looking", "the profiler")  # time that belongs to no step


class Place(NamedTuple):
    """A function that takes a turn. phase None: forward, or recompute during a backward pass. layer None: the caller's."""

    owner: Any
    function: str
    module: str
    layer: Optional[int] = None
    phase: Optional[str] = None


class Watch:
    """Tells ``switched(label)`` of every change of turns while ``on``. ``label``: whose turn it is now."""

    def __init__(self, switched: Callable[[Label], None] = lambda label: None):
        self.switched, self.label = switched, LOOKING
        self._numbers: list[int] = []     # of the first node made in each turn of this forward pass
        self._labels: list[Label] = []

    def turn(self, label: Label) -> None:
        """From now on it is this one's turn."""
        self.label = label
        if label.phase == "forward":
            self._numbers.append(torch._C._autograd._get_sequence_nr())
            self._labels.append(label)
        self.switched(label)

    @contextlib.contextmanager
    def on(self, places: list[Place]) -> Iterator[None]:
        """Watch these functions, and every backward pass; all is as before in the end, whatever happens."""
        with contextlib.ExitStack() as stack:
            for place in places:
                stack.enter_context(replaced(place.owner, place.function, self._takes_turn(place)))
            stack.enter_context(replaced(Tensor, "backward", self._backward(Tensor.backward)))
            try:
                yield
            finally:
                self.label = LOOKING
                self._forget()

    def _takes_turn(self, place: Place) -> Callable:
        function = getattr(place.owner, place.function)

        def watched(*arguments, **options):
            outer = self.label
            if outer.module == TEACHER:  # a model like ours, but none of its modules is ours
                return function(*arguments, **options)
            phase = place.phase or ("recompute" if outer.phase in ("backward", "recompute") else "forward")
            self.turn(Label(phase, place.module, outer.layer if place.layer is None else place.layer))
            try:
                return function(*arguments, **options)
            finally:  # also when recomputation stops half-way, as soon as it has what it needs
                self.turn(outer)
        return watched

    def _backward(self, function: Callable) -> Callable:
        def backward(loss: Tensor, *arguments, **options):
            outer = self.label
            self.switched(LOOKING)
            handles = self._hooks(loss.grad_fn)
            self.turn(Label("backward", REST))
            try:
                return function(loss, *arguments, **options)
            finally:
                for handle in handles:
                    handle.remove()
                self._forget()
                self.turn(outer)
        return backward

    def _hooks(self, root) -> list:
        """A hook before each node of the graph. A parameter's node, which is older than the step, has the label of the one
        that leads to it."""
        handles, seen, waiting = [], {root}, [(root, Label("backward", REST))]
        while waiting:
            node, label = waiting.pop()
            at = bisect_right(self._numbers, node._sequence_nr()) - 1
            if node.name() != "torch::autograd::AccumulateGrad" and at >= 0:
                label = self._labels[at]._replace(phase="backward")
            handles.append(node.register_prehook(lambda gradients, label=label: self.turn(label)))
            for following, _ in node.next_functions:
                if following is not None and following not in seen:
                    seen.add(following)
                    waiting.append((following, label))
        return handles

    def _forget(self) -> None:
        self._numbers, self._labels = [], []


@contextlib.contextmanager
def replaced(owner: Any, name: str, function: Callable) -> Iterator[None]:
    """Something else in place of an attribute; of an object that had it from its class, nothing is left behind."""
    own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def places(learner, batches) -> list[Place]:
    """All functions of a step that take a turn. learner: ``cram.learner.Learner``, not compiled; batches: what makes its
    micro-batches."""
    import cram.learner
    from cram.adalomo import AdaLomo
    from cram.layers import View

    model = learner.model
    found = [Place(batches, "step", "batch", phase="data"), Place(learner, "backward", REST),
             Place(learner.loss, "forward", HEAD), Place(model, "forward", VIEW), Place(model, "hidden", "residual"),
             Place(model, "embedded", "embedding"), Place(model.embedding_norm, "forward", "embedding norm"),
             Place(model.final_norm, "forward", "final norm"), Place(View, "attend", ATTENTION)]
    for layer, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        parts = [(block, "residual"), (block.attention_norm, "norm"), (block.mlp_norm, "norm"), (attention, "qkv projection"),
                 (attention.value_embedding, "value embedding"), (attention.out, "output projection"), (mlp, "activation"),
                 (mlp.gate, "mlp up, gate"), (mlp.up, "mlp up, gate"), (mlp.down, "mlp down")]
        found += [Place(part, "forward", name, layer) for part, name in parts if part is not None]
    if learner.teacher is not None:
        found += [Place(learner.teacher, name, TEACHER) for name in ("forward", "logits")]
    found += [Place(learner, "update", REST, phase="optimizer"),
              Place(cram.learner, "finish_gradients", "gradient clip", phase="optimizer"),
              Place(learner.guard, "judge", "guard, averages", phase="optimizer"),
              Place(learner.loss_scale, "update", "guard, averages", phase="optimizer")]
    if learner.ema is not None:
        found.append(Place(learner.ema, "update", "guard, averages", phase="optimizer"))
    for optimizer in learner.optimizers.members:  # AdaLomo may work within the backward pass
        name = "_update" if isinstance(optimizer, AdaLomo) else "step"
        found.append(Place(optimizer, name, type(optimizer).__name__, phase="optimizer"))
    return found
