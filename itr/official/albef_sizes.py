"""What the authors' weights of ALBEF say about the model: its task and its sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from itr.errors import CheckpointError
from itr.models.albef.config import ALBEFConfig
from itr.nn.bert.fusion import FusionTextConfig
from itr.nn.vit import ImageConfig
from itr.official.albef_names import PAIRED
from itr.view import Facts

HEAD_WIDTH = 64  # of every released model
BERT_MASK = 103  # [MASK] of bert-base-uncased, which the files do not name
TEXT_HEADS = ("text.heads", "--heads")
IMAGE_HEADS = ("image.heads", "--image-heads")
CLASSES = {3: "entailment", 2: "nlvr2"}  # rows of the head that classifies -> task
SHORT_TEXTS = ("pretrain", "vqa", "assignment")  # tasks whose training texts the authors cut
SHORT = 25


def task_of(theirs: Mapping[str, Tensor]) -> str | None:
    """The task of a model of ALBEF with these weights; None: it is none.

    Retrieval and grounding have the same model; it is called retrieval.
    """
    crossed = {name for name in theirs if name.startswith("text_encoder.") and "cross" in name}
    if "visual_encoder.pos_embed" not in theirs or not crossed:
        return None
    if any(".layer.0.crossattention." in name for name in crossed):
        return None  # BLIP looks at the image in every layer
    if any(name.startswith("text_decoder.") for name in theirs):
        return "vqa"
    if "ta_head.weight" in theirs:
        return "assignment"
    if "cls_head.2.weight" in theirs:
        return CLASSES.get(len(theirs["cls_head.2.weight"]))
    if not {"itm_head.weight", "vision_proj.weight"} <= theirs.keys():
        return None
    pretrains = any(name.startswith("text_encoder.bert.") for name in theirs)
    return "pretrain" if pretrains else "retrieval"


def architecture(
    path: Path, theirs: Mapping[str, Tensor], options: Mapping[str, Any], extra: dict[str, Any]
) -> tuple[ALBEFConfig, Facts]:
    """Configuration and facts of the model with weights ``theirs``.

    ``options`` are the authors', ``extra`` what weights do not say (see `read` of the importer).
    Raises CheckpointError if the sizes cannot be told.
    """
    task = str(task_of(theirs))
    try:
        image = _image(path, theirs, extra.pop("image_heads", None))
        text, vocabulary = _text(path, theirs, task, extra)
        sizes: dict[str, int] = {}
        if "vision_proj.weight" in theirs:
            sizes["embed_size"] = len(theirs["vision_proj.weight"])
        if "image_queue" in theirs:
            sizes["queue_size"] = theirs["image_queue"].shape[1]
        if task == "vqa":
            sizes["answer_depth"] = _count(theirs, "text_decoder.bert.encoder.layer.")
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: cannot determine the model's sizes: weight {error} is missing or has an "
            "unexpected shape"
        ) from error
    config = replace(
        _trained_as(theirs, options, task, text),
        task=task,
        pretrained=False,
        image=image,
        text=text,
        **sizes,  # type: ignore[arg-type]
    )
    return config, Facts(vocabulary=vocabulary, mask_id=BERT_MASK)


def _trained_as(
    theirs: Mapping[str, Tensor], options: Mapping[str, Any], task: str, text: FusionTextConfig
) -> ALBEFConfig:
    """The defaults with what the authors' options and the copies say."""
    base, fusion = ALBEFConfig(), f".encoder.layer.{text.fusion_layer}."
    copies = any("_m." in name for name in theirs)

    def option(name: str, default: Any) -> Any:
        return type(default)(options.get(name, default))

    return replace(
        base,
        momentum=option("momentum", base.momentum),
        momentum_fusion=any(k.startswith("text_encoder_m.") and fusion in k for k in theirs),
        distill=copies or option("distill", base.distill),
        distill_weight=option("alpha", base.distill_weight),
        distill_warmup=option("warm_up", base.distill_warmup),
        mask_probability=option("mlm_probability", base.mask_probability),
        train_length=SHORT if task in SHORT_TEXTS else None,
        crop_scale=[0.2, 1.0] if task in ("pretrain", "assignment") else base.crop_scale,
    )


def _image(path: Path, theirs: Mapping[str, Tensor], heads: int | None) -> ImageConfig:
    _, tokens, width = theirs["visual_encoder.pos_embed"].shape
    patch = theirs["visual_encoder.patch_embed.proj.weight"].shape[-1]
    hidden = len(theirs["visual_encoder.blocks.0.mlp.fc1.weight"])
    return ImageConfig(
        size=math.isqrt(tokens - 1) * patch,
        patch=patch,
        width=width,
        depth=_count(theirs, "visual_encoder.blocks."),
        heads=heads or _heads(path, width, "vision transformer", *IMAGE_HEADS),
        mlp_ratio=hidden / width,
    )


def _text(
    path: Path, theirs: Mapping[str, Tensor], task: str, extra: Mapping[str, Any]
) -> tuple[FusionTextConfig, int]:
    prefix = "text_encoder." + ("bert." if task == "pretrain" else "")
    embeddings, layer = f"{prefix}embeddings.", f"{prefix}encoder.layer."
    positions, width = theirs[f"{embeddings}position_embeddings.weight"].shape
    vocabulary = len(theirs[f"{embeddings}word_embeddings.weight"])
    start = min(_numbers([k for k in theirs if ".crossattention." in k], layer))
    fused = _count(theirs, layer) - start
    text = FusionTextConfig(
        width=width,
        depth=start + (fused // 2 if task in PAIRED else fused),
        mlp_width=len(theirs[f"{layer}0.intermediate.dense.weight"]),
        max_positions=positions,
        token_types=len(theirs[f"{embeddings}token_type_embeddings.weight"]),
        fusion_layer=start,
    )
    heads = extra.get("heads") or _heads(path, width, "BERT", *TEXT_HEADS)
    return replace(text, **{**extra, "heads": heads}), vocabulary


def _heads(path: Path, width: int, what: str, key: str, flag: str) -> int:
    if width % HEAD_WIDTH:
        raise CheckpointError(
            f"{path}: its {what} is {width} wide, not a multiple of the authors' {HEAD_WIDTH} per "
            "head, and the weights do not determine the number of heads; set "
            f"model.{key} (itr official: {flag})"
        )
    return width // HEAD_WIDTH


def _numbers(names: Iterable[str], prefix: str) -> set[int]:
    return {int(k[len(prefix) :].split(".")[0]) for k in names if k.startswith(prefix)}


def _count(names: Iterable[str], prefix: str) -> int:
    return 1 + max(_numbers(names, prefix))
