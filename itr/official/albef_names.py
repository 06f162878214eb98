"""The authors' names of ALBEF's weights, for every task.

Some tensors stand in their files twice, under two names: tied word tables, and the keys and values
of paired fusion layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from itr.models.albef.config import ALBEFConfig
from itr.nn.bert.halves import LAYER_NAMES
from itr.official.name_table import NameTable

SIDES = (("", ""), ("_m", "twin."))  # endings of the authors' modules, and ours
PAIRED = ("assignment", "nlvr2")
HEADS = {  # task -> (authors' head, ours)
    "entailment": ("cls_head{}.", "head."),
    "nlvr2": ("cls_head{}.", "head."),
    "assignment": ("ta_head.", "assignment_head."),
}
MATCHING = ("retrieval", "pretrain", "grounding")
HEAD_PARTS = {
    "transform.dense.": "dense.",
    "transform.LayerNorm.": "norm.",
    "bias": "bias",
}
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
SHARED = ("crossattention.self.key.", "crossattention.self.value.")


def text_prefix(config: ALBEFConfig, side: str = "") -> str:
    """What the names of the text encoder begin with; ``side`` is "_m" for its momentum copy."""
    return f"text_encoder{side}." + ("bert." if config.task == "pretrain" else "")


def fusion_layers(config: ALBEFConfig) -> range:
    """The numbers of the layers that see images."""
    start, layers = config.text.fusion_layer, config.text.depth - config.text.fusion_layer
    return range(start, start + layers * (2 if config.task in PAIRED else 1))


def table_of(config: ALBEFConfig) -> NameTable:
    """Authors' names <-> ours, except queues, their pointer and tensors with two names."""
    pairs: list[tuple[str, str]] = []
    for side, owner in SIDES:
        pairs += [(f"visual_encoder{side}.", f"{owner}vision.")]
        pairs += _text(config, text_prefix(config, side), owner)
        if config.task == "pretrain":
            pairs += _word_head(f"text_encoder{side}.", f"{owner}words.")
        if config.task in (*MATCHING, "assignment"):
            pairs += [
                (f"{name}{side}.", f"{owner}{name}.") for name in ("vision_proj", "text_proj")
            ]
        if config.task == "vqa":
            pairs += _decoder(config, f"text_decoder{side}.", f"{owner}decoder.")
        elif config.task in HEADS:
            theirs, ours = HEADS[config.task]
            pairs.append((theirs.format(side), f"{owner}{ours}"))
    if config.task in MATCHING:
        pairs.append(("itm_head.", "itm_head."))
    if config.task in (*MATCHING, "assignment"):
        pairs.append(("temp", "temperature"))
    return NameTable(pairs)


def _text(config: ALBEFConfig, text: str, owner: str) -> Iterator[tuple[str, str]]:
    yield f"{text}embeddings.", f"{owner}text.embeddings."
    for number in range(config.text.fusion_layer):
        name = f"encoder.layer.{number}."
        yield f"{text}{name}", f"{owner}text.{name}"
    for place, number in enumerate(fusion_layers(config)):
        yield from _layer(f"{text}encoder.layer.{number}.", f"{owner}fusion.layers.{place}.")


def _decoder(config: ALBEFConfig, text: str, owner: str) -> Iterator[tuple[str, str]]:
    yield f"{text}bert.embeddings.", f"{owner}embeddings."
    for number in range(config.answer_depth):
        yield from _layer(f"{text}bert.encoder.layer.{number}.", f"{owner}body.layers.{number}.")
    yield from _word_head(text, f"{owner}words.")


def _layer(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    return ((theirs + a, ours + b) for a, b in LAYER_NAMES.items())


def _word_head(text: str, ours: str) -> Iterator[tuple[str, str]]:
    return ((f"{text}cls.predictions.{a}", ours + b) for a, b in HEAD_PARTS.items())


def second_names(config: ALBEFConfig, side: str) -> dict[str, str]:
    """Of paired layers: the second layer's name of a shared tensor -> the first layer's.

    If the two differ in a file, the authors' code loads the second.
    """
    if config.task not in PAIRED:
        return {}
    layer = f"{text_prefix(config, side)}encoder.layer."
    return {
        f"{layer}{number + 1}.{part}{kind}": f"{layer}{number}.{part}{kind}"
        for number in fusion_layers(config)[::2]
        for part in SHARED
        for kind in ("weight", "bias")
    }


def repeated(config: ALBEFConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Constants and second names in the authors' files, given everything else (``state``)."""
    extra: dict[str, Tensor] = {}
    places = torch.arange(config.text.max_positions)[None]
    for side, _ in SIDES:
        texts = {text_prefix(config, side): f"text_encoder{side}."}
        if config.task == "vqa":
            texts[f"text_decoder{side}.bert."] = f"text_decoder{side}."
        for text, head in texts.items():
            words = state.get(f"{text}embeddings.word_embeddings.weight")
            if words is None:
                continue
            extra[f"{text}embeddings.position_ids"] = places.clone()
            bias = state.get(f"{head}cls.predictions.bias")
            if bias is not None:
                extra |= dict(zip((f"{head}{name}" for name in TIED), (words, bias), strict=True))
        names = second_names(config, side)
        extra |= {second: state[first] for second, first in names.items() if first in state}
    return extra
