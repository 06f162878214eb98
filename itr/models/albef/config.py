"""Options of ALBEF, their checks, and how it reads its data."""

from __future__ import annotations

from dataclasses import dataclass

from itr.errors import ConfigError
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.lora import LoRAConfig
from itr.nn.momentum import TEACHERS
from itr.nn.vit import ImageConfig
from itr.options import configured, option
from itr.view import FLIPS, Facts, PixelView, TextView, View

TASKS = ("retrieval", "pretrain", "vqa", "entailment", "assignment", "nlvr2", "grounding")
RANKED_LENGTH = 30  # ids of a caption that is ranked, where model.eval_length does not say
QUESTION_CLEANERS = ("albef_question", "albef_question_test")  # in training, in evaluation


@dataclass
@configured("model/albef.yaml", "model")
class ALBEFConfig:
    """Options of `ALBEF`; the defaults are those of fine-tuning on retrieval."""

    task: str = option(choices=TASKS)
    pretrained: bool = option()
    init: str | None = option()
    lora: LoRAConfig = option()
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
    answer_depth: int = option(at_least=1)
    teacher_from: str = option(choices=TEACHERS)
    train_length: int | None = option(at_least=1)
    eval_length: int | None = option(at_least=1)
    crop_scale: list[float] = option(above=0, at_most=1)
    flip: bool | str = option(choices=FLIPS)
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

    An epoch visits every caption (question, statement, expression); in pre-training, every image
    with one of its captions at random.
    """
    text, size, task = config.text, config.image.size, config.task
    ranked = task in ("retrieval", "pretrain", "assignment")
    cleaner, cleaner_eval = QUESTION_CLEANERS if task == "vqa" else ("albef", "albef")
    return View(
        kind="pixels",
        tokenizer=text.tokenizer or text.name,
        unit="image" if task in ("pretrain", "assignment") else "caption",
        text=_text_view(config, cleaner, config.train_length),
        text_eval=_text_view(
            config, cleaner_eval, config.eval_length or (RANKED_LENGTH if ranked else None)
        ),
        pixels=PixelView(
            size=size,
            resize="squash" if task == "grounding" else "random_crop",
            crop_scale=(config.crop_scale[0], config.crop_scale[1]),
            flip=bool(config.flip),
            flip_sided=config.flip is True,
            randaugment=config.randaugment,
            wrapping=config.randaugment_wraparound,
        ),
        pixels_eval=PixelView(size=size),
        vocabulary_size=text.vocabulary_size,
    )


def _text_view(config: ALBEFConfig, cleaner: str, length: int | None) -> TextView:
    """Texts of at most ``length`` ids, or as many as BERT has positions."""
    positions = config.text.max_positions
    return TextView(cleaner=cleaner, end=False, max_length=min(length or positions, positions))
