"""Fewer bits a weight, and what that costs. Same as `cram quantize runs/demo_gpt [scheme ...]`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["quantize", *sys.argv[1:]]))
