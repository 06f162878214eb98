"""python -m itr.search RUN_DIR --help."""

import sys

from itr.training.own_files import search

if __name__ == "__main__":
    sys.exit(search())
