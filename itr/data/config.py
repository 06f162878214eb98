"""Options of a dataset: its name, its files and how they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from itr.data.captions import FORMS
from itr.options import configured, option

DECODERS = ("torchvision", "pillow")


@dataclass
@configured("data/reading/default.yaml", "data.reading")
class DataConfig:
    """Options of ``conf/data/<name>.yaml``."""

    name: str
    root: str
    layout: str = option()
    splits: dict[str, str] = option()
    protocols: list[str] = option()
    max_dev_captions: int | None = option(at_least=1)
    unique_captions: bool = option()
    images: str | None = option()
    roots: dict[str, str] | None = option()
    decoder: str = option(choices=DECODERS)
    train: str | None = option()
    val: str | None = option()
    test: str | None = option()
    caption_form: str = option(choices=FORMS)
    columns: dict[str, str] | None = option()
    second_text: str | None = option()
    shards: Any = option()
    second_key: str = option()
    held_out: int | float | str | None = option(at_least=0)
    max_broken: float = option(at_least=0, at_most=1)
    noise: float = option(at_least=0, at_most=1)
    noise_file: str | None = option()
    cache: str = option()
    prepare: Any = option()

    @property
    def table(self) -> str | None:
        """The first of the tables ``train``, ``val`` and ``test`` that is set."""
        return self.train or self.val or self.test
