"""python -m itr.embed RUN_DIR --help."""

import sys

from itr.training.own_files import embed

if __name__ == "__main__":
    sys.exit(embed())
