"""Shared by all tests: GPU tests are skipped without a card, and `cram` runs inside the test process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]


class Result(NamedTuple):
    """What a command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def cram(capsys):
    """``cram("config", "demo", "seed=1") -> Result``: the real command line, in this process."""
    from cram.cli import main

    def run(*arguments) -> Result:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


def pytest_configure(config):
    """One thread a process, read when torch and numpy are loaded. The threads of OpenMP and OpenBLAS wait for each other by
    spinning: two processes with two each on two cores took up to twenty times the time for small problems. Who tests
    threads sets them; OMP_NUM_THREADS=2 in the environment is left as it is."""
    threads = os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", threads)


def pytest_collection_modifyitems(items):
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests:
        import torch

        if not torch.cuda.is_available():
            for item in gpu_tests:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA card"))
