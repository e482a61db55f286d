"""These tests run the Triton kernels in Triton's interpreter, on the CPU, in a process of their own:

    TRITON_INTERPRET=1 python -m pytest tests/interpreter

The variable must be set before triton is imported, and other tests need it unset, so in the whole suite
``tests/kernels/test_interpreter.py`` starts that process.
"""

import importlib.util
import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") else ["test_*.py"]
