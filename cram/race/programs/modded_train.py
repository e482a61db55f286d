"""Start modded-nanogpt's simple trainer on one card: modded_train.py JSON with script, seed, out, constants, calls.

Batch, steps and size stand as numbers in its source and are replaced in memory. It seeds nothing and saves nothing: both are
done here.
"""

import json
import sys

import constants
import torch

ask = json.loads(sys.argv[1])
sys.argv = [ask["script"]]
torch.manual_seed(ask["seed"])
found = constants.run(ask["script"], ask["constants"], ask["calls"])
torch.save(found["model"].state_dict(), ask["out"])
