"""Importer of ALIP, and of CLIP checkpoints of OpenAI and open_clip, which have the same names.

The authors' checkpoint is a state dict with the prefix ``module.``. It holds neither the running
means of the gates nor a tokenizer.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itr.errors import CheckpointError
from itr.models.alip import ALIP, ALIPConfig, ALIPTextConfig, ALIPVisionConfig
from itr.nn.clip.jit_archive import is_jit_archive
from itr.official.name_table import (
    Imported,
    ImportReport,
    NameTable,
    head_width,
    load_pickle,
    require_fit,
)
from itr.view import Facts

WRAPPER = "module."
PAIRS = (  # in the order of the authors' files
    ("positional_embedding", "texts.positional_embedding"),
    ("text_projection", "texts.text_projection"),
    ("logit_scale", "logit_scale"),
    ("visual.", "images."),
    ("transformer.", "texts.transformer."),
    ("token_embedding.", "texts.token_embedding."),
    ("ln_final.", "texts.ln_final."),
)
NAMES = NameTable(PAIRS)
# Numbers, and a mask per text block, in OpenAI's files; not weights.
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
TELLTALES = ("visual.conv1.weight", "token_embedding.weight", "text_projection", "logit_scale")
HEAD_WIDTH = 64  # of every published CLIP; not determined by the weights
RESNET_STRIDE = 32
EXTRA_OPTIONS = {
    "text.tokenizer": "tokenizer",
    "text.heads": "heads",
    "image.head_width": "head_width",
}


def recognizes(payload: Any) -> bool:
    """Whether ``payload`` (see `load_pickle`) is a state dict of ALIP's authors (or of CLIP)."""
    names = _unwrapped(payload)
    return all(name in names for name in TELLTALES)


def _unwrapped(payload: Any) -> dict[str, Tensor]:
    """The weights in ``payload`` without the prefix ``module.``."""
    if isinstance(payload, Mapping) and isinstance(payload.get("state_dict"), Mapping):
        payload = payload["state_dict"]  # as open_clip saves
    if not isinstance(payload, Mapping):
        return {}
    return {
        str(name).rpartition(WRAPPER)[2]: value
        for name, value in payload.items()
        if isinstance(value, Tensor)
    }


def read(path: Path, text: Mapping[str, Any] | None = None) -> Imported:
    """Import the authors' ``.pt``; no code in the file is executed.

    ``text`` holds options that weights do not determine: ``tokenizer`` and, for attention heads
    that are not 64 wide, ``heads`` of the text tower and ``head_width`` or ``image_heads`` of the
    image tower. Raises CheckpointError for a damaged or foreign file, and for weights that are
    missing, unexpected or of the wrong shape.
    """
    payload = load_pickle(path)
    if not recognizes(payload):
        content = ", ".join(sorted(_unwrapped(payload))[:8]) or type(payload).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint of the authors of ALIP: it holds {content}; expected a "
            f"state dict with {', '.join(TELLTALES)} (with or without the prefix '{WRAPPER}')"
        )
    theirs = _unwrapped(payload)
    extras = [name for name in theirs if name.rpartition(".")[2] in OPENAI_EXTRAS]
    for name in extras:
        del theirs[name]
    openai = bool(extras) or is_jit_archive(path)  # trained with QuickGELU
    theirs = {
        name: value.float() if value.is_floating_point() else value
        for name, value in theirs.items()
    }
    config, facts = _architecture(path, theirs, text or {})
    config = replace(config, quick_gelu=openai)
    state, report = _rename(path, theirs, config, facts)
    report.ignored += extras
    return Imported(
        model_name="alip",
        config=config,
        facts=facts,
        state=state,
        report=report,
        weights={"raw": 1.0, "caption": 1.0},
        info={},
    )


def incompatibility(theirs: ALIPConfig, ours: ALIPConfig) -> str | None:
    """An error message if options differ that weights do not determine, else None."""
    if theirs.quick_gelu == ours.quick_gelu:
        return None
    return (
        f"these weights were trained with another activation; pass "
        f"model.quick_gelu={str(theirs.quick_gelu).lower()}"
    )


def _architecture(
    path: Path, theirs: Mapping[str, Tensor], text: Mapping[str, Any]
) -> tuple[ALIPConfig, Facts]:
    try:
        image = _image(theirs)
        vocabulary, width = theirs["token_embedding.weight"].shape
        context = theirs["positional_embedding"].shape[0]
        embed_size = theirs["text_projection"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"{path}: cannot determine the model's sizes: weight {error} is missing or has an "
            "unexpected shape"
        ) from error
    heads, attention = text.get("heads") or width // HEAD_WIDTH, _attention(image)
    image = replace(image, head_width=head_width(text, attention, HEAD_WIDTH))
    if not heads or width % heads or not image.head_width or attention % image.head_width:
        raise CheckpointError(
            f"{path}: the towers are {width} (text) and {image.width} (image) wide, not multiples "
            "of the published 64 per head, and the weights do not determine the number of heads; "
            "set model.text.heads and model.image.head_width (itr official: --heads, --image-heads)"
        )
    encoder = ALIPTextConfig(
        max_positions=context, width=width, heads=heads, depth=_blocks(theirs, "transformer.")
    )
    if text.get("tokenizer"):
        encoder = replace(encoder, tokenizer=str(text["tokenizer"]))
    config = ALIPConfig(embed_size=embed_size, image=image, text=encoder)
    return config, Facts(vocabulary=vocabulary)


def _attention(image: ALIPVisionConfig) -> int:
    """Width of the image tower's attention."""
    return image.width * (1 if isinstance(image.depth, int) else RESNET_STRIDE)


def _image(theirs: Mapping[str, Tensor]) -> ALIPVisionConfig:
    """The sizes of the image tower except its heads."""
    if "visual.class_embedding" in theirs:
        width, _, patch, _ = theirs["visual.conv1.weight"].shape
        hidden = theirs["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0]
        grid = math.isqrt(theirs["visual.positional_embedding"].shape[0] - 1)
        layers = _blocks(theirs, "visual.transformer.")
        return ALIPVisionConfig(grid * patch, layers, width, patch, mlp_ratio=hidden / width)
    stages = [
        len({n.split(".")[2] for n in theirs if n.startswith(f"visual.layer{stage}.")})
        for stage in range(1, 5)
    ]
    width = theirs["visual.layer1.0.conv1.weight"].shape[0]
    grid = math.isqrt(theirs["visual.attnpool.positional_embedding"].shape[0] - 1)
    return ALIPVisionConfig(grid * RESNET_STRIDE, stages, width, None)


def _blocks(theirs: Mapping[str, Tensor], prefix: str) -> int:
    prefix += "resblocks."
    return 1 + max(int(n[len(prefix) :].split(".")[0]) for n in theirs if n.startswith(prefix))


def _rename(
    path: Path, theirs: Mapping[str, Tensor], config: ALIPConfig, facts: Facts
) -> tuple[dict[str, Tensor], ImportReport]:
    report, state = ImportReport(), {}
    for name, value in theirs.items():
        ours = NAMES.to_ours(name) or name  # unknown: `require_fit` lists it
        if ours == name:
            report.matched.append(name)
        else:
            report.renamed.append((name, ours))
        state[ours] = value
    with torch.device("meta"):
        expected = ALIP(config, nn.ModuleDict(), {"raw": 1.0}, facts).state_dict()
    unsaved = {name for name in expected if NAMES.to_official(name) is None}
    report.missing = require_fit(path, state, expected, optional=unsaved)
    return state, report


def official_state(model: ALIP) -> dict[str, Tensor]:
    """Weights of ``model`` by the authors' names (without ``module.``), in their order."""
    named = {NAMES.to_official(name): value for name, value in model.state_dict().items()}
    return {
        name: value
        for prefix, _ in PAIRS
        for name, value in named.items()
        if name is not None and name.startswith(prefix)
    }


def export(model: ALIP) -> OrderedDict[str, Tensor]:
    """The authors' checkpoint format of ``model``, for ``torch.save``."""
    return OrderedDict((WRAPPER + name, value) for name, value in official_state(model).items())
