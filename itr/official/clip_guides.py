"""Vectors of a frozen CLIP beside region arrays: itr data guides --clip FILE ...

``<split>_clip.npy`` [rows, width] float32 lies beside ``<split>_ims.npy`` and is what USER's
CLIP-guided enhancement reads (model.enhance=cge). Which CLIP the authors of USER took, and which of
its vectors, is in no public code: the projected image embedding, before it gets unit length, is our
reading, and no number can be compared with theirs.
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
from itr.models.alip import ALIP
from itr.official.load import load_official
from itr.view import PixelView, View

SHOWN = 3
Place = tuple[str, int]  # a picture: its split and its number there


@dataclass
class ImageTower:
    """A CLIP's image side: ``encode`` makes [B, width] of pixels [B, 3, S, S] as ``view`` reads
    them."""

    encode: Callable[[Tensor], Tensor]
    view: View
    device: torch.device

    @torch.inference_mode()
    def vectors(self, split: Split, batch_size: int, workers: int) -> np.ndarray:
        """float32 [N, width] of all pictures of ``split``."""
        found = []
        late = self.device.type == "cuda"
        for batch in image_batches(split, self.view, batch_size, workers, finish_on_device=late):
            pixels = batch.to(self.device).pixels
            assert pixels is not None
            found.append(self.encode(pixels).float().cpu().numpy())
        return np.concatenate(found)


def load_image_tower(source: str, device: str) -> ImageTower:
    """The CLIP in ``source``: a file of OpenAI's or open_clip's, or a directory (or name) of
    Hugging Face's. Raises CheckpointError or ConfigError for anything else."""
    path = Path(source).expanduser()
    if path.is_file():
        model, _ = load_official(path, "alip")  # whose files bear CLIP's names
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
    """CLIP's own preprocessing: the shorter side resized, the centre cut out."""
    pixels = PixelView(size=size, resize="shortest")
    return View(kind="pixels", tokenizer="wordpiece", pixels=pixels, pixels_eval=pixels)


@command
def main(arguments: Sequence[str]) -> None:
    """Encode and write."""
    parser = argparse.ArgumentParser(
        prog="itr data guides",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--clip",
        required=True,
        help="file of OpenAI's or open_clip's, Hugging Face directory or name",
    )
    add("--images", required=True, help="folder of a data set with pictures, in any layout")
    add("--regions", required=True, help="folder of <split>_ims.npy; the files are written there")
    add("--name", help="of the data set with pictures, where the folder holds several")
    add("--batch-size", type=int, default=32)
    add("--workers", type=int, default=2, help="threads that read pictures ahead")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    write_guides(parser.parse_args(arguments))


def write_guides(asked: argparse.Namespace) -> None:
    """Do what the command line says. Raises ConfigError, CheckpointError or DataError, before
    anything is written."""
    folder = Path(asked.regions).expanduser()
    names = splits_in(folder)
    if not names:
        raise DataError(f"--regions {folder}: holds no <split>_ims.npy")
    if there := [name for name in names if (folder / f"{name}{GUIDES}").exists()]:
        raise ConfigError(f"{folder / there[0]}{GUIDES}: exists already; remove it first")
    regions = {name: read_split(folder, name) for name in names}
    pictures = image_splits(asked.images, asked.name)
    places = {name: _places(split, pictures) for name, split in regions.items()}
    tower = load_image_tower(asked.clip, asked.device)
    vectors = _encode(tower, pictures, places, asked)
    for name, split in regions.items():
        assert split.regions is not None
        rows = np.stack([vectors[place] for place in places[name]])
        rows = np.repeat(rows, len(split.regions) // len(rows), axis=0)  # one for each of the array
        np.save(folder / f"{name}{GUIDES}", rows)
        print(f"wrote {folder / f'{name}{GUIDES}'}: {rows.shape[0]} x {rows.shape[1]}")
    print(f"python train.py model=user model.enhance=cge data.root={folder}")


def _encode(
    tower: ImageTower,
    pictures: Mapping[str, Split],
    places: Mapping[str, list[Place]],
    asked: argparse.Namespace,
) -> dict[Place, np.ndarray]:
    """The vector of each picture that somebody wants, once."""
    wanted = sorted({place for own in places.values() for place in own})
    found: dict[Place, np.ndarray] = {}
    for part, split in pictures.items():
        own = [place for place in wanted if place[0] == part]
        if own:
            records = [split.records[number] for _, number in own]
            chosen = dataclasses.replace(split, records=records, second=None)
            rows = tower.vectors(chosen, asked.batch_size, asked.workers)
            found.update(zip(own, rows, strict=True))
    return found


def _places(regions: Split, pictures: Mapping[str, Split]) -> list[Place]:
    """The picture of each image of ``regions``: by the name of its file where id_mapping.json has
    it, else by its captions. Raises DataError for an image without one picture."""
    records = regions.records
    named = all(record.extra.get("file") for record in records)
    count = len(records[0].captions)

    def key(record: Record) -> object:
        return _stem(record) if named else _words(record, count)

    known: dict[object, Place] = {}
    twice = set()
    for part, split in pictures.items():
        for number in range(split.n_images):
            its = key(split.records[number])
            twice.update({its} & known.keys())
            known[its] = (part, number)
    keys = [key(record) for record in records]
    lost = [record for record, its in zip(records, keys, strict=True) if its not in known]
    if lost:
        raise DataError(
            f"{regions.source}: no picture of {len(lost)} of {len(records)} images, as "
            f"{[_stem(r) if named else r.captions[0] for r in lost[:SHOWN]]}; --images must hold "
            "the same data set"
        )
    if unsure := [r for r, its in zip(records, keys, strict=True) if its in twice]:
        raise DataError(
            f"{regions.source}: several pictures fit {len(unsure)} images, as that of "
            f"{unsure[0].captions[0]!r}; write <split>_ids.txt and id_mapping.json beside "
            "it, which name each image's file"
        )
    return [known[its] for its in keys]


def _stem(record: Record) -> str:
    return Path(str(record.extra.get("file") or record.image)).stem


def _words(record: Record, count: int) -> frozenset[str]:
    """Letters and digits of the first captions."""
    captions = (text.lower() for text in record.captions[:count])
    return frozenset("".join(c for c in text if c.isalnum()) for text in captions)
