"""Train an image-text retrieval model: python train.py model=hrem data=coco (--help shows more)."""

from itr.training.launch import entry
from itr.training.train_job import train

if __name__ == "__main__":
    entry("train", train, metric="val/rsum")
