"""Generates the demo dataset: compositional scenes, stored in the file formats of real datasets.

``images/*.jpg`` with ``dataset_scenes.json`` (Karpathy's layout; the attributes are in ``things``),
``scenes_precomp/`` (region features in SCAN's layout) and ``wds/*.tar`` (shards with noisy text,
training images only). All list the images in the same order. The dataset is generated on first use,
within seconds; equal seeds give equal bytes.
"""

from __future__ import annotations

import io
import json
import logging
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from itr.data.scenes.grammar import draw_captions, draw_raw, draw_synthetic, words_of
from itr.data.scenes.made_once import made_once
from itr.data.scenes.render import REGIONS, WIDTH, RegionViewer, draw_image
from itr.data.scenes.world import Bag, Scene, describe, draw_scenes
from itr.errors import ConfigError, DataError
from itr.files import parse_json
from itr.terminal import PlainConsole

log = logging.getLogger(__name__)

VERSION = 1  # increase it when a seed gives different bytes
CAPTIONS = 5  # per image
MISMATCHED = 0.25  # fraction of the shards' raw texts that belong to another image
PER_SHARD = 500
SPLITS = ("train", "val", "test")
PRECOMP_NAMES = {"train": "train", "val": "dev", "test": "test"}


@dataclass(frozen=True)
class RenderedScene:
    """A scene with its image, regions and texts."""

    number: int  # over all splits
    split: str  # train, val or test
    scene: Scene
    captions: list[str]
    jpeg: bytes
    regions: np.ndarray  # [REGIONS, WIDTH] float32
    raw: str  # noisy text
    raw_matched: bool  # False: it describes another image
    synthetic: str

    @property
    def key(self) -> str:
        """File name without extension."""
        return f"{self.number:06d}"


def prepare(
    parent: str | Path, train: int = 2000, val: int = 200, test: int = 200, seed: int = 0
) -> Path:
    """The folder of the dataset below ``parent``; generated if it does not exist.

    ``train``, ``val`` and ``test`` are numbers of images. If ``parent`` is such a dataset itself,
    of any size, it is used as it is. The folder is written under a temporary name and renamed; if
    two processes generate it at once, the second discards its copy. Raises ConfigError for invalid
    sizes, DataError if the folder contains something else.
    """
    sizes = {"train": train, "val": val, "test": test}
    folder = folder_of(parent, train, val, test, seed)
    manifest = {
        "name": "scenes",
        "version": VERSION,
        "seed": seed,
        "images": sizes,
        "captions_per_image": CAPTIONS,
        "regions": [REGIONS, WIDTH],
        "mismatched_raw_text": MISMATCHED,
    }
    if _is_scenes(Path(parent).expanduser()):
        return Path(parent).expanduser()
    if not folder.exists():
        _make(folder, sizes, seed, manifest)
    _check(folder, manifest)
    return folder


def _is_scenes(folder: Path) -> bool:
    try:
        manifest = parse_json((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("name") == "scenes"


def folder_of(parent: str | Path, train: int, val: int, test: int, seed: int) -> Path:
    """The folder that `prepare` returns. Nothing is read or written. Raises ConfigError."""
    sizes = (("train", train, 1), ("val", val, 1), ("test", test, 1), ("seed", seed, 0))
    for key, value, minimum in sizes:
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise ConfigError(f"data.prepare.{key}={value}: expected an integer >= {minimum}")
    return Path(parent).expanduser() / f"scenes-{VERSION}-{train}x{val}x{test}-{seed}"


def _check(folder: Path, manifest: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    try:
        stored = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); {folder} is not a complete scenes dataset. "
            "Remove the folder to generate it again"
        ) from error
    if stored != manifest:
        raise DataError(
            f"{path}: contains {json.dumps(stored)}, expected {json.dumps(manifest)}. "
            f"Remove {folder} to generate it again, or pass data.root=ANOTHER_DIR"
        )


def _make(folder: Path, sizes: dict[str, int], seed: int, manifest: dict[str, Any]) -> None:
    """Write the dataset under a temporary name beside ``folder``, then rename it."""
    log.info("%s: generating the scenes dataset (once)", folder)
    with made_once(folder) as draft:
        samples = _draw(sizes, seed)
        _write_karpathy(draft, samples)
        _write_precomp(draft / "scenes_precomp", samples)
        _write_shards(draft / "wds", [p for p in samples if p.split == "train"])
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")


def _draw(sizes: dict[str, int], seed: int) -> list[RenderedScene]:
    """All samples: train, val, test."""
    viewer = RegionViewer(np.random.default_rng([VERSION, seed, 0]))
    used: set[Bag] = set()  # no two splits share a bag of attributes
    drawn: dict[str, list[RenderedScene]] = {}
    # Test first: it then does not depend on the sizes of the other splits.
    for stream, split in enumerate(("test", "val", "train"), start=1):
        rng = np.random.default_rng([VERSION, seed, stream])
        scenes = draw_scenes(sizes[split], rng, used)
        first = {"train": 0, "val": sizes["train"], "test": sizes["train"] + sizes["val"]}[split]
        indices = track(
            range(len(scenes)),
            f"drawing scenes: {split}",
            transient=True,
            disable=not PlainConsole().is_terminal,
        )
        drawn[split] = [_render(first, split, scenes, index, viewer, rng) for index in indices]
    return [*drawn["train"], *drawn["val"], *drawn["test"]]


def _render(
    first: int,
    split: str,
    scenes: list[Scene],
    index: int,
    viewer: RegionViewer,
    rng: np.random.Generator,
) -> RenderedScene:
    scene = scenes[index]
    matched = len(scenes) == 1 or bool(rng.random() >= MISMATCHED)
    other = (index + int(rng.integers(1, max(2, len(scenes))))) % len(scenes)
    return RenderedScene(
        number=first + index,
        split=split,
        scene=scene,
        captions=draw_captions(scene, CAPTIONS, rng),
        jpeg=draw_image(scene, rng),
        regions=viewer.draw_regions(scene, rng),
        raw=draw_raw(scene if matched else scenes[other], rng),
        raw_matched=matched,
        synthetic=draw_synthetic(scene, rng),
    )


# The layouts


def _write_karpathy(folder: Path, samples: list[RenderedScene]) -> None:
    (folder / "images").mkdir()
    images = []
    for sample in samples:
        name = f"{sample.key}.jpg"
        (folder / "images" / name).write_bytes(sample.jpeg)
        sentids = [CAPTIONS * sample.number + i for i in range(CAPTIONS)]
        sentences = [
            {"tokens": words_of(raw), "raw": raw, "imgid": sample.number, "sentid": sentid}
            for raw, sentid in zip(sample.captions, sentids, strict=True)
        ]
        images.append(
            {
                "filepath": "images",
                "filename": name,
                "imgid": sample.number,
                "cocoid": sample.number,
                "split": sample.split,
                "sentids": sentids,
                "sentences": sentences,
                "things": [describe(thing) for thing in sample.scene],
            }
        )
    text = json.dumps({"images": images, "dataset": "scenes"})
    (folder / "dataset_scenes.json").write_text(text, "utf-8")


def _write_precomp(folder: Path, samples: list[RenderedScene]) -> None:
    folder.mkdir()
    for split, name in PRECOMP_NAMES.items():
        chosen = [sample for sample in samples if sample.split == split]
        np.save(folder / f"{name}_ims.npy", np.stack([p.regions for p in chosen]))
        lines = [f"{caption}\n" for sample in chosen for caption in sample.captions]
        (folder / f"{name}_caps.txt").write_text("".join(lines), "utf-8")


def _write_shards(folder: Path, samples: list[RenderedScene]) -> None:
    folder.mkdir()
    for first in range(0, len(samples), PER_SHARD):
        path = folder / f"{first // PER_SHARD:05d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples[first : first + PER_SHARD]:
                meta = {
                    "key": sample.key,
                    "image_id": sample.number,
                    "raw": sample.raw,
                    "raw_matched": sample.raw_matched,
                    "synthetic_caption": sample.synthetic,
                }
                _add(tar, f"{sample.key}.jpg", sample.jpeg)
                _add(tar, f"{sample.key}.txt", sample.raw.encode())
                _add(tar, f"{sample.key}.json", json.dumps(meta).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # time and owner are 0, so that the bytes are reproducible
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
