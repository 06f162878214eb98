"""What a model requires of its input data, and what it needs to know about the data.

The data pipeline reads a `View` and knows nothing else about models.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class CaptionAugment:
    """Random changes to the words of a training caption.

    A word is selected with ``probability``; all its pieces share its fate. A selected word is
    masked, replaced (each piece by a uniformly drawn id) or deleted. Source: the caption
    augmentation of VSE-infinity (Chen et al., CVPR 2021), used by HREM and USER.
    """

    probability: float = 0.20  # that a word is selected
    mask: float = 0.5  # fraction of the selected words that are masked
    random: float = 0.1  # fraction that is replaced; the rest is deleted


@dataclass(frozen=True)
class TextView:
    """How a caption becomes token ids. Lengths count all ids, including [CLS] and [SEP]."""

    cleaner: str = "none"  # a name of `CLEANERS`, such as albef, albef_question or clip
    prompt: str = ""  # prepended to the caption
    max_length: int | None = None  # truncate to this many ids; None: never
    pad_to: int | None = None  # pad to this many ids; None: to the longest caption of the batch
    min_pad: int = 0  # pad to at least this many ids
    augment: CaptionAugment | None = None
    end: bool = True  # append [SEP]; False for ALBEF
    pad_left: bool = False  # padding comes first
    strip_sep: bool = False  # the last special id becomes 0 (open_clip's CLIPA)


@dataclass(frozen=True)
class RegionView:
    """How pre-extracted region features are read."""

    drop: float = 0.0  # probability of dropping a region; the others keep their order
    min_pad: int = 0  # pad to at least this many regions


FLIPS = (True, False, "unless_sided")  # of the option model.flip


@dataclass(frozen=True)
class PixelView:
    """How an image becomes a tensor: resize or crop, flip, RandAugment, normalize."""

    size: int = 224  # height and width in pixels
    interpolation: str = "bicubic"  # bicubic | bilinear, antialiased
    resize: str = (
        "squash"  # squash | shortest (then center crop) | longest (then pad) | random_crop
    )
    resize_to: int | None = None  # squash and shortest resize to this, then crop; None: to `size`
    crop_rounds: str = "even"  # even | down: an odd number of pixels to cut, halved (torchvision's)
    fill: int = 0  # longest: value of the padding, 0 ... 255
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    flip: bool = False  # horizontally, with probability 1/2
    flip_sided: bool = True  # also where the text, or an answer to it, says left or right
    randaugment: bool = False
    crop_scale: tuple[float, float] = (0.5, 1.0)  # random_crop: fraction of the area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random_crop: width / height
    premultiply: bool = False  # resize with premultiplied alpha, then drop the alpha channel
    on_white: bool = False  # put an image with alpha on white first; else the alpha is dropped
    wrapping: bool = False  # ALBEF's own RandAugment, whose 8-bit arithmetic overflows


@dataclass(frozen=True)
class View:
    """What a model requires of any dataset; stored in its checkpoints as JSON.

    The ``*_eval`` fields apply to evaluation, their counterparts to training.
    """

    kind: Literal["regions", "pixels"]
    # wordpiece | clip-from-captions | roberta-from-captions: learned from the training captions.
    # Otherwise a hub name or a directory with the tokenizer files of a BERT, RoBERTa or CLIP.
    tokenizer: str
    whole_tokenizer: bool = False  # transformers opens `tokenizer`, and its pipeline is kept whole
    unit: Literal["caption", "image", "pair"] = "caption"  # what an epoch iterates over
    text: TextView = field(default_factory=TextView)
    text_eval: TextView = field(default_factory=TextView)
    regions: RegionView = field(default_factory=RegionView)
    regions_eval: RegionView = field(default_factory=RegionView)
    pixels: PixelView = field(default_factory=PixelView)
    pixels_eval: PixelView = field(default_factory=PixelView)
    second_text: TextView | None = None  # None: the model reads no second text
    padding_is_arithmetic: bool = False  # padding changes the results: never bucket or pack
    vocabulary_size: int = 4000  # size of a tokenizer learned from captions

    def to_dict(self) -> dict[str, Any]:
        """JSON-serializable values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> View:
        """The view of a `to_dict`."""

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
    """Properties of the data that determine a model's sizes; stored in its checkpoints as JSON."""

    vocabulary: int  # number of token ids
    region_width: int | None = None  # D of the region arrays; None for pixel models
    regions: int | None = None  # R of the region arrays; None: unknown
    guide_width: int | None = None  # G of the guide vectors; None: there are none
    mask_id: int | None = None  # id of [MASK]; None: no such token, or unknown
