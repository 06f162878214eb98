"""Sizes at which a method is benchmarked: near its recipe within seconds on a CPU, and tiny.

``train``, ``evaluate`` and ``tiny`` are overrides of the published recipe; all other options are as
published. The case of a method is ``CASE`` in ``benchmarks/literal/<method>.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks.random_data import Words, image_split, pixel_batch, region_batch, region_split
from itr.batch import Batch
from itr.compose import compose
from itr.data.records import Split
from itr.models.base import RetrievalModel
from itr.models.build import build_model
from itr.training.config import TrainConfig, check_config
from itr.view import Facts

REGIONS = 36


@dataclass(frozen=True)
class Case:
    """One method at one size."""

    name: str
    recipe: tuple[str, ...]
    train: tuple[str, ...]
    evaluate: tuple[str, ...]
    no_dropout: tuple[str, ...]  # makes both implementations deterministic
    words: Words
    tiny: tuple[str, ...]
    pairs: int  # per training step
    images: int  # in the evaluation, with five captions each
    region_width: int | None = None
    image_key: str | None = None  # configuration key of the image size
    rerank_k: int | None = None
    repeats: bool = False  # two pairs of a batch share an image

    def config(self, *overrides: str) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration as the entry points compose it, typed and plain."""
        composed = compose("train", [*self.recipe, *overrides])
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        assert isinstance(values, dict)
        plain = {str(key): value for key, value in values.items()}
        return check_config(plain), plain

    def model(self, *overrides: str) -> tuple[RetrievalModel, TrainConfig]:
        """A model with random weights that depend only on its sizes."""
        config, plain = self.config(*overrides)
        regions = None if self.region_width is None else REGIONS
        torch.manual_seed(0)
        facts = Facts(self.words.vocabulary, region_width=self.region_width, regions=regions)
        return build_model(config.model, plain["loss"], facts), config

    def size(self, config: TrainConfig) -> int:
        """Image size in pixels."""
        value: Any = config.model
        for key in (self.image_key or "").split("."):
            value = value[key]
        return int(value)

    def batch(self, model: RetrievalModel, config: TrainConfig) -> Batch:
        """A training batch for ``model``."""
        table = self.words.table(2 * self.pairs)
        if self.region_width is not None:
            split = region_split(self.pairs, REGIONS, self.region_width)
            batch = region_batch(split, table, model.view, self.pairs)
        else:
            batch = pixel_batch(self.size(config), table, model.view, self.pairs)
        if self.repeats:
            assert batch.image_id is not None
            batch.image_id[1] = 0
            batch.positive_pairs += 2
        return batch

    def split(self, config: TrainConfig, folder: Path) -> Split:
        """The split of the evaluation. Image files go to ``folder``."""
        if self.region_width is not None:
            return region_split(self.images, REGIONS, self.region_width)
        return image_split(self.images, self.size(config), folder)


def sizes(key: str, **values: Any) -> tuple[str, ...]:
    """Overrides of the options below ``key``."""
    return tuple(f"{key}.{name}={value}" for name, value in values.items())


def bert(width: int, layers: int, **more: Any) -> tuple[str, ...]:
    """Overrides of a text encoder of ``width`` and ``layers``, 64 wide a head."""
    return sizes(
        "model.text",
        width=width,
        mlp_width=4 * width,
        depth=layers,
        heads=max(2, width // 64),
        **more,
    )


RANDOM_BERT = ("model.pretrained=false", "model.text.tokenizer=wordpiece")
BERT_256, BERT_TINY = bert(256, 2), bert(16, 1)
REGION_WORDS = Words(30522)
TINY_VOCABULARY = 300  # instead of BERT's in `tiny`


def shrunk(case: Case, by: int) -> Case:
    """The same model with smaller batches and retrieval sets."""
    return replace(case, pairs=max(4, case.pairs // by), images=max(25, case.images // by))


def tiny(case: Case) -> Case:
    """The same method in a size for tests."""
    words = case.words
    if words.vocabulary == REGION_WORDS.vocabulary:
        words = replace(words, vocabulary=TINY_VOCABULARY)
    return replace(
        case,
        train=case.tiny,
        evaluate=case.tiny,
        words=words,
        pairs=12,
        images=24,
        region_width=case.region_width and 24,
        rerank_k=case.rerank_k and 10,
    )
