"""Options of ALBEF, their checks, and how it reads its data."""

from __future__ import annotations

from dataclasses import dataclass, field

from itr.errors import ConfigError
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.vit import ImageConfig
from itr.view import Facts, PixelView, TextView, View

TASKS = ("retrieval", "pretrain")


@dataclass
class ALBEFConfig:
    """Options of `ALBEF`; the defaults are those of fine-tuning on retrieval."""

    task: str = "retrieval"  # retrieval | pretrain (adds MLM; only a pair's own partner matches)
    pretrained: bool = True
    init: str | None = None  # a checkpoint to start from; read by whoever builds the model
    embed_size: int = 256
    queue_size: int = 65536
    temperature: float = 0.07  # at the start; learnt
    temperature_lr_factor: float = 1.0  # a high rate must not reach it: 0.07 is soon 0.01
    clamp_temperature: bool = True  # false: free in fine-tuning, as the authors' is
    momentum: float = 0.995
    momentum_fusion: bool = False  # also keep momentum copies that fine-tuning never uses
    momentum_eval_mode: bool = False  # true: no dropout in the momentum encoders
    distill: bool = True
    distill_words: bool = True  # false: only the contrast has soft targets (ablation)
    distill_weight: float = 0.4  # share of the momentum encoders' opinion in the targets
    distill_warmup: bool = True  # it grows from 0 during the first epoch
    hard_negatives: bool = True  # false: ITM negatives are drawn evenly (ablation)
    negative_floor: float = 1e-4  # 0: as the authors; a confident row may then have no candidate
    mask_probability: float = 0.15
    train_length: int | None = None  # ids of a training caption; None: as many as BERT takes
    eval_length: int = 30
    # Least and largest share of a training image's area in a random crop.
    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    flip: bool = True
    randaugment: bool = True
    randaugment_wraparound: bool = False  # true: the authors' 8-bit arithmetic, which wraps around
    image: ImageConfig = field(default_factory=ImageConfig)
    text: FusionTextConfig = field(default_factory=FusionTextConfig)


def check_options(config: ALBEFConfig, facts: Facts) -> None:
    """Raises ConfigError for options that contradict one another or the data (``facts``)."""
    text = config.text
    if config.task not in TASKS:
        raise ConfigError(
            f"model.task={config.task}: expected one of {', '.join(TASKS)}; leave it out and pass "
            "task=pretrain for pre-training"
        )
    if config.queue_size < 0:
        raise ConfigError(f"model.queue_size={config.queue_size}: expected 0 (no queue) or more")
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
