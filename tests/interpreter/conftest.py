"""These tests run the Triton kernels in Triton's interpreter, on the CPU, in a process of their own:

    TRITON_INTERPRET=1 python -m pytest tests/interpreter

The variable must be set before triton is imported, and other tests need it unset, so in the whole suite
``tests/kernels/test_interpreter.py`` starts that process.
"""

import importlib.util
import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


def pytest_configure(config):
    """A launch patches triton.language; each function that a kernel calls does it once more, looking through hundreds of
    names that are patched already: two fifths of the time of these tests. Once is enough."""
    if not INTERPRETED:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function):
        seen = [module for module in (tl, tl.core) if any(value is module for value in function.__globals__.values())]
        return patch(function) if any(tl.core.is_builtin(module.load) for module in seen) else interpreter._LangPatchScope()
    interpreter._patch_lang = patch_once
