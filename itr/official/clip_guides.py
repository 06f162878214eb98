"""CLIP embeddings for USER's CLIP-guided enhancement: itr data guides --clip FILE ...

Writes ``<split>_clip.npy`` [rows, width] float32 beside ``<split>_ims.npy``, for
model.enhance=cge. The authors' code does not show which CLIP and which of its outputs they used. We
use the projected image embedding before normalization; it could not be verified.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from itr.command import command
from itr.data.layouts.precomp import GUIDES, read_split, splits_in
from itr.data.loading.eval_batches import image_batches
from itr.data.records import Record, Split
from itr.data.tools.features import image_splits
from itr.errors import ConfigError, DataError
from itr.files import atomic_write
from itr.models.alip import ALIP
from itr.official.load import load_official
from itr.terminal import say
from itr.view import PixelView, View

SHOWN = 3
ImageKey = tuple[str, int]  # an image: its split and its index there


@dataclass
class ImageTower:
    """A CLIP image encoder: ``encode`` maps pixels [B, 3, S, S] (read as ``view``) to vectors."""

    encode: Callable[[Tensor], Tensor]
    view: View
    device: torch.device

    @torch.inference_mode()
    def vectors(self, split: Split, batch_size: int, workers: int) -> np.ndarray:
        """float32 [N, width] of all pictures of ``split``."""
        embeddings = []
        late = self.device.type == "cuda"
        for batch in image_batches(split, self.view, batch_size, workers, finish_on_device=late):
            pixels = batch.to(self.device).pixels
            assert pixels is not None
            embeddings.append(self.encode(pixels).float().cpu().numpy())
        return np.concatenate(embeddings)


def load_image_tower(source: str, device: str) -> ImageTower:
    """Load the CLIP image encoder from ``source``: a file of OpenAI or open_clip, or a Hugging Face
    directory or name. Raises CheckpointError or ConfigError if it cannot be loaded."""
    path = Path(source).expanduser()
    if path.is_file():
        model, _ = load_official(path, "alip")  # ALIP's files have CLIP's weight names
        assert isinstance(model, ALIP)
        images = model.images.eval().to(device)
        return ImageTower(images, _view(model.config.image.size), torch.device(device))
    try:
        whole = CLIPVisionModelWithProjection.from_pretrained(str(path), dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--clip {source}: no CLIP could be loaded ({str(error).strip().splitlines()[0]}); "
            "expected OpenAI's ViT-B-32.pt, a file of open_clip's, or a directory of Hugging Face's"
        ) from error
    whole.eval().to(device)
    size = whole.config.image_size
    assert isinstance(size, int)

    def encode(pixels: Tensor) -> Tensor:
        return whole(pixel_values=pixels).image_embeds

    return ImageTower(encode, _view(size), torch.device(device))


def _view(size: int) -> View:
    """CLIP's preprocessing: the shorter side is resized, the center is cropped."""
    pixels = PixelView(size=size, resize="shortest")
    return View(kind="pixels", tokenizer="wordpiece", pixels=pixels, pixels_eval=pixels)


@command
def main(arguments: Sequence[str]) -> None:
    """Compute the embeddings and write them."""
    parser = argparse.ArgumentParser(
        prog="itr data guides",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--clip",
        required=True,
        help="checkpoint of OpenAI or open_clip, or a Hugging Face directory or name",
    )
    add("--images", required=True, help="folder of the same dataset with images, in any layout")
    add("--regions", required=True, help="folder of <split>_ims.npy; the files are written there")
    add("--name", help="name of the dataset with images, if the folder holds several")
    add("--batch-size", type=int, default=32)
    add("--workers", type=int, default=2, help="threads that prefetch images")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    write_guides(parser.parse_args(arguments))


def write_guides(options: argparse.Namespace) -> None:
    """Compute and write the embeddings of all splits.

    Raises ConfigError, CheckpointError or DataError before anything is written.
    """
    folder = Path(options.regions).expanduser()
    names = splits_in(folder)
    if not names:
        raise DataError(f"--regions {folder}: no <split>_ims.npy in this folder")
    if existing := [name for name in names if (folder / f"{name}{GUIDES}").exists()]:
        raise ConfigError(f"{folder / existing[0]}{GUIDES} already exists; remove it first")
    regions = {name: read_split(folder, name) for name in names}
    images = image_splits(options.images, options.name)
    keys = {name: _image_keys(split, images) for name, split in regions.items()}
    tower = load_image_tower(options.clip, options.device)
    vectors = _encode(tower, images, keys, options)
    for name, split in regions.items():
        assert split.regions is not None
        rows = np.stack([vectors[key] for key in keys[name]])
        rows = np.repeat(rows, len(split.regions) // len(rows), axis=0)  # one per region row
        with atomic_write(folder / f"{name}{GUIDES}") as file:
            np.save(file, rows)
        say(f"wrote {folder / f'{name}{GUIDES}'}: {rows.shape[0]} x {rows.shape[1]}")
    say(f"python train.py model=user model.enhance=cge data.root={folder}")


def _encode(
    tower: ImageTower,
    images: Mapping[str, Split],
    keys: Mapping[str, list[ImageKey]],
    options: argparse.Namespace,
) -> dict[ImageKey, np.ndarray]:
    """The embedding of every image in ``keys``, computed once."""
    unique = sorted({key for of_split in keys.values() for key in of_split})
    vectors: dict[ImageKey, np.ndarray] = {}
    for name, split in images.items():
        of_split = [key for key in unique if key[0] == name]
        if of_split:
            records = [split.records[number] for _, number in of_split]
            subset = dataclasses.replace(split, records=records, second=None)
            rows = tower.vectors(subset, options.batch_size, options.workers)
            vectors.update(zip(of_split, rows, strict=True))
    return vectors


def _image_keys(regions: Split, images: Mapping[str, Split]) -> list[ImageKey]:
    """The image of each record of ``regions``, matched by file name (if id_mapping.json has it) or
    by captions. Raises DataError for a record without exactly one image."""
    records = regions.records
    named = all(record.extra.get("file") for record in records)
    count = len(records[0].captions)

    def key(record: Record) -> object:
        return _stem(record) if named else _caption_key(record, count)

    known: dict[object, ImageKey] = {}
    ambiguous = set()
    for name, split in images.items():
        for number in range(split.n_images):
            record_key = key(split.records[number])
            ambiguous.update({record_key} & known.keys())
            known[record_key] = (name, number)
    keys = [key(record) for record in records]
    missing = [r for r, record_key in zip(records, keys, strict=True) if record_key not in known]
    if missing:
        raise DataError(
            f"{regions.source}: no image file for {len(missing)} of {len(records)} images, e.g. "
            f"{[_stem(r) if named else r.captions[0] for r in missing[:SHOWN]]}; --images must be "
            "the same dataset"
        )
    if unsure := [
        r for r, record_key in zip(records, keys, strict=True) if record_key in ambiguous
    ]:
        raise DataError(
            f"{regions.source}: several image files match {len(unsure)} images, e.g. the one with "
            f"{unsure[0].captions[0]!r}; write <split>_ids.txt and id_mapping.json beside it to "
            "name the file of each image"
        )
    return [known[record_key] for record_key in keys]


def _stem(record: Record) -> str:
    return Path(str(record.extra.get("file") or record.image)).stem


def _caption_key(record: Record, count: int) -> frozenset[str]:
    """Letters and digits of the first captions."""
    captions = (text.lower() for text in record.captions[:count])
    return frozenset("".join(c for c in text if c.isalnum()) for text in captions)
