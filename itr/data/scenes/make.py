"""The embedded data set: compositional scenes, written in the field's ordinary formats.

``images/*.jpg`` with ``dataset_scenes.json`` (Karpathy's layout; the truth under ``things``),
``scenes_precomp/`` (SCAN's) and ``wds/*.tar`` (shards with noisy text, training images only).
Images come in the same order in all of them. Made on first use, in seconds, and the same for the
same seed.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import tarfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from itr.data.scenes.grammar import draw_captions, draw_raw, draw_synthetic, words_of
from itr.data.scenes.render import REGIONS, WIDTH, RegionViewer, draw_picture
from itr.data.scenes.world import Bag, Scene, describe, draw_scenes
from itr.errors import ConfigError, DataError

log = logging.getLogger(__name__)

VERSION = 1  # raise it when the same seed gives other bytes
CAPTIONS = 5  # an image
MISMATCHED = 0.25  # share of the shards' raw texts that belong to another picture
PER_SHARD = 500
PRECOMP_NAMES = {"train": "train", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class Picture:
    """All that is made of one scene."""

    number: int  # over all splits
    split: str  # train, val or test
    scene: Scene
    captions: list[str]
    jpeg: bytes
    regions: np.ndarray  # [REGIONS, WIDTH] float32
    raw: str  # noisy text
    raw_matched: bool  # False: it was written for another picture
    synthetic: str

    @property
    def key(self) -> str:
        """Its name without an ending."""
        return f"{self.number:06d}"


def prepare(
    parent: str | Path, train: int = 2000, val: int = 200, test: int = 200, seed: int = 0
) -> Path:
    """The folder of the data set below ``parent``; made there if it does not exist yet.

    ``train``, ``val``, ``test`` count images. The set is written under a temporary name and then
    renamed; of two processes that make it at once, the second drops its copy. Raises ConfigError
    for sizes that cannot be, DataError if the folder holds something else.
    """
    sizes = {"train": train, "val": val, "test": test}
    for key, value, least in (*((k, v, 1) for k, v in sizes.items()), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"data.prepare.{key}={value}: expected a whole number >= {least}")
    folder = Path(parent).expanduser() / f"scenes-{VERSION}-{train}x{val}x{test}-{seed}"
    manifest = {
        "name": "scenes",
        "version": VERSION,
        "seed": seed,
        "images": sizes,
        "captions_per_image": CAPTIONS,
        "regions": [REGIONS, WIDTH],
        "mismatched_raw_text": MISMATCHED,
    }
    if not folder.exists():
        _make(folder, sizes, seed, manifest)
    _check(folder, manifest)
    return folder


def _check(folder: Path, manifest: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); {folder} is not a complete scenes data set. "
            "Remove that folder and it is made again"
        ) from error
    if found != manifest:
        raise DataError(
            f"{path}: holds {json.dumps(found)}, expected {json.dumps(manifest)}. "
            f"Remove {folder} and it is made again, or type data.root=ANOTHER_DIR"
        )


def _make(folder: Path, sizes: dict[str, int], seed: int, manifest: dict[str, Any]) -> None:
    """Write the set under a temporary name beside ``folder``, then rename it."""
    log.info("%s: making the scenes data set (once)", folder)
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}")
    try:
        draft.mkdir(parents=True)
        pictures = _draw(sizes, seed)
        _write_karpathy(draft, pictures)
        _write_precomp(draft / "scenes_precomp", pictures)
        _write_shards(draft / "wds", [p for p in pictures if p.split == "train"])
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
        os.rename(draft, folder)
    except OSError as error:
        if not folder.exists():
            raise DataError(
                f"{folder}: cannot be written ({error}); free some space there, or type "
                "data.root=ANOTHER_DIR"
            ) from error
        log.info("%s: another process made it first", folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _draw(sizes: dict[str, int], seed: int) -> list[Picture]:
    """Every picture: train, val, test."""
    viewer = RegionViewer(np.random.default_rng([VERSION, seed, 0]))
    taken: set[Bag] = set()  # no two splits share a bag of attributes, let alone a scene
    drawn: dict[str, list[Picture]] = {}
    # Test first: it is then the same whatever the other sizes are.
    for stream, split in enumerate(("test", "val", "train"), start=1):
        rng = np.random.default_rng([VERSION, seed, stream])
        scenes = draw_scenes(sizes[split], rng, taken)
        first = {"train": 0, "val": sizes["train"], "test": sizes["train"] + sizes["val"]}[split]
        shown = track(
            range(len(scenes)),
            f"drawing scenes: {split}",
            transient=True,
            disable=not Console().is_terminal,
        )
        drawn[split] = [_picture(first, split, scenes, index, viewer, rng) for index in shown]
    return [*drawn["train"], *drawn["val"], *drawn["test"]]


def _picture(
    first: int,
    split: str,
    scenes: list[Scene],
    index: int,
    viewer: RegionViewer,
    rng: np.random.Generator,
) -> Picture:
    scene = scenes[index]
    matched = len(scenes) == 1 or bool(rng.random() >= MISMATCHED)
    other = (index + int(rng.integers(1, max(2, len(scenes))))) % len(scenes)
    return Picture(
        number=first + index,
        split=split,
        scene=scene,
        captions=draw_captions(scene, CAPTIONS, rng),
        jpeg=draw_picture(scene, rng),
        regions=viewer.draw_regions(scene, rng),
        raw=draw_raw(scene if matched else scenes[other], rng),
        raw_matched=matched,
        synthetic=draw_synthetic(scene, rng),
    )


# The layouts


def _write_karpathy(folder: Path, pictures: list[Picture]) -> None:
    (folder / "images").mkdir()
    images = []
    for picture in pictures:
        name = f"{picture.key}.jpg"
        (folder / "images" / name).write_bytes(picture.jpeg)
        sentids = [CAPTIONS * picture.number + i for i in range(CAPTIONS)]
        sentences = [
            {"tokens": words_of(raw), "raw": raw, "imgid": picture.number, "sentid": sentid}
            for raw, sentid in zip(picture.captions, sentids, strict=True)
        ]
        images.append(
            {
                "filepath": "images",
                "filename": name,
                "imgid": picture.number,
                "cocoid": picture.number,
                "split": picture.split,
                "sentids": sentids,
                "sentences": sentences,
                "things": [describe(thing) for thing in picture.scene],
            }
        )
    text = json.dumps({"images": images, "dataset": "scenes"})
    (folder / "dataset_scenes.json").write_text(text, "utf-8")


def _write_precomp(folder: Path, pictures: list[Picture]) -> None:
    folder.mkdir()
    for split, name in PRECOMP_NAMES.items():
        chosen = [picture for picture in pictures if picture.split == split]
        np.save(folder / f"{name}_ims.npy", np.stack([p.regions for p in chosen]))
        lines = [f"{caption}\n" for picture in chosen for caption in picture.captions]
        (folder / f"{name}_caps.txt").write_text("".join(lines), "utf-8")


def _write_shards(folder: Path, pictures: list[Picture]) -> None:
    folder.mkdir()
    for first in range(0, len(pictures), PER_SHARD):
        path = folder / f"{first // PER_SHARD:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for picture in pictures[first : first + PER_SHARD]:
                meta = {
                    "key": picture.key,
                    "image_id": picture.number,
                    "raw": picture.raw,
                    "raw_matched": picture.raw_matched,
                    "synthetic_caption": picture.synthetic,
                }
                _add(tar, f"{picture.key}.jpg", picture.jpeg)
                _add(tar, f"{picture.key}.txt", picture.raw.encode())
                _add(tar, f"{picture.key}.json", json.dumps(meta).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # its times and owner are 0: the same bytes every time
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
