"""Train an image-text retrieval model: python train.py model=hrem data=coco (--help shows more)."""

import sys

from itr.jobs.entry import train

if __name__ == "__main__":
    sys.exit(train())
