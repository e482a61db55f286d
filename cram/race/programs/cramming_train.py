"""Start cramming's pretrain.py: cramming_train.py CHECKOUT THREADS overrides.

It refuses to train without a card and takes the number of physical cores for its threads; both are set right around its own
start-up. At the end the micro-batches that it took are told.
"""

import os
import runpy
import sys

import cramming_standins

checkout, threads, overrides = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
cramming_standins.prepare(checkout)

import cramming  # noqa: E402
import torch  # noqa: E402
from omegaconf import open_dict  # noqa: E402

start_up, load_backend, engines = cramming.utils.system_startup, cramming.load_backend, []


def start_up_anywhere(config):
    """Its check for a card lets dry runs pass."""
    wanted = config.dryrun
    with open_dict(config):
        config.dryrun = True
        try:
            return start_up(config)
        finally:
            config.dryrun = wanted
            torch.set_num_threads(threads)


def load_and_remember(*arguments, **more):
    found = load_backend(*arguments, **more)
    engines.append(found[0])
    return found


cramming.utils.system_startup, cramming.load_backend = start_up_anywhere, load_and_remember
sys.argv = [os.path.join(checkout, "pretrain.py"), *overrides]
runpy.run_path(sys.argv[0], run_name="__main__")
print(f"race: {engines[0].steps} micro-batches")
