"""Decodes image files to uint8 tensors, with the pixels of PIL's ``convert("RGB")``.

JPEG and plain PNG are decoded by torchvision, which releases the GIL and writes directly into a
tensor. PIL decodes all other formats, and images that torchvision converts differently (CMYK,
palettes, 16 bits, ...). EXIF orientation is ignored, as in the authors' code.
H, W: height and width.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itr.data.records import Slice
from itr.errors import DataError

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
PLAIN_PNG = ((8, 0), (8, 2))  # bit depth and color type: grayscale and RGB


def read_bytes(image: int | str | Slice) -> bytes:
    """The encoded image. Raises DataError, naming the file, if it cannot be read."""
    if isinstance(image, int):
        raise DataError(f"image {image} is a row of a region array; expected an image file")
    try:
        if isinstance(image, str):
            with open(image, "rb") as file:
                return file.read()
        with open(image.path, "rb") as file:
            file.seek(image.offset)
            return file.read(image.size)
    except OSError as error:
        raise DataError(f"{image_name(image)}: cannot be read ({error.strerror})") from error


def image_name(image: int | str | Slice) -> str:
    """The file, and position in it, of an image; for messages."""
    if isinstance(image, Slice):
        return f"{image.path}, {image.size} bytes from {image.offset}"
    return str(image)


def decode(data: bytes, name: str, decoder: str = "torchvision", alpha: bool = False) -> Tensor:
    """Decode ``data``: uint8 [3, H, W]; with ``alpha`` [4, H, W] if the image has an alpha channel.

    Raises DataError, naming ``name``, if ``data`` is not a complete image.
    """
    if not data:
        raise DataError(f"{name}: empty file; expected an image")
    try:
        if decoder == "torchvision":
            image = _torchvision(data)
            if image is not None:
                return image
        return _pillow(data, alpha)
    except (OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name}: cannot be decoded as an image ({reason}; {len(data)} bytes); replace the "
            "file, or remove it from the annotations"
        ) from error


def _torchvision(data: bytes) -> Tensor | None:
    """The image decoded by torchvision; None where its pixels would differ from PIL's."""
    from torchvision.io import ImageReadMode, decode_jpeg, decode_png  # slow to import

    if data.startswith(JPEG):
        image = decode_jpeg(_tensor(data), mode=ImageReadMode.UNCHANGED)
        return None if image.shape[0] == 4 else image.expand(3, -1, -1)  # 4: CMYK
    if data.startswith(PNG) and tuple(data[24:26]) in PLAIN_PNG and b"tRNS" not in data[:1024]:
        return decode_png(_tensor(data), mode=ImageReadMode.RGB)
    return None


def _tensor(data: bytes) -> Tensor:
    with warnings.catch_warnings():  # "the buffer is not writable": it is only read
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(data, dtype=torch.uint8)


def _pillow(data: bytes, alpha: bool) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        pixels = np.array(image.convert("RGBA" if alpha and has_alpha else "RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)
