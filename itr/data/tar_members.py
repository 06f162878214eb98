"""The samples of an open tar: members with a common key, and what is wrong with them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

PICTURES = ("jpg", "jpeg", "png", "webp")
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
TAIL = 16  # bytes at the end of a JPEG in which its end mark has to stand


class Usable(NamedTuple):
    """What a sample holds."""

    key: str  # without folder and ending
    name: str  # of the picture's file
    offset: int  # where the picture begins
    size: int
    image_id: int  # -1: not known
    captions: list[str]
    caption_ids: list[int]  # -1: not known
    second: str  # empty: there is none


@dataclass
class Sample:
    """The members of one key."""

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)


class Broken(Exception):
    """A sample that cannot be used, and why."""


class Members:
    """The samples of an open tar; afterwards ``fault`` says what is wrong with the tar itself.

    `tarfile` ends without an error at a header that is damaged: where it stopped there has to be
    the block of zeros that ends a tar. The last sample before a fault is left out, too: it may
    lack members.
    """

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size, self.fault = file, size, ""

    def __iter__(self) -> Iterator[Sample]:
        sample, end = None, 0
        try:
            with tarfile.open(fileobj=self.file, mode="r:") as tar:
                for member in tar:
                    end = (
                        member.offset_data
                        + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    )
                    if not member.isfile():
                        continue
                    if member.offset_data + member.size > self.size:
                        self.fault = f"truncated inside {member.name}"
                        break
                    folder, _, name = member.name.rpartition("/")
                    stem, _, kind = name.partition(".")
                    key = f"{folder}/{stem}"
                    if sample is None or sample.key != key:
                        if sample is not None:
                            yield sample
                        sample = Sample(key)
                    sample.members[kind.lower()] = member
        except (tarfile.TarError, OSError, EOFError) as error:
            self.fault = f"no tar that can be read to its end ({error})"
        if not self.fault:
            self._look_at_end(end)
        if sample is not None and not self.fault:
            yield sample

    def _look_at_end(self, end: int) -> None:
        self.file.seek(end)
        block = self.file.read(tarfile.BLOCKSIZE)
        if block.strip(b"\0"):
            self.fault = f"damaged header at byte {end}"
        elif len(block) < tarfile.BLOCKSIZE:
            self.fault = f"ends at byte {end} without the zeros that close a tar: truncated?"


def usable(file: IO[bytes], sample: Sample, second_key: str) -> Usable:
    """What ``sample`` of the open tar ``file`` holds. Raises Broken if it cannot be used.

    ``.txt`` is the text; where the .json lists ``captions`` (with ``caption_ids``), those are.
    """
    kinds = [kind for kind in PICTURES if kind in sample.members]
    if not kinds:
        raise Broken("no picture")
    picture = sample.members[kinds[0]]
    _require_picture(file, picture)
    if "txt" not in sample.members:
        raise Broken("no .txt")
    text = _text(_content(file, sample.members["txt"]), "text that is not UTF-8")
    if not text:
        raise Broken("an empty text")
    meta = _meta(file, sample)
    other, number = meta.get(second_key), meta.get("image_id")
    if other is not None and (not isinstance(other, str) or not other.strip()):
        raise Broken(f"an empty {second_key}")
    captions, ids = meta.get("captions", [text]), meta.get("caption_ids")
    if not isinstance(captions, list) or not captions or not all(map(_is_text, captions)):
        raise Broken("captions that are no list of texts")
    if ids is None:
        ids = [-1] * len(captions)
    if not isinstance(ids, list) or len(ids) != len(captions) or not all(map(_is_id, ids)):
        raise Broken("caption_ids that do not fit the captions")
    key = sample.key.rpartition("/")[2]
    name = meta.get("file")
    return Usable(
        key,
        str(name) if _is_text(name) else f"{key}.{kinds[0]}",
        picture.offset_data,
        picture.size,
        number if isinstance(number, int) and _is_id(number) and number >= 0 else -1,
        [caption.strip() for caption in captions],
        ids,
        (other or "").strip(),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _meta(file: IO[bytes], sample: Sample) -> dict[str, Any]:
    if "json" not in sample.members:
        return {}
    try:
        meta = json.loads(_content(file, sample.members["json"]))
    except ValueError as error:
        raise Broken("JSON that cannot be read") from error
    if not isinstance(meta, dict):
        raise Broken("JSON that is no object")
    return meta


def _require_picture(file: IO[bytes], member: tarfile.TarInfo) -> None:
    """Raise Broken for a picture that is empty or a JPEG that was cut; nothing is decoded."""
    if member.size == 0:
        raise Broken("an empty picture")
    file.seek(member.offset_data)
    if file.read(len(JPEG_START)) != JPEG_START:
        return
    file.seek(member.offset_data + max(0, member.size - TAIL))
    if JPEG_END not in file.read(min(TAIL, member.size)):
        raise Broken("a truncated JPEG")


def _content(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def _text(content: bytes, fault: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Broken(fault) from error
