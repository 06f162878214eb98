"""Thumbnails of a split's images, for pages and tables."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re

import numpy as np
from PIL import Image

from itr.data.images.decode import decode, read_bytes
from itr.data.layouts.registry import DataConfig, open_split
from itr.data.records import Record, Split
from itr.errors import UserError

SIDE = 224  # pixels of the longer side
QUALITY = 72  # of the JPEG files


class Thumbnails:
    """Thumbnails by image index of ``split``.

    If the split holds region features, the dataset's image files are used, matched by their
    captions. ``missing`` says why there are none.
    """

    def __init__(self, split: Split, data: DataConfig, name: str):
        self.decoder, self.missing = split.decoder, ""
        self.records: dict[int, Record] = dict(enumerate(split.records))
        if split.regions is None:
            return
        self.records = {}
        try:
            pixels = open_split(dataclasses.replace(data, layout="auto"), name, "pixels")
        except UserError as error:
            self.missing = str(error)
            return
        self.decoder = pixels.decoder
        count = len(split.records[0].captions)  # region files have only the first captions
        by_captions = {_caption_key(record, count): record for record in pixels.records}
        for index, record in enumerate(split.records):
            if (match := by_captions.get(_caption_key(record, count))) is not None:
                self.records[index] = match
        if not self.records:
            self.missing = f"{pixels.source}: no image has the captions of the region features"

    def get(self, image: int, side: int = SIDE) -> Image.Image | None:
        """The image with this index, scaled to at most ``side`` pixels; None if it is missing or
        cannot be read."""
        record = self.records.get(image)
        if record is None:
            return None
        try:
            pixels = decode(read_bytes(record.image), str(record.image), self.decoder)
        except UserError:
            return None
        thumbnail = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
        thumbnail.thumbnail((side, side))
        return thumbnail


def _caption_key(record: Record, count: int) -> str:
    """The first ``count`` captions of an image, without order, case and punctuation: region files
    use other ids, and their captions were often cleaned."""
    first = record.captions[:count]
    plain = (re.sub(r"[^a-z0-9]+", " ", text.lower()).strip() for text in first)
    return "\n".join(sorted(plain))


def data_uri(image: Image.Image) -> str:
    """``image`` as a JPEG data URI, so that a page needs no other file."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def open_thumbnails(data: DataConfig, name: str, kind: str) -> tuple[Split, Thumbnails]:
    """The split ``name`` as it was evaluated, and its thumbnails. Raises as `open_split`."""
    split = open_split(data, name, kind)
    return split, Thumbnails(split, data, name)


def image_label(record: Record) -> str:
    """What an image is called: its file name, or its dataset id if it is inside another file."""
    if isinstance(record.image, str) and record.image:
        return os.path.basename(record.image)
    return f"image {record.image_id}"
