"""Options of a dataset: its name, its files and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DECODERS = ("torchvision", "pillow")


@dataclass
class DataConfig:
    """Options of ``conf/data/<name>.yaml``."""

    name: str
    root: str
    layout: str = "auto"  # how the files are laid out; auto: found by looking
    splits: dict[str, str] = field(  # train, val, test -> names on disk; a+b: both
        default_factory=lambda: {"train": "train", "val": "dev", "test": "test"}
    )
    protocols: list[str] = field(default_factory=list)  # how the test split is evaluated
    max_dev_captions: int | None = None  # authors' habit: a split `dev` is cut to 5000; None: all
    unique_captions: bool = False  # authors' habit: a caption that an image has twice counts once
    images: str | None = None  # folder of the pictures; None: found beside the annotations
    decoder: str = "torchvision"  # of pictures; pillow: the authors' arithmetic, slower
    train: str | None = None  # a table of pairs: .csv, .tsv, .jsonl or .parquet
    val: str | None = None  # None: held_out images of the training table
    test: str | None = None
    columns: dict[str, str] = field(default_factory=dict)  # image, caption, ... -> a table's names
    second_text: str | None = None  # other_caption, or a file image id, name or key -> caption;
    # None: the synthetic captions that shards and tables hold
    shards: str | None = None  # folder of .tar files, or DIR/{00000..01505}.tar; None: looked for
    second_key: str = "synthetic_caption"  # of the .json members, or a table's column
    held_out: float = 0  # where there is no val and test: samples of each (below 1: a share)
    max_broken: float = 0.01  # share of broken pictures or samples at which a run stops
    noise: float = 0.0  # share of the training pairs that are mismatched on purpose
    noise_file: str | None = None  # .npy: the image of each caption; read, or written
    cache: str = ".cache/itr"  # where token ids are kept
    prepare: Any = None  # node of what makes the data set on first use
