"""Picture files to uint8 tensors, as PIL's ``convert("RGB")`` sees them. H, W height, width.

JPEG and plain PNG go through torchvision, which releases the interpreter's lock and decodes into a
tensor; what it treats otherwise than PIL (CMYK, palettes, 16 bits, ...) and any other format go
through PIL. EXIF orientation is left alone, as the authors' code leaves it.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from itr.data.records import Slice
from itr.errors import DataError

JPEG, PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
PLAIN_PNG = ((8, 0), (8, 2))  # bit depth, colour type: grey and RGB


def read_bytes(image: int | str | Slice) -> bytes:
    """The encoded picture. Raises DataError, naming the file, if it cannot be read."""
    if isinstance(image, int):
        raise DataError(f"image {image} is a row of regions; expected a picture file")
    try:
        if isinstance(image, str):
            with open(image, "rb") as file:
                return file.read()
        with open(image.path, "rb") as file:
            file.seek(image.offset)
            return file.read(image.size)
    except OSError as error:
        raise DataError(f"{name_of(image)}: cannot be read ({error.strerror})") from error


def name_of(image: int | str | Slice) -> str:
    """What to call a picture in a message."""
    if isinstance(image, Slice):
        return f"{image.path}, {image.size} bytes from {image.offset}"
    return str(image)


def decode(data: bytes, name: str, decoder: str = "torchvision", alpha: bool = False) -> Tensor:
    """The picture in ``data``, uint8 [3, H, W]; with ``alpha`` [4, H, W] where it has one.

    Raises DataError that says ``name`` for anything that is no complete picture.
    """
    if not data:
        raise DataError(f"{name}: empty file; expected a picture")
    try:
        if decoder == "torchvision":
            found = _fast(data)
            if found is not None:
                return found
        return _pillow(data, alpha)
    except (OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{name}: no picture that can be decoded ({reason}; {len(data)} bytes); replace it, or "
            "remove it from the annotations"
        ) from error


def _fast(data: bytes) -> Tensor | None:
    """torchvision's decoding where it equals PIL's; None: left to PIL."""
    if data.startswith(JPEG):
        found = decode_jpeg(_tensor(data), mode=ImageReadMode.UNCHANGED)
        return None if found.shape[0] == 4 else found.expand(3, -1, -1)  # 4: CMYK
    if data.startswith(PNG) and tuple(data[24:26]) in PLAIN_PNG and b"tRNS" not in data[:1024]:
        return decode_png(_tensor(data), mode=ImageReadMode.RGB)
    return None


def _tensor(data: bytes) -> Tensor:
    with warnings.catch_warnings():  # the buffer is not writable; nobody writes
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(data, dtype=torch.uint8)


def _pillow(data: bytes, alpha: bool) -> Tensor:
    with Image.open(io.BytesIO(data)) as image:
        has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
        pixels = np.array(image.convert("RGBA" if alpha and has_alpha else "RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)
