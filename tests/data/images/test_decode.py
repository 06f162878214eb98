"""Decoding: what Pillow's convert("RGB") gives, whatever the file is."""

import io

import numpy as np
import pytest
from PIL import Image

from itr.data.images.decode import decode, image_name, read_bytes
from itr.data.records import Slice
from itr.errors import DataError
from tests.data.image_files import encoded, photo


def palette_with_transparency():
    image = photo(mode="P")
    image.info["transparency"] = 3
    return encoded(image, "PNG", transparency=3)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: the authors' code does not
    return encoded(photo(), exif=exif)


def bad_exif():
    """EXIF that is no TIFF: Pillow's parser raises a SyntaxError."""
    return encoded(photo(), "PNG", exif=b"Exif\0\0nonsense")


def sixteen_bit():
    pixels = (np.arange(30 * 40).reshape(30, 40) * 50).astype(np.uint16)
    return encoded(Image.fromarray(pixels), "PNG")


UNUSUAL = {
    "jpeg": lambda: encoded(photo()),
    "jpeg, full chroma": lambda: encoded(photo(), subsampling=0, quality=95),
    "jpeg, progressive": lambda: encoded(photo(), progressive=True),
    "grey jpeg": lambda: encoded(photo(mode="L")),
    "cmyk jpeg": lambda: encoded(photo(mode="CMYK")),
    "turned jpeg": turned,
    "jpeg, one pixel": lambda: encoded(photo(1, 1)),
    "jpeg, flat": lambda: encoded(photo(2000, 4)),
    "png": lambda: encoded(photo(), "PNG"),
    "png, malformed exif": bad_exif,
    "grey png": lambda: encoded(photo(mode="L"), "PNG"),
    "two colours": lambda: encoded(photo(mode="1"), "PNG"),
    "palette": lambda: encoded(photo(mode="P"), "PNG"),
    "palette with transparency": palette_with_transparency,
    "rgba": lambda: encoded(photo(mode="RGBA"), "PNG"),
    "grey with alpha": lambda: encoded(photo(mode="LA"), "PNG"),
    "16 bits": sixteen_bit,
    "webp": lambda: encoded(photo(), "WEBP", lossless=True),
    "gif": lambda: encoded(photo(mode="P"), "GIF"),
    "bmp": lambda: encoded(photo(), "BMP"),
}


@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
@pytest.mark.parametrize("kind", UNUSUAL)
def test_pixels_are_those_of_pillow(kind, decoder):
    data = UNUSUAL[kind]()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    found = decode(data, kind, decoder).permute(1, 2, 0).numpy()
    assert found.shape == expected.shape and found.dtype == np.uint8
    # Both decode JPEG with libjpeg-turbo, of versions that may round a colour differently.
    allowed = 1 if kind.endswith("jpeg") or kind.startswith("jpeg") else 0
    assert int(np.abs(found.astype(int) - expected).max()) <= allowed


def test_alpha_is_kept_only_where_it_is():
    clear = encoded(photo(mode="RGBA"), "PNG")
    assert decode(clear, "a", "torchvision", alpha=True).shape[0] == 4
    assert decode(palette_with_transparency(), "a", "pillow", alpha=True).shape[0] == 4
    for data in (encoded(photo()), encoded(photo(), "PNG"), encoded(photo(mode="P"), "PNG")):
        for decoder in ("torchvision", "pillow"):
            assert decode(data, "a", decoder, alpha=True).shape[0] == 3


@pytest.mark.parametrize("decoder", ["torchvision", "pillow"])
@pytest.mark.parametrize(
    "data",
    [b"", b"a man", encoded(photo())[:400], encoded(photo(), "PNG")[:700], b"\xff\xd8\xff\xe0"],
    ids=["empty", "text", "cut jpeg", "cut png", "head only"],
)
def test_what_is_no_picture_is_named(data, decoder):
    with pytest.raises(DataError, match="^some.jpg: "):
        decode(data, "some.jpg", decoder)


def test_pictures_are_read_from_files_and_from_inside_files(tmp_path):
    path = tmp_path / "many"
    path.write_bytes(b"before" + encoded(photo()) + b"after")
    place = Slice(str(path), 6, len(encoded(photo())))
    assert read_bytes(place) == encoded(photo()) and str(path) in image_name(place)
    assert read_bytes(str(path)).startswith(b"before")
    with pytest.raises(DataError, match="nowhere.jpg: cannot be read"):
        read_bytes(str(tmp_path / "nowhere.jpg"))
    with pytest.raises(DataError, match="is a row of"):
        read_bytes(3)
