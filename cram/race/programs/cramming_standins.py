"""What the checkout of cramming expects of 2024 and finds no more, or asks of the machine: stand-ins, set at run time."""

import contextlib
import os
import sys


def prepare(checkout):
    """Make ``import cramming`` work from a checkout; nothing there is changed."""
    sys.path.insert(0, checkout)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import generic
    if not hasattr(generic, "working_or_temp_dir"):     # needed to push to the hub alone
        generic.working_or_temp_dir = contextlib.nullcontext


def configuration(checkout, overrides):
    """Its configuration with overrides, as its own command line composes it."""
    import hydra

    with hydra.initialize_config_dir(config_dir=os.path.join(checkout, "cramming", "config"), version_base="1.1"):
        return hydra.compose("cfg_pretrain", overrides=overrides)
