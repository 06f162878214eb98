"""Region features without BUTD files: itr data features --images DIR --backbone NAME ...

The last feature map of any timm backbone, averaged to a grid of 6 x 6 cells, is 36 "regions" of a
picture; they are written with the captions in SCAN's precomp layout, which HREM, USER and VSE read.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from itr.command import command
from itr.data.config import DataConfig
from itr.data.layouts.precomp_layout import ENDING
from itr.data.layouts.registry import KINDS, find_layouts
from itr.data.loading.loader import image_batches
from itr.data.records import Record, Split
from itr.data.tools.write_precomp import Source, write_precomp
from itr.data.tools.writers import Options
from itr.errors import ConfigError, DataError
from itr.instantiate import nearest
from itr.view import PixelView, View

ROLES = {"dev": "val", "testall": "test"}  # what a layout calls a split -> what it is
DTYPES = {"fp16": np.float16, "fp32": np.float32}


@dataclass
class Grid:
    """A backbone whose feature map is averaged to ``side`` x ``side`` cells of width ``width``."""

    model: nn.Module
    view: View
    side: int
    width: int
    device: torch.device

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 [B, side * side, width] of ``pixels`` [B, 3, S, S], row by row of the picture."""
        found = feature_map(self.model, self.model.forward_features(pixels))  # type: ignore[operator]
        return F.adaptive_avg_pool2d(found.float(), self.side).flatten(2).transpose(1, 2)


def feature_map(model: Any, found: Tensor) -> Tensor:
    """[B, D, h, w] of what timm's ``forward_features`` gives: maps in either order, or tokens.

    Raises ConfigError for something else.
    """
    width = model.num_features
    if found.ndim == 4:
        return found if found.shape[1] == width else found.permute(0, 3, 1, 2)
    if found.ndim == 3:
        patches = found[:, getattr(model, "num_prefix_tokens", 0) :]
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        if grid is not None and grid[0] * grid[1] == patches.shape[1]:
            return patches.transpose(1, 2).unflatten(2, tuple(grid))
    raise ConfigError(
        f"--backbone: its features have shape {tuple(found.shape)}, which is no grid; choose a "
        "ResNet, ConvNeXt, Swin or ViT"
    )


@command
def main(arguments: Sequence[str]) -> None:
    """Extract and write."""
    extract(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itr data features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", required=True, help="folder of a data set with pictures, in any layout")
    add("--backbone", required=True, help="name of a timm model, e.g. resnet101.a1h_in1k")
    add("--out", required=True, help=f"folder to write, e.g. DIR/NAME{ENDING}; must not exist yet")
    add("--name", help="of the data set, where the folder holds several")
    add("--weights", help="file with the backbone's weights; 'none': random ones (default: timm's)")
    add("--size", type=int, help="pixels a side (default: the backbone's own)")
    add("--grid", type=int, default=6, help="cells a side (default 6: 36 regions)")
    add("--captions", type=int, default=5, help="an image: the first ones, repeated (default 5)")
    add("--dtype", choices=tuple(DTYPES), default="fp16", help="of the file (default fp16)")
    add("--batch-size", type=int, default=32)
    add("--workers", type=int, default=2, help="threads that read pictures ahead")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def extract(asked: argparse.Namespace) -> None:
    """Do what the command line says. Raises ConfigError or DataError; nothing is left behind."""
    target = Path(asked.out).expanduser()
    if target.exists():
        raise ConfigError(f"--out {target}: exists already; name a folder that does not")
    splits = image_splits(asked.images, asked.name)
    grid = open_grid(asked.backbone, asked.weights, asked.size, asked.grid, asked.device)
    for part, split in splits.items():
        print(f"{part}: {split.n_images:,} pictures, {split.layout} layout, {split.source}")
    source = Source(
        (grid.side**2, grid.width),
        np.dtype(DTYPES[asked.dtype]),
        {part: _rows(grid, split, asked) for part, split in splits.items()},
    )
    name = asked.name or target.name.removesuffix(ENDING)
    try:
        told = write_precomp(target, splits, Options(name, captions=asked.captions), source)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    print(f"wrote {grid.side**2} x {grid.width} {asked.dtype} features of each picture to {target}")
    print(*told, sep="\n")


def image_splits(folder: str, name: str | None) -> dict[str, Split]:
    """train, val and test of the data set with pictures in ``folder``."""
    places = find_layouts(DataConfig(name or "?", folder))
    place = next((place for key, place in places.items() if KINDS[key] == "pixels"), None)
    if place is None:
        raise DataError(
            f"--images {folder}: no data set with pictures is recognised there; expected "
            "dataset_*.json, *_train.json, captions_train.json, *.arrow, a table or *.tar beside "
            "the pictures: the captions are written, too. See itr data check"
        )
    names = {ROLES.get(split, split): split for split in place.splits()}
    return {part: place.read(split) for part, split in names.items()}


def open_grid(backbone: str, weights: str | None, size: int | None, side: int, device: str) -> Grid:
    """The backbone called ``backbone``. Raises ConfigError where it or its weights are not to be
    had."""
    import timm  # slow to import, and nothing else here needs it

    known = timm.list_models()
    if backbone.split(".")[0] not in known:
        raise ConfigError(f"--backbone {backbone}: unknown to timm{nearest(backbone, known)}")
    options = {} if size is None else {"img_size": size}
    try:
        model = _create(timm.create_model, backbone, weights is None, options)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"--backbone {backbone}: its weights cannot be fetched ({str(error).splitlines()[0]}); "
            "type --weights FILE"
        ) from error
    if weights not in (None, "none"):
        _load(model, Path(str(weights)).expanduser())
    model = model.eval().to(device)
    settings = timm.data.resolve_model_data_config(model)
    pixels = PixelView(
        size=size or settings["input_size"][-1],
        interpolation=settings["interpolation"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    view = View(kind="pixels", tokenizer="wordpiece", pixels=pixels, pixels_eval=pixels)
    return Grid(model, view, side, model.num_features, torch.device(device))


def _create(make: Callable[..., Any], name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    try:
        return make(name, pretrained=pretrained, num_classes=0, **options)
    except TypeError:  # a network without a size of its own
        return make(name, pretrained=pretrained, num_classes=0)


def _load(model: nn.Module, path: Path) -> None:
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  torch names no common base
        raise DataError(f"--weights {path}: cannot be read ({error})") from error
    for key in ("state_dict", "model"):
        tensors = tensors.get(key, tensors)
    missing, _ = model.load_state_dict(tensors, strict=False)
    if missing:
        raise DataError(
            f"--weights {path}: lacks {len(missing)} of the backbone's tensors, as {missing[0]}"
        )


def _rows(grid: Grid, split: Split, asked: argparse.Namespace) -> Callable[[Record], np.ndarray]:
    """The features of each record; they are asked for in order."""
    made = _features(grid, split, asked.batch_size, asked.workers)
    return lambda record: next(made)


def _features(grid: Grid, split: Split, batch_size: int, workers: int) -> Iterator[np.ndarray]:
    late = grid.device.type == "cuda"
    for batch in image_batches(split, grid.view, batch_size, workers, late=late):
        pixels = batch.to(grid.device).pixels
        assert pixels is not None
        yield from grid(pixels).cpu().numpy()
