"""`python -m cram ...` is the `cram` command."""

import sys

from cram.cli import main

sys.exit(main())
