"""Pickle the shared tokenizer where autoresearch looks for its own: autoresearch_layout.py TOKENIZER.JSON OUT."""

import pickle
import sys

from autoresearch_standins import SharedEncoding

with open(sys.argv[2], "wb") as file:
    pickle.dump(SharedEncoding(sys.argv[1]), file)
