"""A run's folder without training: weights drawn so that nothing is zero, one or equal to its neighbour."""

import json

import torch

from cram import checkpoint
from cram.config import to_dict
from cram.model import build


@torch.no_grad()
def randomise(model, seed=0):
    """Gains around 1, biases and everything else around 0, none of them left as initialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        vector = parameter.ndim == 1
        drawn = torch.randn(parameter.shape, generator=generator) * (0.3 if vector else 0.15)
        parameter.copy_(drawn + float(vector and name.endswith("weight")))
    return model


def made_run(folder, config, tiny, **shape):
    """``folder`` with the parts of a run that evaluation reads; shape: where the schedules ended, if not at the full model."""
    (folder / "pretrain").mkdir(parents=True)
    (folder / "pretrain" / "config.json").write_text(json.dumps(to_dict(config)))
    for name, part in tiny.items():
        (folder / name).symlink_to(part)
    model = randomise(build(config.model, 300, config.objective.type != "masked"))
    ends = {"layers": model.depth, "window": model.window, "rope_base": model.rope_base} | shape
    checkpoint.save(folder / "pretrain" / "checkpoints", {"model": model.state_dict(), "vocab_size": 300, "shape": ends},
                    step=1, run_id="r", keep=1)
    return folder
