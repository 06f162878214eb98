"""Evaluate a run or an authors' checkpoint: python eval.py checkpoint=RUN_DIR split=test."""

from itr.training.eval_config import typed_model
from itr.training.eval_job import evaluate
from itr.training.launch import entry

if __name__ == "__main__":
    entry("eval", evaluate, metric="test/rsum", prepare=typed_model)
