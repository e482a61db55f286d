"""cram: pretrain a language model from raw text within one strict compute budget."""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

__version__ = "0.1.0"


class _SourceTreeKernels(importlib.abc.MetaPathFinder):
    """Find ``cram._kernels`` in the ``kernels/`` folder of a source checkout.

    Hugging Face publishes a package whose import name is ``kernels``, so ours never uses that name: a wheel
    holds it as ``cram/_kernels``, and in a source tree this finder gives the folder the same name. Modules,
    pickles and tracebacks therefore read ``cram._kernels...`` everywhere, whatever the working directory.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def find_spec(self, fullname, path=None, target=None):
        if fullname != f"{__name__}._kernels":
            return None
        return importlib.util.spec_from_file_location(
            fullname, self.folder / "__init__.py", submodule_search_locations=[str(self.folder)])


_package = Path(__file__).resolve().parent
if not (_package / "_kernels").is_dir():
    sys.meta_path.append(_SourceTreeKernels(_package.parent / "kernels"))
