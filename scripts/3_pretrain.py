"""Spend the budget; the same command resumes an interrupted run. Same as `cram pretrain [config] [key=value ...]`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
