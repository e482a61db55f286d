"""The course: eight lessons and the failure labs. Same as `cram lesson 1`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["lesson", *sys.argv[1:]]))
