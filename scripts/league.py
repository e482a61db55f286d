"""Verify cards and rank them by budget. Same as `cram league cards`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["league", *sys.argv[1:]]))
