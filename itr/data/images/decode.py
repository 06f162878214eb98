"""Decodes image files to uint8 tensors, with the pixels of PIL's ``convert("RGB")``.

JPEG and plain PNG are decoded by torchvision, which releases the GIL and writes directly into a
tensor. PIL decodes all other formats, and images that torchvision converts differently (CMYK,
palettes, 16 bits, ...). EXIF orientation is ignored, as in the authors' code.
H, W: height and width.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import threading
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itr.data.parquet_images import ParquetImage, read_image
from itr.data.records import Slice
from itr.errors import DataError
from itr.files import open_regular

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
MAX_PIXELS = 100_000_000  # of an image: a kilobyte may declare more than memory holds
MAX_BYTES = 1 << 30  # of an encoded image
LARGE = 16_000_000  # pixels from which on images are decoded one at a time
NOT_READ = {"EPS"}  # formats that Pillow reads by running another program
_one_large = threading.Lock()
PLAIN_PNG = ((8, 0), (8, 2))  # bit depth and color type: grayscale and RGB


def read_bytes(image: int | str | Slice) -> bytes:
    """The encoded image. Raises DataError, naming the file, if it cannot be read."""
    if isinstance(image, int):
        raise DataError(f"image {image} is a row of a region array; expected an image file")
    if isinstance(image, ParquetImage):
        return read_image(image)
    try:
        path = image if isinstance(image, str) else image.path
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size if isinstance(image, str) else image.size
            if size > MAX_BYTES:
                raise OSError(errno.EFBIG, f"{size} bytes; expected at most {MAX_BYTES}")
            if isinstance(image, Slice):
                file.seek(image.offset)
            return file.read(size)
    except OSError as error:
        raise DataError(f"{image_name(image)}: cannot be read ({error.strerror})") from error


def image_name(image: int | str | Slice) -> str:
    """The file, and position in it, of an image; for messages."""
    if isinstance(image, ParquetImage):
        return f"{image.path}, row {image.offset}"
    if isinstance(image, Slice):
        return f"{image.path}, {image.size} bytes from {image.offset}"
    return str(image)


def decode(
    data: bytes,
    name: str,
    decoder: str = "torchvision",
    alpha: bool = False,
    on_white: bool = False,
) -> Tensor:
    """Decode ``data``: uint8 [3, H, W]; with ``alpha`` [4, H, W] if the image has an alpha channel.

    With ``on_white`` such an image is put on white; otherwise the channel is dropped.
    Raises DataError, naming ``name``, if ``data`` is not a complete image.
    """
    if not data:
        raise DataError(f"{name}: empty file; expected an image")
    try:
        pixels = declared_pixels(data)
        if pixels > MAX_PIXELS:
            raise ValueError(f"it declares {pixels:,} pixels, more than the limit {MAX_PIXELS:,}")
        with _one_large if pixels > LARGE else contextlib.nullcontext():
            if decoder == "torchvision":
                image = _torchvision(data)
                if image is not None:
                    return image
            return _pillow(data, alpha, on_white)
    # Decoders of damaged and forged files fail in many ways: struct.error, IndexError, ...
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
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


def not_an_image(path: str) -> str:
    """Why the file ``path`` is no image, by its header; empty if it is one. Decodes nothing."""
    try:
        with open_regular(path) as file, Image.open(file, formats=formats()):
            return ""
    except Exception as error:  # as in `decode`
        if isinstance(error, OSError) and error.strerror:
            return f"it cannot be read ({error.strerror})"
        return "no image format is recognized"


def declared_pixels(data: bytes) -> int:
    """Height x width as the header says; 0 if there is no header. Decodes nothing."""
    if data.startswith(PNG):
        return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
    if data.startswith(JPEG):
        return _jpeg_pixels(data)
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        return image.width * image.height


def has_palette(data: bytes) -> bool:
    """Whether PIL opens ``data`` with a palette or in black and white, which it resizes by taking
    the nearest pixel, whatever filter it is given."""
    if data.startswith(JPEG):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as image:
            return image.mode in ("P", "1")
    except Exception:  # `decode` says what is wrong
        return False


def _jpeg_pixels(data: bytes) -> int:
    """Largest height x width of the frame headers before the first scan."""
    position, largest = len(JPEG), 0
    while position + 9 <= len(data):
        if data[position] != 0xFF:  # padding, or damage: the decoder says so
            position += 1
            continue
        kind = data[position + 1]
        if kind == 0xDA:  # the scan: pixels follow
            break
        if kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD9:  # no length follows
            position += 1 if kind == 0xFF else 2
            continue
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = data[position + 5 : position + 7], data[position + 7 : position + 9]
            largest = max(largest, int.from_bytes(height) * int.from_bytes(width))
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    return largest


@functools.cache
def formats() -> list[str]:
    """The formats that Pillow may read: all but `NOT_READ`."""
    Image.init()
    return [name for name in Image.ID if name not in NOT_READ]


def _tensor(data: bytes) -> Tensor:
    with warnings.catch_warnings():  # "the buffer is not writable": it is only read
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(data, dtype=torch.uint8)


def _pillow(data: bytes, alpha: bool, on_white: bool = False) -> Tensor:
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        shown: Image.Image = image
        if on_white and has_alpha:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            shown = Image.alpha_composite(white, image.convert("RGBA"))
        pixels = np.array(shown.convert("RGBA" if alpha and has_alpha else "RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)
