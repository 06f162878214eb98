"""Trained towers in the layouts of transformers, open_clip and peft."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from itr.data.text.tokenizer import Tokenizer
from itr.errors import CheckpointError
from itr.jobs.export.hub_tokenizer import write_tokenizer
from itr.models.base import Model
from itr.nn.lora import DOWN, NAME, PACKED, LoRAConfig, is_adapter, plain_name
from itr.nn.tower.architecture import Architecture
from itr.nn.tower.tower_names import OPEN_CLIP_CONFIG
from itr.view import PixelView

RESAMPLE = {"bilinear": 2, "bicubic": 3}  # numbers of PIL
TOWER = "tower."
MODELS = ("clip", "blip")  # whose towers another library has
PROCESSORS = {
    "siglip": "SiglipImageProcessor",
    "chinese_clip": "ChineseCLIPImageProcessor",
    "blip": "BlipImageProcessor",
}


def write_model(model: Model, tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write the tower of ``model``, without adapters, to ``folder`` as its library saves it.

    Returns what the reader should know.
    """
    architecture = Architecture.from_dict(model.config.architecture)
    tower = model.get_submodule("tower")
    if architecture.library == "open_clip":
        return _write_open_clip(tower, architecture, tokenizer, folder)
    tower.save_pretrained(folder)  # type: ignore[operator]
    _processor(architecture).save_pretrained(folder)
    notes = write_tokenizer(tokenizer, architecture, folder)
    if architecture.kind == "blip":
        notes.append(
            "matching: transformers begins a text with [CLS], the paper and "
            "model.fused_token=enc with [ENC]"
        )
    return notes


def _processor(architecture: Architecture) -> Any:
    import transformers

    view = architecture.pixel_view()
    short, target = view.resize == "shortest", view.resize_to or view.size
    square = {"height": view.size, "width": view.size}
    steps: dict[str, Any] = {
        "do_resize": True,
        "size": {"shortest_edge": target} if short else {"height": target, "width": target},
        "resample": RESAMPLE[view.interpolation],
        "do_center_crop": short or target != view.size,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(view.mean),
        "image_std": list(view.std),
        "do_convert_rgb": True,
    }
    kind = PROCESSORS.get(architecture.kind, "CLIPImageProcessor")
    return getattr(transformers, kind)(**steps)


def _write_open_clip(
    tower: nn.Module, architecture: Architecture, tokenizer: Tokenizer, folder: Path
) -> list[str]:
    steps = _open_clip_steps(architecture.pixel_view())
    values = {"model_cfg": architecture.config, "preprocess_cfg": steps}
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(values, indent=2), "utf-8")
    weights = {name: value.contiguous().clone() for name, value in tower.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors", {"format": "pt"})
    if not architecture.whole_tokenizer:
        return []  # open_clip's own
    return write_tokenizer(tokenizer, dataclasses.replace(architecture, has_mask=True), folder)


def _open_clip_steps(view: PixelView) -> dict[str, Any]:
    return {
        "size": [view.size, view.size],
        "mode": "RGB",
        "mean": list(view.mean),
        "std": list(view.std),
        "interpolation": view.interpolation,
        "resize_mode": view.resize,
        "fill_color": view.fill,
    }


def write_adapters(
    model: Model, options: LoRAConfig, stored: Mapping[str, Any], folder: Path
) -> list[str]:
    """Write the adapters of ``model`` to ``folder`` as peft saves them, for their tower.

    ``stored`` are the model's options in its checkpoint.

    Raises CheckpointError if the tower differs from that of ``model.tower`` in more than adapters.
    """
    from peft import LoraConfig

    _require_known_base(model, stored)
    state = {n.removeprefix(TOWER): v for n, v in model.state_dict().items() if is_adapter(n)}
    layers = [_layer(name) for name in state if name.endswith(DOWN)]
    packed = {n for n in layers if f"{TOWER}{n}.base_layer.{PACKED}" in _names(model)}
    written = LoraConfig(
        r=options.rank or 0,
        lora_alpha=options.alpha,  # type: ignore[arg-type]  # any number
        lora_dropout=options.dropout,
        target_modules=sorted(plain_name(n) for n in layers if n not in packed),
        target_parameters=sorted(f"{plain_name(n)}.{PACKED}" for n in packed) or None,
        base_model_name_or_path=stored["tower"],
        inference_mode=True,
    )
    written.save_pretrained(str(folder))
    save_file(_as_peft(state), folder / "adapter_model.safetensors", {"format": "pt"})
    return [f"the base is {stored['tower']}; the trained temperature is not part of adapters"]


def _names(model: Model) -> Mapping[str, Tensor]:
    return dict(model.named_parameters())


def _layer(name: str) -> str:
    return name.removesuffix(f".{DOWN}")


def _as_peft(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names in peft's files, which leave out that of the adapter."""
    return {
        f"base_model.model.{name.replace(f'.{NAME}.', '.')}": value.contiguous().clone()
        for name, value in state.items()
    }


def _require_known_base(model: Model, stored: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the frozen weights are those of ``model.tower``."""
    expected = (
        "expected adapters beside a pre-trained tower. Leave --adapters out to export the whole "
        "tower"
    )
    init, size = stored["init"], stored.get("size")
    if not stored["pretrained"] or init is not None:
        what = "pretrained=false" if init is None else f"init={init}"
        raise CheckpointError(f"model.{what}: the weights beside them are in no tower; {expected}")
    if size is not None:
        raise CheckpointError(f"model.size={size}: the tower's positions were resized; {expected}")
    trained = [
        name
        for name, value in model.named_parameters()
        if name.startswith(TOWER)
        and value.numel() > 1
        and not is_adapter(name)
        and name not in model.frozen_weights
    ]
    if trained:
        raise CheckpointError(
            f"model.lora.modules={stored['lora']['modules']}: other weights of the tower were "
            f"trained, too ({trained[0]}, ...); {expected}"
        )
