"""Score a checkpoint of nanoGPT with the checkout's own model.py."""

import sys

import torch

from scoring_loop import serve


def load(ask):
    sys.path.insert(0, ask["checkout"])
    from model import GPT, GPTConfig

    saved = torch.load(ask["checkpoint"], map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
    model.to(ask["device"]).eval()
    # with targets the model returns the logits of every position; which targets does not matter
    return (lambda ids_RT, row_P, position_P: model(ids_RT, ids_RT)[0][row_P, position_P],
            sum(each.numel() for each in model.parameters()))


serve(load)
