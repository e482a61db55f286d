"""Start a program with a seed of ours where it fixes its own: seeded.py SEED SCRIPT [arguments].

Whatever seed the script sets, ours is added to it; seed 0 is the script as it is.
"""

import os
import runpy
import sys

import torch

seed, script = int(sys.argv[1]), sys.argv[2]
fixed, fixed_cuda = torch.manual_seed, torch.cuda.manual_seed
torch.manual_seed = lambda value: fixed(value + seed)
torch.cuda.manual_seed = lambda value: fixed_cuda(value + seed)
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(os.path.abspath(script))
runpy.run_path(script, run_name="__main__")
