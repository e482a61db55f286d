"""Race our recipes against other trainers. Same as `cram race RACE [options]`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["race", *sys.argv[1:]]))
