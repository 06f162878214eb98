"""From a library's preprocessing of images to a `PixelView` that computes the same pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from itr.errors import ConfigError
from itr.hub import local_or_hub
from itr.view import PixelView

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # numbers of PIL
PROCESSORS = (  # those of transformers whose steps are the ones below
    "CLIPImageProcessor",
    "SiglipImageProcessor",
    "ChineseCLIPImageProcessor",
    "EfficientNetImageProcessor",
    "BlipImageProcessor",
    "ViTImageProcessor",
    "DeiTImageProcessor",
)


def transformers_pixels(source: str, key: str) -> PixelView:
    """The view of the image processor in ``source``, a directory or a name on the hub.

    Raises ConfigError for steps that a `PixelView` does not have.
    """
    from transformers import AutoImageProcessor

    try:
        source = local_or_hub(source, key, ("preprocessor_config.json", "processor_config.json"))
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # the library raises nearly anything for damaged files
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{key}={source}: no image processor could be opened there ({reason}); expected "
            "preprocessor_config.json. Pass a directory or a name that has it"
        ) from error
    kind = type(processor).__name__.removesuffix("Fast").removesuffix("Pil")
    if kind not in PROCESSORS:
        raise ConfigError(
            f"{key}={source}: its images are prepared by a {kind}, whose steps this suite does not "
            f"have; expected one of {', '.join(PROCESSORS)}. Choose another tower"
        )
    return pixels_of(processor.to_dict(), f"{key}={source}")


def pixels_of(steps: Mapping[str, Any], where: str) -> PixelView:
    """The view of the values of an image processor of transformers."""
    interpolation = RESAMPLING.get(int(steps.get("resample", 3)))
    size, crop = dict(steps.get("size") or {}), dict(steps.get("crop_size") or {})
    if interpolation is None or not steps.get("do_resize", True) or not size:
        raise _unknown_steps(where, "its images are not resized, or by another filter")
    short = size.get("shortest_edge")
    target = _square(size, where) if short is None else int(short)
    final = target
    if steps.get("do_center_crop"):
        final = _square(crop, where)
    if final > target or (short is not None and not steps.get("do_center_crop")):
        raise _unknown_steps(where, f"size={size} with crop_size={crop} makes no square images")
    mean, std = _affine(steps)
    return PixelView(
        size=final,
        resize_to=None if target == final else target,
        interpolation=interpolation,
        resize="squash" if short is None else "shortest",
        crop_rounds="down",
        mean=mean,
        std=std,
        on_white=True,  # transformers composes images with alpha so
    )


def _square(size: Mapping[str, Any], where: str) -> int:
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise _unknown_steps(where, f"{dict(size)} is no square")
    return int(height)


def _affine(
    steps: Mapping[str, Any],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std, of pixels in [0, 1], that scaling, offset and normalizing come to.

    A pixel p in 0 ... 255 becomes ((p * factor - offset) - mean) / std, divided by std once more
    with EfficientNet's ``include_top``.
    """
    factor = float(steps.get("rescale_factor", 1 / 255)) if steps.get("do_rescale", True) else 1.0
    offset = 1.0 if steps.get("rescale_offset") else 0.0
    normalizes = steps.get("do_normalize", True)
    means = steps["image_mean"] if normalizes else (0.0, 0.0, 0.0)
    given = steps.get("image_std") or (1.0, 1.0, 1.0)
    stds = given if normalizes else (1.0, 1.0, 1.0)
    if steps.get("include_top"):
        stds = [std * again for std, again in zip(stds, given, strict=True)]
    unit = 255.0 * factor
    mean = [(offset + value) / unit for value in means]
    std = [value / unit for value in stds]
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def open_clip_pixels(steps: Mapping[str, Any], where: str) -> PixelView:
    """The view of open_clip's preprocessing configuration."""
    size = steps["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise _unknown_steps(where, f"{height} x {width} pixels are no square")
    mode, interpolation = steps.get("resize_mode") or "shortest", steps.get("interpolation")
    mean, std = tuple(steps["mean"]), tuple(steps["std"])
    return PixelView(
        size=int(height),
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        resize=mode,
        fill=int(steps.get("fill_color") or 0),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        premultiply=True,  # it resizes images before it converts them to RGB
    )


def _unknown_steps(where: str, reason: str) -> ConfigError:
    return ConfigError(
        f"{where}: {reason}; expected square images, resized with bicubic or bilinear "
        "interpolation and cropped at the center. Choose another tower"
    )
