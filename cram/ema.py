"""An exponential moving average of the weights (Polyak & Juditsky 1992; Tarvainen & Valpola 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cram.sharded import local


class EMA:
    """average <- d x average + (1 - d) x weight, float32, each parameter once however many names it has; d is ``decay``,
    at first less: min(decay, n / (9 + n)) in update n, so that a short run does not keep the weights it began with.

    Starts at the model's weights. Sharded parameters have sharded averages. A skipped step leaves the weights as
    they were; ``update`` after it is harmless and waits for nothing.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.averages = {name: parameter.detach().clone().float() for name, parameter in model.named_parameters()}
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        self.names = {name: first[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """After every step. model: the one of the constructor, or one whose parameters have the same names."""
        weights, self.updates = dict(model.named_parameters()), self.updates + 1
        decay = min(self.decay, self.updates / (9 + self.updates))
        torch._foreach_lerp_([local(average) for average in self.averages.values()],
                             [local(weights[name]).float() for name in self.averages], 1 - decay)

    @torch.no_grad()
    def copy(self, model: nn.Module, pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> None:
        """The average of each pair's second parameter becomes that of its first, as when layers are stacked."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for source, target in pairs:
            local(self.averages[names[id(target)]]).copy_(local(self.averages[names[id(source)]]))

    def weights(self) -> dict[str, Tensor]:
        """The averages under every name that a parameter has in the model's ``state_dict``."""
        return {name: self.averages[first] for name, first in self.names.items()}

    def state_dict(self) -> dict:
        """``weights``, and how many updates have made them."""
        return {"weights": self.weights(), "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Raises KeyError when a parameter has no average in ``state``."""
        self.updates = state["updates"]
        for name, average in self.averages.items():
            average.copy_(state["weights"][name])
