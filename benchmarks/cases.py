"""Benchmark sizes of every method: reduced to seconds on a CPU, and tiny for tests.

``train`` and ``evaluate`` are overrides of the published recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from benchmarks.random_data import Words, image_split, pixel_batch, region_batch, region_split
from itr.batch import Batch
from itr.data.records import Split
from itr.models.base import RetrievalModel
from itr.models.build import build_model
from itr.training.config import TrainConfig, check_config
from itr.view import Facts

CONF = Path(__file__).resolve().parents[1] / "conf"
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
    pairs: int  # per training step
    images: int  # in the evaluation, with five captions each
    region_width: int | None = None
    image_key: str | None = None  # configuration key of the image size
    rerank_k: int | None = None
    repeats: bool = False  # two pairs of a batch share an image

    def config(self, *overrides: str) -> tuple[TrainConfig, dict[str, Any]]:
        """The configuration as the entry points compose it, typed and plain."""
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            composed = hydra.compose("train", overrides=[*self.recipe, *overrides])
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


def _sizes(key: str, **values: Any) -> tuple[str, ...]:
    return tuple(f"{key}.{name}={value}" for name, value in values.items())


def _bert(width: int, layers: int, **more: Any) -> tuple[str, ...]:
    return _sizes(
        "model.text",
        width=width,
        mlp_width=4 * width,
        depth=layers,
        heads=max(2, width // 64),
        **more,
    )


RANDOM = ("model.pretrained=false", "model.text.tokenizer=wordpiece")
BERT = _bert(256, 2)
REGION_WORDS = Words(30522)
HREM = Case(
    name="hrem",
    recipe=("model=hrem", "data=f30k", *RANDOM, "model.graph.warmup=0"),
    train=BERT,
    evaluate=BERT,
    no_dropout=("model.dropout=0", "model.text.dropout=0"),
    words=REGION_WORDS,
    pairs=128,
    images=200,
    region_width=2048,
    repeats=True,
)
USER = replace(
    HREM,
    name="user",
    recipe=("model=user", "data=f30k", *RANDOM),
    no_dropout=("model.enhance_dropout=0", "model.text.dropout=0"),
    pairs=64,
    repeats=False,
)
VSE = replace(
    USER,
    name="vse",
    recipe=("model=vse", "data=f30k", *RANDOM),
    no_dropout=("model.text.dropout=0",),
)
ALIP_SIZES = (
    "model.embed_size=256",
    *_sizes("model.image", depth=4, width=256),
    *_sizes("model.text", depth=4, width=256, heads=4),
)
ALIP = Case(
    name="alip",
    recipe=("model=alip", "data=yfcc"),
    train=ALIP_SIZES,
    evaluate=ALIP_SIZES,
    no_dropout=(),
    words=Words(49408, shortest=8, longest=32, first=49406, last=49407),
    pairs=64,
    images=200,
    image_key="image.size",
)
ALBEF = Case(
    name="albef",
    recipe=("model=albef", "data=f30k", *RANDOM),
    train=(
        *_sizes("model.image", size=224, width=192, depth=4, heads=3),
        *_bert(192, 6, fusion_layer=3),
    ),
    evaluate=(
        *_sizes("model.image", size=96, patch=8, width=64, depth=4, heads=2),
        *_bert(64, 4, fusion_layer=2),
        "model.embed_size=64",
        "model.queue_size=256",
    ),
    no_dropout=("model.text.dropout=0",),
    words=Words(30522, shortest=8, longest=24, first=101),
    pairs=16,
    images=100,
    image_key="image.size",
    rerank_k=16,
    repeats=True,
)
MULTISEA = Case(
    name="multisea",
    recipe=(
        "model=multisea",
        "data=f30k",
        "model.pretrained=false",
        "model.text.tokenizer=roberta-from-captions",
    ),
    train=(
        "model.embed_size=128",
        "model.aformer.heads=4",
        *_sizes("model.image", width=128, depth=5, head_width=32),
        *_bert(128, 2),
    ),
    evaluate=(
        "model.embed_size=64",
        "model.aformer.heads=4",
        *_sizes("model.image", size=64, patch=8, width=64, depth=3, head_width=32),
        "model.image.trained_depth=2",
        *_bert(64, 2),
    ),
    no_dropout=(
        "model.text.dropout=0",
        "model.aformer.dropout=0",
        "model.aformer.attention_dropout=0",
    ),
    words=Words(4000, shortest=9, longest=32, pad=1, first=0, last=2),
    pairs=20,
    images=60,
    image_key="image.size",
    rerank_k=16,
)
CASES = {case.name: case for case in (HREM, USER, VSE, ALIP, ALBEF, MULTISEA)}


def shrunk(case: Case, by: int) -> Case:
    """The same model with smaller batches and retrieval sets."""
    return replace(case, pairs=max(4, case.pairs // by), images=max(25, case.images // by))


def tiny(case: Case) -> Case:
    """The same method in a size for tests."""
    small = _bert(16, 1)
    vit = _sizes("model.image", width=24, depth=2, heads=2, size=32, patch=8)
    sizes = {
        "hrem": (*small, "model.embed_size=32", "model.heads=2", "model.graph.topk=4"),
        "user": (*small, "model.embed_size=32", "model.queue_size=48"),
        "vse": (*small, "model.embed_size=32"),
        "alip": (
            "model.image.size=32",
            "model.embed_size=16",
            *_sizes("model.image", depth=1, width=16, patch=8, head_width=8),
            *_sizes("model.text", depth=1, width=16, heads=2),
        ),
        "albef": (
            *vit,
            *_bert(16, 4, fusion_layer=2),
            "model.embed_size=16",
            "model.queue_size=48",
        ),
        "multisea": (
            "model.embed_size=16",
            "model.queue_size=30",
            *_sizes("model.aformer", heads=2, depth=2, mlp_ratio=2),
            *_sizes("model.image", width=16, depth=2, head_width=8, size=32, patch=8),
            "model.image.trained_depth=1",
            *small,
        ),
    }[case.name]
    words = case.words
    if case.name in ("hrem", "user", "vse", "albef"):
        words = replace(words, vocabulary=300)
    return replace(
        case,
        train=sizes,
        evaluate=sizes,
        words=words,
        pairs=12,
        images=24,
        region_width=case.region_width and 24,
        rerank_k=case.rerank_k and 10,
    )
