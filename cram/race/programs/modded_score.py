"""Score what modded_train.py saved, with the model's own definition. It returns a loss; its logits are caught on the way."""

import types

import constants
import torch
import torch.nn.functional as F
from scoring_loop import serve


def load(ask):
    catching = types.SimpleNamespace(**vars(F))
    catching.cross_entropy = lambda logits_NV, *_, **__: logits_NV
    found = constants.definitions(ask["script"])
    found["F"] = catching
    model = found["GPT"](**ask["shape"])
    model.load_state_dict(torch.load(ask["checkpoint"], map_location="cpu", weights_only=True))
    model.to(ask["device"]).eval()
    return (lambda ids_RT, row_P, position_P: model(ids_RT, ids_RT).view(*ids_RT.shape, -1)[row_P, position_P],
            sum(each.numel() for each in model.parameters()))


serve(load)
