"""``python -m itr`` is the console command ``itr``."""

import sys

from itr.cli import main

if __name__ == "__main__":
    sys.exit(main())
