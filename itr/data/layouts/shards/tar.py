"""The samples of an open tar: members with a common key, and what is wrong with them."""

from __future__ import annotations

import functools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from PIL import Image

USUAL = ("jpg", "jpeg", "png", "webp")  # pictures that are taken first where a sample has several
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
TAIL = 16  # bytes at the end of a JPEG in which its end mark has to stand
BLOCK = tarfile.BLOCKSIZE
CLOSING = 2 * BLOCK + tarfile.RECORDSIZE  # zeros that close a tar are fewer: two blocks, filled up
CHUNK = 1 << 20  # bytes of zeros that are looked through at a time


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
    """The samples of an open tar; afterwards ``fault`` says what is wrong with the tar itself, and
    ``unread`` how many of its bytes were not read for that.

    `tarfile` ends without an error at a header that is damaged, and at zeros. Behind the last
    member there have to be the few zeros that close a tar, and then nothing, or another tar
    (``cat a.tar b.tar``), which is read, too. The last sample before a fault is left out: it may
    lack members.
    """

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size, self.fault, self.unread = file, size, "", 0

    def __iter__(self) -> Iterator[Sample]:
        sample = None
        for member in self._members():
            if not member.isfile():
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, kind = name.partition(".")
            key = f"{folder}/{stem}"
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = Sample(key)
            sample.members[kind.lower()] = member
        if sample is not None and not self.fault:
            yield sample

    def _members(self) -> Iterator[tarfile.TarInfo]:
        begin: int | None = 0
        while begin is not None:
            self.file.seek(begin)
            end = begin
            try:
                with tarfile.open(fileobj=self.file, mode="r:") as tar:
                    for member in tar:
                        if member.offset_data + member.size > self.size:
                            self._say(f"truncated inside {member.name}", member.offset)
                            return
                        end = tar.offset
                        yield member
            except (tarfile.TarError, OSError, EOFError) as error:
                self._say(f"no tar that can be read to its end ({error})", end)
                return
            begin = self._behind(begin, end)

    def _behind(self, start: int, end: int) -> int | None:
        """Where the next tar begins behind the one from ``start`` whose members end at ``end``;
        None: there is none."""
        self.file.seek(end)
        first = self.file.read(BLOCK)
        if first.strip(b"\0"):
            self._say(f"damaged header at byte {end}", end)
        elif len(first) < BLOCK:
            self._say(f"ends at byte {end} without the zeros that close a tar: truncated?", end)
        else:
            begin = self._zeros_end(end)
            # Two blocks, or as many as fill a record; other zeros are a hole.
            closed = begin - end == 2 * BLOCK or (begin - start) % tarfile.RECORDSIZE == 0
            if begin < self.size and closed and self._is_header(begin):
                return begin
            if begin < self.size or begin - end >= CLOSING:
                self._say(f"a hole: nothing but zeros from byte {end} to {begin}", end)
        return None

    def _zeros_end(self, begin: int) -> int:
        """The first block from ``begin`` on that is not all zeros, or the end of the file."""
        self.file.seek(begin)
        while chunk := self.file.read(CHUNK):
            if rest := chunk.lstrip(b"\0"):
                return begin + (len(chunk) - len(rest)) // BLOCK * BLOCK
            begin += len(chunk)
        return begin

    def _is_header(self, begin: int) -> bool:
        self.file.seek(begin)
        try:
            tarfile.TarInfo.frombuf(self.file.read(BLOCK), tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError:
            return False
        return True

    def _say(self, fault: str, read: int) -> None:
        self.fault, self.unread = fault, self.size - read


@functools.cache
def picture_endings() -> dict[str, int]:
    """Endings of pictures that Pillow reads, without dot -> rank; the usual ones come first."""
    known = Image.registered_extensions()
    readable = {ending.lstrip(".") for ending, name in known.items() if name in Image.OPEN}
    return {ending: rank for rank, ending in enumerate((*USUAL, *sorted(readable - set(USUAL))))}


def usable(file: IO[bytes], sample: Sample, second_key: str) -> Usable:
    """What ``sample`` of the open tar ``file`` holds. Raises Broken if it cannot be used.

    ``.txt`` is the text; where the .json lists ``captions`` (with ``caption_ids``), those are.
    """
    endings = picture_endings()
    kinds = [kind for kind in sample.members if kind in endings]
    if not kinds:
        raise Broken("no picture")
    kind = min(kinds, key=endings.__getitem__)
    picture = sample.members[kind]
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
        str(name) if _is_text(name) else f"{key}.{kind}",
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
