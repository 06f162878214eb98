"""``python -m itr.sweep FILE ...`` is ``itr sweep FILE ...``."""

import sys

from itr.sweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
