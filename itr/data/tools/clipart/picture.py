"""A drawing's PNG file as a small JPEG picture on white."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

MAX_SIDE = 256  # pixels
MAX_PIXELS = 30_000_000
MIN_SIDE, MAX_ASPECT = 8, 8
BLANK = 2.0  # standard deviation of the gray values (0 to 255) below which nothing is seen
QUALITY = 90
MASKED = ("LA", "PA", "RGBA")


@dataclass(frozen=True)
class Picture:
    """A JPEG file's bytes, their digest, and a hash that similar pictures share."""

    jpeg: bytes
    digest: str
    looks: str  # difference hash, 16 x 16


def read_picture(path: Path) -> Picture | None:
    """The drawing, or None if it cannot be read or is blank, tiny, huge or very long."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE:
                    return None
                if max(width, height) / min(width, height) > MAX_ASPECT:
                    return None
                return _encode(_flatten(_shrink(_decoded(image))))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _decoded(image: Image.Image) -> Image.Image:
    if image.mode in ("P", "LA", "PA", "1", "I", "I;16"):
        return image.convert("RGBA")
    image.load()
    return image


def _shrink(image: Image.Image) -> Image.Image:
    """The longer side at most `MAX_SIDE`; large drawings are first reduced by a whole factor."""
    width, height = image.size
    longer = max(width, height)
    if longer <= MAX_SIDE:
        return image
    scale = MAX_SIDE / longer
    if longer > 6 * MAX_SIDE and image.mode in ("RGB", "RGBA", "L", "LA"):
        image = image.reduce(int(longer // (2 * MAX_SIDE)))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _flatten(image: Image.Image) -> Image.Image:
    """RGB on white."""
    if image.mode in MASKED or (image.mode in ("P", "L", "1") and "transparency" in image.info):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _encode(image: Image.Image) -> Picture | None:
    gray = image.convert("L")
    if np.asarray(gray, np.float32).std() < BLANK:
        return None
    small = np.asarray(gray.resize((17, 16), Image.Resampling.BOX), np.int16)
    looks = np.packbits(small[:, 1:] > small[:, :-1] + 2).tobytes().hex()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    jpeg = buffer.getvalue()
    return Picture(jpeg, hashlib.sha1(jpeg).hexdigest(), looks)
