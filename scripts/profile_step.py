"""Where the time of a step goes, module by module. Same as `cram profile demo [key=value ...]`.

Not profile.py: that is a module of Python's, which would be hidden from every script in this folder.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["profile", *sys.argv[1:]]))
