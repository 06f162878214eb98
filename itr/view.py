"""How a model wants its data. The data side interprets these and knows nothing else of models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class CaptionAugment:
    """Per word (all pieces share the decision): touched with ``probability``; a touched word is
    masked with share ``mask``, replaced piece by piece by uniform ids with share ``random``, and
    deleted otherwise. Source: VSE-infinity's caption augmentation, as HREM and USER use it."""

    probability: float = 0.20
    mask: float = 0.5
    random: float = 0.1


@dataclass(frozen=True)
class TextView:
    """How a caption becomes token ids. Lengths count every id, [CLS] and [SEP] included."""

    cleaner: str = "none"  # none | albef | clip
    prompt: str = ""
    max_length: int | None = None  # cut to this many ids; None: no cut
    pad_to: int | None = None  # pad every batch to this many ids; None: its longest caption
    min_pad: int = 0  # pad to at least this many ids
    augment: CaptionAugment | None = None
    end: bool = True  # False: no [SEP] after the last piece (ALBEF)


@dataclass(frozen=True)
class RegionView:
    """How pre-extracted regions are read."""

    drop: float = 0.0  # probability with which a region is left out (the order of the others stays)
    min_pad: int = 0  # pad to at least this many rows


@dataclass(frozen=True)
class PixelView:
    """How a picture becomes a tensor: resize (or crop), flip, RandAugment, normalise."""

    size: int = 224
    interpolation: str = "bicubic"  # bicubic | bilinear, both antialiased
    resize: str = "squash"  # squash | shortest (then centre crop) | random_crop
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    flip: bool = False
    randaugment: bool = False
    crop_scale: tuple[float, float] = (0.5, 1.0)  # of random_crop: share of the area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # of random_crop: width / height
    premultiply: bool = False  # resize with the alpha channel, premultiplied, then drop it
    wrapping: bool = False  # the authors' RandAugment, whose 8-bit arithmetic wraps around


@dataclass(frozen=True)
class View:
    """What one model asks of any data set; written into checkpoints as JSON."""

    kind: Literal["regions", "pixels"]
    # Built from the training captions: wordpiece | clip-from-captions | roberta-from-captions; or
    # the name or directory of a BERT, RoBERTa or CLIP, told apart by its files.
    tokenizer: str
    unit: Literal["caption", "image", "pair"] = "caption"  # what one epoch runs over
    text: TextView = field(default_factory=TextView)
    text_eval: TextView = field(default_factory=TextView)
    regions: RegionView = field(default_factory=RegionView)
    regions_eval: RegionView = field(default_factory=RegionView)
    pixels: PixelView = field(default_factory=PixelView)
    pixels_eval: PixelView = field(default_factory=PixelView)
    second_text: TextView | None = None
    padding_is_arithmetic: bool = False  # padding changes the numbers: never bucket or pack
    vocabulary_size: int = 4000  # of a tokenizer built from captions

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> View:
        """The view that `to_dict` wrote."""

        def text(value: dict[str, Any] | None) -> TextView | None:
            if value is None:
                return None
            augment = value.get("augment")
            return TextView(**{**value, "augment": augment and CaptionAugment(**augment)})

        def pixels(value: dict[str, Any]) -> PixelView:
            lists = {key: tuple(v) for key, v in value.items() if isinstance(v, list | tuple)}
            return PixelView(**{**value, **lists})

        parts: dict[str, Any] = {
            **{key: text(values[key]) for key in ("text", "text_eval", "second_text")},
            **{key: RegionView(**values[key]) for key in ("regions", "regions_eval")},
            **{key: pixels(values[key]) for key in ("pixels", "pixels_eval")},
        }
        return cls(**{**values, **parts})


@dataclass(frozen=True)
class Facts:
    """What a model must know of the data to be built; written into checkpoints as JSON."""

    vocabulary: int  # number of token ids
    region_width: int | None = None  # D of the region arrays; None for pixel models
    regions: int | None = None  # R of the region arrays; None: not known
    guide_width: int | None = None  # G of the vectors beside the regions; None: there are none
    mask_id: int | None = None  # id of [MASK]; None: the tokenizer has none, or it is not known
