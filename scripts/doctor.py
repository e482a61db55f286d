"""Whether this machine is ready, and how long each preset takes on it. Same as `cram doctor`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
