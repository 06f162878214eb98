"""Small sizes of every model, read from ``tests/models/sizes/<model>.yaml``: one file a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class ModelSizes:
    """Overrides that make one model small, and the kind of batch that it reads."""

    batch: str  # regions | pixels | pixels_two_texts
    unit: tuple[str, ...]
    run: tuple[str, ...]
    no_dropout: tuple[str, ...]
    caption_length: int = 9
    pad_id: int = 0


def _read(path: Path) -> ModelSizes:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return ModelSizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


MODEL_SIZES = {
    path.stem: _read(path) for path in sorted(Path(__file__).with_name("sizes").glob("*.yaml"))
}

# A small ALBEF on small scenes, as the command line is given it.
SMALL_ALBEF = (
    "model=albef",
    "data=scenes",
    "data.prepare.train=60",
    "data.prepare.val=20",
    "data.prepare.test=20",
    "batch_size=20",
    "model.image.size=32",
    "model.image.patch=16",
    "model.image.width=32",
    "model.image.depth=1",
    "model.text.width=32",
    "model.text.depth=2",
    "model.text.fusion_layer=1",
    "model.text.mlp_width=32",
    "tracker=none",
    "device=cpu",
)
