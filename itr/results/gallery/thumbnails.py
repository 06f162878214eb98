"""Small copies of a split's pictures, for pages and tables."""

from __future__ import annotations

import base64
import dataclasses
import io
import re

import numpy as np
from PIL import Image

from itr.data.images.decode import decode, read_bytes
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.records import Record, Split
from itr.errors import UserError

SIDE = 224  # pixels of the longer side
QUALITY = 72


class Thumbnails:
    """Thumbnails by image number of ``split``; where the split holds regions, those that the data
    set keeps beside them, found by their captions (``missing`` says why there are none)."""

    def __init__(self, split: Split, data: DataConfig, name: str):
        self.decoder, self.missing = split.decoder, ""
        self.records: dict[int, Record] = dict(enumerate(split.records))
        if split.regions is None:
            return
        self.records = {}
        try:
            beside = open_split(dataclasses.replace(data, layout="auto"), name, "pixels")
        except UserError as error:
            self.missing = str(error)
            return
        self.decoder = beside.decoder
        share = len(split.records[0].captions)  # of more than these, regions have the first
        by_words = {_words(record, share): record for record in beside.records}
        for number, record in enumerate(split.records):
            if (found := by_words.get(_words(record, share))) is not None:
                self.records[number] = found
        if not self.records:
            self.missing = f"{beside.source}: none of its pictures has the captions of the regions"

    def get(self, image: int, side: int = SIDE) -> Image.Image | None:
        """The picture of image number ``image``, at most ``side`` pixels long; None if there is
        none or it cannot be read."""
        record = self.records.get(image)
        if record is None:
            return None
        try:
            pixels = decode(read_bytes(record.image), str(record.image), self.decoder)
        except UserError:
            return None
        picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        picture.thumbnail((side, side))
        return picture


def _words(record: Record, share: int) -> str:
    """The first captions of an image, whatever their order, case and punctuation: region files have
    ids of their own, and their captions were often cleaned."""
    first = record.captions[:share]
    plain = (re.sub(r"[^a-z0-9]+", " ", text.lower()).strip() for text in first)
    return "\n".join(sorted(plain))


def data_uri(picture: Image.Image) -> str:
    """``picture`` as a JPEG inside a URL, so that a page needs no other file."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def open_thumbnails(data: DataConfig, name: str, kind: str) -> tuple[Split, Thumbnails]:
    """The split ``name`` as it was evaluated, and its pictures. Raises as `open_split`."""
    split = open_split(data, name, kind)
    return split, Thumbnails(split, data, name)
