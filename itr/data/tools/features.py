"""Extracts grid features with a timm backbone, as a substitute for region features.

The last feature map is averaged to a grid of 6 x 6 cells, which serve as the 36 regions of an
image. Features and captions are written in SCAN's precomp layout, which HREM, USER and VSE read.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itr.command import command
from itr.data.config import DataConfig
from itr.data.layouts.precomp import FOLDER_SUFFIX
from itr.data.layouts.registry import KINDS, captioned, find_layouts, read_split
from itr.data.loading.eval_batches import image_batches
from itr.data.records import Record, Split
from itr.data.splits import split_roles
from itr.data.tools.write_precomp import RegionSource, write_precomp
from itr.data.tools.writers import WriteOptions
from itr.errors import CheckpointError, ConfigError, DataError, first_of, nearest
from itr.files import atomic_folder, explain_write_error
from itr.terminal import say
from itr.view import PixelView, View
from itr.weights_file import load_weights_file

COUNTER = "num_batches_tracked"  # of batch normalization; not used in evaluation
# glibc's numbers: of blocks it maps by themselves, and bytes that it keeps before it returns them.
MALLOC_OPTIONS = {-4: 0, -1: 2**31 - 1}
DTYPES = {"fp16": np.float16, "fp32": np.float32}


@dataclass
class GridExtractor:
    """A backbone with its feature map averaged to ``side`` x ``side`` cells of width ``width``."""

    model: nn.Module
    view: View
    side: int
    width: int
    device: torch.device

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, side * side, width] of ``pixels`` [B, 3, S, S], row by row."""
        features = self.model.forward_features(pixels)  # type: ignore[operator]
        maps = feature_map(self.model, features)
        return F.adaptive_avg_pool2d(maps.float(), self.side).flatten(2).transpose(1, 2)


def feature_map(model: Any, features: Tensor) -> Tensor:
    """The output of timm's ``forward_features`` as maps [B, D, h, w].

    Accepts channels-first maps, channels-last maps and patch tokens on a grid; raises ConfigError
    for other shapes.
    """
    width = model.num_features
    if features.ndim == 4:
        return features if features.shape[1] == width else features.permute(0, 3, 1, 2)
    if features.ndim == 3:
        patches = features[:, getattr(model, "num_prefix_tokens", 0) :]
        grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
        if grid is not None and grid[0] * grid[1] == patches.shape[1]:
            return patches.transpose(1, 2).unflatten(2, tuple(grid))
    raise ConfigError(
        f"--backbone: its features have shape {tuple(features.shape)}, which is not a grid; pass a "
        "ResNet, ConvNeXt, Swin or ViT"
    )


@command
def main(arguments: Sequence[str]) -> None:
    """Extract and write features."""
    extract(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itr data features",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", required=True, help="folder of a dataset with images, in any layout")
    add("--backbone", required=True, help="timm model, e.g. resnet101.a1h_in1k")
    add(
        "--out",
        required=True,
        help=f"folder to write, e.g. DIR/NAME{FOLDER_SUFFIX}; must not exist",
    )
    add("--name", help="name of the dataset, if the folder holds several")
    add("--weights", help="weights file; 'none': random weights (default: timm's pretrained)")
    add(
        "--weights-by-order",
        action="store_true",
        help="assign the tensors of --weights by their order instead of their names; every shape "
        "must agree",
    )
    add("--size", type=int, help="image size in pixels (default: that of the backbone)")
    add("--grid", type=int, default=6, help="cells per side (default 6: 36 regions)")
    add(
        "--captions",
        type=int,
        default=5,
        help="captions per image: the first ones, repeated (default 5)",
    )
    add(
        "--dtype",
        choices=tuple(DTYPES),
        default="fp16",
        help="of the written features (default fp16)",
    )
    add("--batch-size", type=int, default=32, help="images per forward pass (default 32)")
    add("--workers", type=int, default=2, help="threads that load images (default 2)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda, ... (default: cuda if available)")
    return parser


def extract(args: argparse.Namespace) -> None:
    """Run the command. On an error (ConfigError, DataError) nothing is left behind."""
    target = Path(args.out).expanduser()
    if target.exists():
        raise ConfigError(f"--out {target}: already exists; pass a new folder")
    splits = image_splits(args.images, args.name)
    by_order = args.weights_by_order
    grid = open_grid(args.backbone, args.weights, args.size, args.grid, args.device, by_order)
    for part, split in splits.items():
        say(f"{part}: {split.n_images:,} images, {split.layout} layout, {split.source}")
    source = RegionSource(
        (grid.side**2, grid.width),
        np.dtype(DTYPES[args.dtype]),
        {part: _rows(grid, split, args) for part, split in splits.items()},
    )
    name = args.name or target.name.removesuffix(FOLDER_SUFFIX)
    options = WriteOptions(name, captions=args.captions)
    with explain_write_error(target, "the features", "pass --out elsewhere"):
        with atomic_folder(target) as draft:
            lines = write_precomp(draft, splits, options, source)
    lines = [line.replace(str(draft), str(target)) for line in lines]
    say(f"wrote {grid.side**2} x {grid.width} {args.dtype} features per image to {target}")
    say("\n".join(lines))


def image_splits(folder: str, name: str | None) -> dict[str, Split]:
    """Splits train, val and test of the dataset with images in ``folder``."""
    layouts = find_layouts(DataConfig(name or "?", folder))
    layout = next((layout for key, layout in layouts.items() if KINDS[key] == "pixels"), None)
    if layout is None:
        raise DataError(
            f"--images {folder}: no dataset with images and captions there; expected "
            "dataset_*.json, *_train.json, captions_train.json, *.arrow, a table or *.tar. Run "
            f"itr data check data.root={folder}"
        )
    names = split_roles(layout.splits())
    return {part: captioned(read_split(layout, split)) for part, split in names.items()}


def open_grid(
    backbone: str,
    weights: str | None,
    size: int | None,
    side: int,
    device: str,
    by_order: bool = False,
) -> GridExtractor:
    """Create ``backbone``; ``by_order``: assign the tensors of the file ``weights`` by order.

    Raises ConfigError if the backbone or its weights are not available, DataError for weights that
    do not fit.
    """
    import timm  # imported here because it is slow

    if by_order and weights in (None, "none"):
        raise ConfigError("--weights-by-order: expected a file; pass --weights FILE")
    known = timm.list_models()
    if backbone.split(".")[0] not in known:
        raise ConfigError(f"--backbone {backbone}: unknown to timm{nearest(backbone, known)}")
    options = {} if size is None else {"img_size": size}
    try:
        model = _create(timm.create_model, backbone, weights is None, options)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"--backbone {backbone}: its weights cannot be downloaded "
            f"({str(error).splitlines()[0]}); pass --weights FILE"
        ) from error
    if weights not in (None, "none"):
        path = Path(str(weights)).expanduser()
        whole = timm.create_model(backbone, pretrained=False).state_dict() if by_order else None
        _load(model, path, whole)
    model = model.eval().to(device, memory_format=torch.channels_last)
    if torch.device(device).type == "cpu":
        _keep_freed_memory()
    settings = timm.data.resolve_model_data_config(model)
    pixels = PixelView(
        size=size or settings["input_size"][-1],
        interpolation=settings["interpolation"],
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
    )
    view = View(kind="pixels", tokenizer="wordpiece", pixels=pixels, pixels_eval=pixels)
    return GridExtractor(model, view, side, model.num_features, torch.device(device))


def _keep_freed_memory() -> None:
    """Let this process reuse the memory of activations, where its C library is glibc's.

    That returns blocks above 32 MB to the system at once, and half of the time would go into
    getting them back, page by page.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        for option, value in MALLOC_OPTIONS.items():
            library.mallopt(option, value)


def _create(make: Callable[..., Any], name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    try:
        return make(name, pretrained=pretrained, num_classes=0, **options)
    except TypeError:  # a network that accepts any image size
        return make(name, pretrained=pretrained, num_classes=0)


def _load(model: nn.Module, path: Path, whole: dict[str, Tensor] | None = None) -> None:
    """Load ``path`` into ``model``, by name or, given its tensors with the classifier, by order."""
    try:
        state = load_weights_file(path)
        if whole is not None:
            state = _named_by_order(state, [whole, model.state_dict()], path)
        missing, _ = model.load_state_dict(state, strict=False)
        missing = [name for name in missing if whole is None or not name.endswith(COUNTER)]
    except (CheckpointError, RuntimeError) as error:  # RuntimeError: other sizes
        raise DataError(f"--weights {path}: {error}") from error
    if missing:
        raise DataError(
            f"--weights {path}: {len(missing)} tensors of the backbone are missing: "
            f"{first_of(missing)}; pass weights of the same backbone"
        )


def _named_by_order(
    state: dict[str, Tensor], networks: Sequence[dict[str, Tensor]], path: Path
) -> dict[str, Tensor]:
    """The tensors of a file under the names of the first of ``networks`` with the same shapes.

    Counters of batch normalization, which not all files hold, do not count. Raises DataError if the
    shapes of none agree.
    """
    if path.suffix == ".safetensors":
        raise DataError(
            f"--weights {path}: a safetensors file does not keep the order of its tensors; "
            "expected a file of torch.save. Pass it without --weights-by-order, if its names fit"
        )
    given = {name: t for name, t in state.items() if not name.endswith(COUNTER)}
    faults = []
    for network in networks:
        wanted = {name: t for name, t in network.items() if not name.endswith(COUNTER)}
        fault = _first_difference(given, wanted)
        if not fault:
            return dict(zip(wanted, given.values(), strict=True))
        faults.append(fault)
    raise DataError(
        f"--weights-by-order: {path}: {faults[0]}; expected the same shapes in the same order. "
        "Pass the --backbone that the file was trained as, or weights whose names fit"
    )


def _first_difference(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """How the shapes of two lists of tensors differ first; empty if they agree."""
    for number, (one, other) in enumerate(zip(given, wanted, strict=False)):
        shapes = tuple(given[one].shape), tuple(wanted[other].shape)
        if shapes[0] != shapes[1]:
            return f"tensor {number} ({one}) is {shapes[0]}, the backbone's {other} {shapes[1]}"
    if len(given) != len(wanted):
        return f"{len(given)} tensors, but the backbone has {len(wanted)}"
    return ""


def _rows(
    grid: GridExtractor, split: Split, args: argparse.Namespace
) -> Callable[[Record], np.ndarray]:
    """A reader of features; records must be read in order."""
    features = _features(grid, split, args.batch_size, args.workers)
    return lambda record: next(features)


def _features(
    grid: GridExtractor, split: Split, batch_size: int, workers: int
) -> Iterator[np.ndarray]:
    late = grid.device.type == "cuda"
    for batch in image_batches(split, grid.view, batch_size, workers, finish_on_device=late):
        pixels = batch.to(grid.device).pixels
        assert pixels is not None
        yield from grid(pixels).cpu().numpy()
