"""Score the model on held-out text; or a finished run on benchmarks.

Same as `cram evaluate [config] [key=value ...]` and `cram evaluate runs/demo tasks=blimp`.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
