"""Files that are no pictures, and pictures that declare more than memory holds: one sentence."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from itr.data.checks.decodable import _check_decoding, _check_ends
from itr.data.images.decode import JPEG, PNG, declared_pixels, decode, not_an_image, read_bytes
from itr.data.records import Slice
from itr.errors import DataError
from tests.data.image_files import encoded, photo

pytestmark = pytest.mark.usefixtures("in_time")  # fails instead of hanging


def jpeg_bomb(side: int = 20_000) -> bytes:
    """A JPEG of one kilobyte that declares ``side`` x ``side`` pixels."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64)).save(out, "JPEG")
    data = out.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def png_bomb(side: int = 60_000) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        PNG
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10)))
        + chunk(b"IEND", b"")
    )


def tiff_bomb() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "TIFF")
    data = bytearray(out.getvalue())
    offset = struct.unpack_from("<I", data, 4)[0]
    for entry in range(struct.unpack_from("<H", data, offset)[0]):
        at = offset + 2 + 12 * entry
        if struct.unpack_from("<H", data, at)[0] in (256, 257):  # width and height
            struct.pack_into("<HI", data, at + 2, 4, 1)
            struct.pack_into("<I", data, at + 8, 50_000)
    return bytes(data)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) run\n"


@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (jpeg_bomb(), "400,000,000 pixels"),
        (png_bomb(), "3,600,000,000 pixels"),
        (tiff_bomb(), "pixels"),
        (EPS, "cannot identify"),
        (JPEG + b"\xff" * 1000, ""),
        (PNG, ""),
    ],
    ids=["jpeg", "png", "tiff", "eps", "jpeg without frame", "png without header"],
)
def test_forged_headers(data: bytes, words: str, decoder: str) -> None:
    with pytest.raises(DataError, match=f"x.jpg: cannot be decoded.*{words}") as refusal:
        decode(data, "x.jpg", decoder)
    assert "\n" not in str(refusal.value)


def test_the_size_is_read_from_the_header() -> None:
    image = photo(seed=1)
    for kind in ("JPEG", "PNG", "BMP"):
        assert declared_pixels(encoded(image, kind)) == image.width * image.height


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "absent", "zero byte"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "x.jpg")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = "/dev/zero"
    elif kind == "folder":
        os.mkdir(path)
    elif kind == "zero byte":
        path = "a\0b"
    for image in (path, Slice(path, 0, 1 << 40)):
        with pytest.raises(DataError, match="cannot be read"):
            read_bytes(image)
        assert _check_ends(image, "pillow") and _check_decoding(image, "pillow")
    assert not_an_image(path)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no space
    with pytest.raises(DataError, match="x.jpg: cannot be read"):
        read_bytes(str(path))
