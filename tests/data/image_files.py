"""Small image datasets on disk, written by the tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image


def photo(width: int = 40, height: int = 30, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A smooth image with some noise, like a photo."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = [128 + 100 * np.sin(x * (i + 1) + y * (seed % 5 + 1)) for i in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def entry(number: int, split: str, captions=("a man", "a dog"), **fields) -> dict:
    """One image of Karpathy annotations."""
    return {
        "filename": f"{number:04d}.jpg",
        "imgid": number,
        "split": split,
        "sentences": [
            {"raw": caption, "sentid": 10 * number + index, "tokens": caption.split()}
            for index, caption in enumerate(captions)
        ],
        **fields,
    }


def write_karpathy(root: Path, entries: list[dict], name: str = "tiny", folder: str = "images"):
    """Write ``dataset_<name>.json`` and a JPEG per entry; the path of the annotations."""
    for number, image in enumerate(entries):
        path = root / folder / image.get("filepath", "") / image["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(seed=number)))
    path = root / f"dataset_{name}.json"
    path.write_text(json.dumps({"images": entries, "dataset": name}), encoding="utf-8")
    return path
