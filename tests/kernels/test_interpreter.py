"""Every file of tests/interpreter, in a process where Triton interprets its kernels."""

import importlib.util
import os
import subprocess
import sys

import pytest

FILES = ("test_attention_kernel.py", "test_mutations.py", "test_attention_edges.py", "test_loss_kernel.py")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(root, file):
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs the triton package (Linux)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/interpreter/{file}"]
    done = subprocess.run(command, cwd=root, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout.splitlines()[-1]


def test_no_file_is_forgotten(root):
    assert sorted(FILES) == sorted(path.name for path in (root / "tests/interpreter").glob("test_*.py"))
