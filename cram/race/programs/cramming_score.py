"""Score a checkpoint of cramming with the checkout's own model."""

import json
import os

import cramming_standins
from scoring_loop import serve


def load(ask):
    cramming_standins.prepare(ask["checkout"])
    from cramming.architectures import construct_model
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    with open(os.path.join(ask["checkpoint"], "model_config.json"), encoding="utf-8") as file:
        model = construct_model(OmegaConf.create(json.load(file)), ask["vocab_size"])
    model.load_state_dict(load_file(os.path.join(ask["checkpoint"], "model.safetensors")))
    model.to(ask["device"]).eval()

    def logits(ids_RT, row_P, position_P):
        return model.decoder(model.prediction_head(model.encoder(ids_RT)[row_P, position_P]))

    return logits, sum(each.numel() for each in model.parameters())


serve(load)
