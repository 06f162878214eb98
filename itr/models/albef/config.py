"""Options of ALBEF, their checks, and how it reads its data."""

from __future__ import annotations

from dataclasses import dataclass

from itr.errors import ConfigError
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.vit import ImageConfig
from itr.options import configured, option
from itr.view import Facts, PixelView, TextView, View

TASKS = ("retrieval", "pretrain")


@dataclass
@configured("model/albef.yaml", "model")
class ALBEFConfig:
    """Options of `ALBEF`; the defaults are those of fine-tuning on retrieval."""

    task: str = option(choices=TASKS)
    pretrained: bool = option()
    init: str | None = option()
    embed_size: int = option(at_least=1)
    queue_size: int = option(at_least=0)
    temperature: float = option()
    temperature_lr_factor: float = option()
    clamp_temperature: bool = option()
    momentum: float = option(at_least=0, at_most=1)
    momentum_fusion: bool = option()
    momentum_eval_mode: bool = option()
    distill: bool = option()
    distill_words: bool = option()
    distill_weight: float = option(at_least=0, at_most=1)
    distill_warmup: bool = option()
    hard_negatives: bool = option()
    negative_floor: float = option(at_least=0)
    mask_probability: float = option(at_least=0, at_most=1)
    train_length: int | None = option(at_least=1)
    eval_length: int = option(at_least=1)
    crop_scale: list[float] = option(above=0, at_most=1)
    flip: bool = option()
    randaugment: bool = option()
    randaugment_wraparound: bool = option()
    image: ImageConfig = option()
    text: FusionTextConfig = option()


def check_options(config: ALBEFConfig, facts: Facts) -> None:
    """Raises ConfigError for options that contradict one another or the data (``facts``)."""
    text = config.text
    if not 0 < text.fusion_layer < text.depth:
        raise ConfigError(
            f"model.text.fusion_layer={text.fusion_layer}: expected 1 to {text.depth - 1}, so that "
            f"BERT's {text.depth} layers (model.text.depth) divide into a text half and a fusion "
            "half"
        )
    if config.task == "pretrain" and facts.mask_id is None:
        raise ConfigError(
            f"task=pretrain: the tokenizer '{text.tokenizer or text.name}' has no [MASK] token, "
            "which masked language modeling needs; set model.text.tokenizer to one that has"
        )
    if config.pretrained and text.tokenizer == "wordpiece":
        raise ConfigError(
            "model.text.tokenizer=wordpiece: a vocabulary built from captions does not fit "
            "pretrained weights; pass model.pretrained=false, or leave model.text.tokenizer=null"
        )


def albef_view(config: ALBEFConfig) -> View:
    """The data that a model of ``config`` reads.

    An epoch visits every caption; in pre-training, every image with one of its captions at random.
    """
    text, size = config.text, config.image.size
    positions = text.max_positions
    longest = min(config.train_length or positions, positions)
    return View(
        kind="pixels",
        tokenizer=text.tokenizer or text.name,
        unit="image" if config.task == "pretrain" else "caption",
        text=TextView(cleaner="albef", end=False, max_length=longest),
        text_eval=TextView(
            cleaner="albef", end=False, max_length=min(config.eval_length, positions)
        ),
        pixels=PixelView(
            size=size,
            resize="random_crop",
            crop_scale=(config.crop_scale[0], config.crop_scale[1]),
            flip=config.flip,
            randaugment=config.randaugment,
            wrapping=config.randaugment_wraparound,
        ),
        pixels_eval=PixelView(size=size),
        vocabulary_size=text.vocabulary_size,
    )
