"""Score what autoresearch_train.py saved, with the model's own definition and torch's attention."""

import os
import types

import autoresearch_standins
import constants
import torch
from scoring_loop import serve


def load(ask):
    autoresearch_standins.prepare(ask["checkout"], sdpa=True)
    attention = types.SimpleNamespace(flash_attn_func=autoresearch_standins.attend)
    found = constants.definitions(os.path.join(ask["checkout"], "train.py"), fa3=attention)
    saved = torch.load(ask["checkpoint"], map_location="cpu", weights_only=True)
    model = found["GPT"](found["GPTConfig"](**saved["config"]))
    model.init_weights()
    model.load_state_dict(saved["model"])
    model.to(ask["device"]).eval()

    def logits(ids_RT, row_P, position_P):
        with torch.autocast(ask["device"], torch.bfloat16):
            return model(ids_RT)[row_P, position_P]

    return logits, sum(each.numel() for each in model.parameters())


serve(load)
