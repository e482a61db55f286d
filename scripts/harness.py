"""EleutherAI's lm-evaluation-harness on a run. Same as `cram harness runs/demo_gpt --tasks blimp ...`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["harness", *sys.argv[1:]]))
