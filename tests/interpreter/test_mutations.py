"""The tests can fail: each error planted in a copy of the kernels is caught by a comparison that the right kernels pass."""

import importlib.util
import shutil
import sys

import pytest
import torch

from tests.kernels.attention_cases import BLOCK, Case, excess

CASE = Case((19, 1, 26), heads=(4, 2), causal=True, window=20, softcap=3.0, seed=3)
RISING = Case((5 * BLOCK,), heads=(1, 1), norm=False, rope=False)

# name: (file, what stands there, what is planted, case that catches it)
MUTATIONS = {
    "the mask ends one key late": ("attention_triton.py", "(key_N[None, :] < last_M[:, None])",
                                   "(key_N[None, :] <= last_M[:, None])", CASE),
    "the mask begins one key late": ("attention_triton.py", "(key_N[None, :] >= first_M[:, None])",
                                     "(key_N[None, :] > first_M[:, None])", CASE),
    "whole blocks begin too early": ("attention_tiles.py", "tl.max(first_B, 0) - low, BLOCK) * BLOCK",
                                     "tl.min(first_B, 0) - low, BLOCK) * BLOCK", CASE),
    "the output is not rescaled": ("attention_triton.py", "acc_MK * alpha_M[:, None]", "acc_MK", RISING),
    "the sum is not rescaled": ("attention_triton.py", "l_M * alpha_M + ", "l_M + ", RISING),
    "delta is left out of dQ": ("attention_triton.py", "(dp_MN - delta_M[:, None])", "dp_MN", CASE),
    "half of the gains' gradients is dropped": ("attention_tiles.py", "tl.store(dgain + dim_E, tl.sum(dlow * low, 0)",
                                                  "tl.store(dgain + dim_E, 0.0 * tl.sum(dlow * low, 0)", CASE),
    "the norm's gradient forgets its mean": ("attention_tiles.py", "r * (dlow - low * mean)", "r * dlow", CASE),
    "the gradient is rotated forward": ("attention_tiles.py", "dlow * c + dhigh * s, dhigh * c - dlow * s",
                                        "dlow * c - dhigh * s, dhigh * c + dlow * s", CASE),
    "the rotation turns the wrong way in one half": ("attention_tiles.py", "high * c + low * s", "high * c - low * s", CASE),
    "one query head of the group is forgotten": ("attention_triton.py", "range(group * GROUP, group * GROUP + GROUP)",
                                                 "range(group * GROUP, group * GROUP + 1)", CASE),
    "the softcap has no derivative in dK": ("attention_triton.py", "ds_NM *= 1.0 - s_NM * s_NM", "ds_NM *= 1.0", CASE),
    "keys take the wrong head": ("attention_triton.py", "keys = (row_at((k, k_head), head // GROUP)",
                                  "keys = (row_at((k, k_head), head % 2)", CASE),
}


def worst(launch, case) -> float:
    """The worst ratio of error to allowance over the output and all gradients."""
    problem = case.problem()
    if case is RISING:
        problem.k = problem.k * torch.linspace(0.1, 6.0, case.n)[:, None, None]
    tensors = (problem.position, problem.cos, problem.sin, problem.q_gain, problem.k_gain)
    small = launch.Launch(BLOCK, BLOCK, 4, 1)
    o, lse = launch.forward(problem.q, problem.k, problem.v, problem.sees, *tensors, causal=case.causal, launch=small,
                            **problem.numbers)
    gradients = launch.backward(problem.do, problem.q, problem.k, problem.v, o, lse, problem.sees, problem.seen_by, *tensors,
                                causal=case.causal, dq_launch=small, dkv_launch=small, **problem.numbers)
    return max(excess([o, *gradients], problem, case.dtype))


def load(folder, name):
    """The launches of a copy of the kernels, as a package of its own."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.launch")


@pytest.mark.parametrize("case", [CASE, RISING], ids=["case", "rising"])
def test_the_right_kernels_pass(root, tmp_path, case):
    assert worst(load(shutil.copytree(root / "kernels", tmp_path / "kernels"), "right_kernels"), case) <= 1.0


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_error_is_caught(root, tmp_path, name):
    file, right, wrong, case = MUTATIONS[name]
    folder = shutil.copytree(root / "kernels", tmp_path / "kernels")
    source = (folder / file).read_text()
    assert right in source, "the planted error has no place any more"
    (folder / file).write_text(source.replace(right, wrong))
    try:
        ratio = worst(load(folder, f"mutated_{list(MUTATIONS).index(name)}"), case)
    except AssertionError:  # not finite
        return
    assert ratio > 1.5, f"not caught: worst error {ratio:.2f} of the allowance"
