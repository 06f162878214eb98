"""Run a sweep file here: itr sweep sweeps/hrem_relations.yaml jobs=2 [key=value ...]."""

import sys

from itr.sweep.cli import main

if __name__ == "__main__":
    sys.exit(main())
