"""Evaluate a run or an authors' checkpoint: python eval.py checkpoint=RUN_DIR split=test."""

import sys

from itr.jobs.entry import evaluate

if __name__ == "__main__":
    sys.exit(evaluate())
