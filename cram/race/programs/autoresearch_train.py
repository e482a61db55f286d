"""Start autoresearch's train.py: autoresearch_train.py JSON with checkout, seed, out, seconds, constants, prepare.

Its settings stand in its source ("edit these directly") and are replaced in memory. Where it would validate, the model is saved
instead: the referee scores it.
"""

import json
import os
import sys
from dataclasses import asdict

import autoresearch_standins
import constants
import torch

ask = json.loads(sys.argv[1])
autoresearch_standins.prepare(ask["checkout"])

import prepare  # noqa: E402  (the checkout's)


def save_instead(model, tokenizer, batch_size):
    plain = getattr(model, "_orig_mod", model)
    torch.save({"model": plain.state_dict(), "config": asdict(plain.config)}, ask["out"])
    return float("nan")


prepare.evaluate_bpb = save_instead
for name, value in ask["prepare"].items():
    if not hasattr(prepare, name):
        raise SystemExit(f"prepare.py has no {name}; the checkout is another version than expected")
    setattr(prepare, name, value)
fixed, fixed_cuda, seed = torch.manual_seed, torch.cuda.manual_seed, ask["seed"]
torch.manual_seed = lambda value: fixed(value + seed)
torch.cuda.manual_seed = lambda value: fixed_cuda(value + seed)
sys.argv = [os.path.join(ask["checkout"], "train.py")]
constants.run(sys.argv[0], ask["constants"])
