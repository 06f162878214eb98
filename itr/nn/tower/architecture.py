"""What a tower is beside its weights: plain values that a checkpoint keeps.

A model reads them from the tower's own files once, when it is trained or evaluated for the first
time. Its checkpoints then need these files no more.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from itr.data.text.library_tokenizer import LibraryTokenizer, library_tokenizer
from itr.errors import CheckpointError, ConfigError
from itr.nn.tower import transformers_tower
from itr.nn.tower.open_clip_tower import read_open_clip
from itr.nn.tower.preprocessing import transformers_pixels
from itr.nn.tower.tower_names import KEY, find_tower
from itr.view import PixelView, TextView, View


@dataclass(frozen=True)
class Architecture:
    """A tower without its weights. The values are those of JSON."""

    library: str  # transformers | open_clip
    kind: str  # transformers: the model type; open_clip: the architecture's name
    config: dict[str, Any]  # as the library's own file has it
    tokenizer: str  # as `View.tokenizer`; a checkpoint holds the tokenizer itself
    whole_tokenizer: bool = True
    text: dict[str, Any] = field(default_factory=dict)  # of a `TextView`
    pixels: dict[str, Any] = field(default_factory=dict)  # of a `PixelView`
    text_config: dict[str, Any] | None = None  # open_clip: of a text tower from transformers
    has_mask: bool = True  # the text tower gets a mask; otherwise it attends to padding

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable values; `from_dict` reads them."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """The architecture of a `to_dict`. Raises CheckpointError for other values."""
        try:
            return cls(**values)
        except TypeError as error:
            raise CheckpointError(
                f"model.architecture: {error}; expected the values that a checkpoint holds. Leave "
                "it out to read them from model.tower"
            ) from error

    @property
    def has_bias(self) -> bool:
        """Whether the tower was trained with a sigmoid loss, whose bias is one of its weights."""
        if self.library == "open_clip":
            return self.config.get("init_logit_bias") is not None
        return self.kind in transformers_tower.WITH_BIAS

    def vocabulary_size(self) -> int:
        """Ids of the text tower, the most that a tokenizer learned from captions may have."""
        text = self.config.get("text_config") or self.config.get("text_cfg") or self.config
        return int(text.get("vocab_size", 0))

    def text_view(self) -> TextView:
        """How the tower reads texts."""
        return TextView(**self.text)

    def pixel_view(self) -> PixelView:
        """How the tower reads images in evaluation."""
        view = View.from_dict({**View("pixels", "").to_dict(), "pixels": self.pixels})
        return view.pixels


def read_architecture(name: str | None, kinds: Mapping[str, str], key: str = KEY) -> Architecture:
    """The architecture of the tower ``name``, from its library's own configuration.

    ``kinds`` are the allowed model types of transformers, with the names of their classes. Raises
    ConfigError, naming ``key``, for towers that are unknown, unreachable or of another kind.
    """
    return _read(name or "", tuple(sorted(kinds)), key)


@functools.lru_cache(maxsize=8)
def _read(name: str, kinds: tuple[str, ...], key: str) -> Architecture:
    found = find_tower(name, key)
    if found.library == "open_clip":
        if "clip" not in kinds:
            raise ConfigError(
                f"{key}={name}: a tower of open_clip; expected one of transformers of the kinds "
                f"{', '.join(kinds)}. Pass such a tower, or model=clip"
            )
        return Architecture(**read_open_clip(found, key, name))
    config = transformers_tower.read_config(found.source, kinds, key)
    texts = library_tokenizer(found.source, key)
    return Architecture(
        library="transformers",
        kind=config["model_type"],
        config=config,
        tokenizer=found.source,
        text=dataclasses.asdict(_text_view(config, texts)),
        pixels=dataclasses.asdict(transformers_pixels(found.source, key)),
        has_mask=texts.has_mask,
    )


def _text_view(config: Mapping[str, Any], texts: LibraryTokenizer) -> TextView:
    positions = transformers_tower.positions(config)
    length = min(positions, texts.max_length or positions)
    fixed = config["model_type"] in transformers_tower.FIXED_LENGTH
    return TextView(
        cleaner=texts.cleaner,
        max_length=length,
        pad_to=length if fixed else None,
        pad_left=texts.pad_left,
    )
