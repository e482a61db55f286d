"""Write the model as stock Hugging Face classes load it. Same as `cram export runs/demo FOLDER [options]`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # works without an installation, too

from cram.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
