"""Reads the samples of a tar: validates their members and finds damage."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from PIL import Image

from itr.data.captions import whole_characters
from itr.data.ids import whole_number
from itr.data.image_files import image_extensions
from itr.data.layouts.shards.members import TEXT, Grouping, SampleMembers
from itr.files import parse_json

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
TAIL = 16  # the end marker of a JPEG must be within its last bytes
BLOCK = tarfile.BLOCKSIZE
# A tar ends with two blocks of zeros, padded to a full record: fewer bytes than this.
END_PADDING = 2 * BLOCK + tarfile.RECORDSIZE
CHUNK = 1 << 20  # bytes read at a time while skipping zeros
MAX_HEADER = 1 << 20  # bytes of a long name or of a pax header; paths have 4096
EXTENDED = (  # types of members that describe the next one
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
InvalidHeader: type[Exception] = tarfile.InvalidHeaderError  # type: ignore[attr-defined]
LONG_NUMBER = re.compile(rb"[0-9]{256}")
CAPTION_KEYS = ("caption", "text")  # of the .json of a sample without .txt
MAX_TEXT = 1 << 24  # bytes of a .txt or .json


class TarSample(NamedTuple):
    """The contents of a usable sample."""

    key: str  # without folder and extension
    name: str  # image file name
    offset: int  # of the image, in bytes
    size: int
    image_id: int  # -1: unknown
    captions: list[str]
    caption_ids: list[int]  # -1: unknown
    second: str  # second text; empty if there is none


class UnusableSample(Exception):
    """A sample that cannot be used; the message is the reason."""


class _Member(tarfile.TarInfo):
    """A header whose sizes are checked before `tarfile` acts on them.

    A negative size would make it step back for ever (CVE-2025-8194), long digits in a pax header
    would keep it busy for minutes (CVE-2024-6232), and a long header would be read into memory.
    """

    def _block(self, count: int) -> int:
        if count < 0:
            raise InvalidHeader(f"a size of {count} bytes")
        return super()._block(count)  # type: ignore[misc]

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED:
            if self.size > MAX_HEADER:
                raise InvalidHeader(f"a header of {self.size} bytes")
            file, position = tar.fileobj, tar.fileobj.tell()
            if LONG_NUMBER.search(file.read(self._block(self.size))):
                raise InvalidHeader("a number of too many digits")
            file.seek(position)
        return super()._proc_member(tar)  # type: ignore[misc]


class TarReader:
    """Iterates over the samples of an open tar.

    After the iteration, ``fault`` describes damage of the tar itself (empty if there is none) and
    ``unread`` is the number of bytes that were not read because of it.

    `tarfile` stops without an error at a damaged header and at zeros. This reader therefore checks
    that the last member is followed by the end-of-archive zeros, and then by nothing or by another
    tar (``cat a.tar b.tar``), which is read as well. The last sample before a fault is left out,
    since members may be missing.
    """

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size, self.fault, self.unread = file, size, "", 0

    def __iter__(self) -> Iterator[SampleMembers]:
        grouping = Grouping()
        for member in self._members():
            if member.isfile():
                grouping.add(member)
        yield from grouping.samples(cut=bool(self.fault))

    def _members(self) -> Iterator[tarfile.TarInfo]:
        begin: int | None = 0
        while begin is not None:
            self.file.seek(begin)
            end = begin
            try:
                with tarfile.open(fileobj=self.file, mode="r:", tarinfo=_Member) as tar:
                    for member in tar:
                        past_end = member.offset_data + member.size > self.size
                        if past_end and not member.issparse():  # a sparse one is as large as told
                            self._set_fault(f"truncated inside {member.name}", member.offset)
                            return
                        end = tar.offset
                        yield member
            # Headers of a damaged or forged tar make tarfile fail in many ways: ValueError,
            # IndexError, RecursionError (a chain of headers), ...
            except Exception as error:
                reason = str(error) or type(error).__name__
                self._set_fault(f"cannot be read to its end ({reason:.80})", end)
                return
            begin = self._next_tar(begin, end)

    def _next_tar(self, start: int, end: int) -> int | None:
        """Offset of a tar concatenated to the one at ``start``, whose members end at ``end``.

        None if there is no other tar. Records a fault if the tar does not end as it should.
        """
        self.file.seek(end)
        first = self.file.read(BLOCK)
        if first.strip(b"\0"):
            self._set_fault(f"damaged header at byte {end}", end)
        elif len(first) < BLOCK:
            self._set_fault(f"ends at byte {end} without the end-of-archive zeros: truncated?", end)
        else:
            begin = self._zeros_end(end)
            # Two blocks, or as many as fill a record. Other lengths are a hole in the file.
            closed = begin - end == 2 * BLOCK or (begin - start) % tarfile.RECORDSIZE == 0
            if begin < self.size and closed and self._is_header(begin):
                return begin
            if begin < self.size or begin - end >= END_PADDING:
                self._set_fault(f"a hole: only zeros from byte {end} to {begin}", end)
        return None

    def _zeros_end(self, begin: int) -> int:
        """Offset of the first block from ``begin`` on that is not all zeros, or of the file end."""
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

    def _set_fault(self, fault: str, read: int) -> None:
        self.fault, self.unread = fault, self.size - read


def parse_sample(
    file: IO[bytes], sample: SampleMembers, second_key: str, needs_text: bool = False
) -> TarSample:
    """Read ``sample`` of the open tar ``file``. Raises UnusableSample with the reason.

    The caption is ``.txt``, unless the .json lists ``captions`` (with ``caption_ids``) or is a list
    of captions. Without a ``.txt``, it is ``caption`` or ``text`` of the .json,
    unless the tar ``needs_text``: other samples have one.
    """
    if sample.fault:
        raise UnusableSample(sample.fault)
    extensions = image_extensions()
    candidates = [extension for extension in sample.members if extension in extensions]
    if not candidates:
        others = ", ".join(sorted(sample.members.keys() - {TEXT, "json"}))
        raise UnusableSample(f"no image (but {others})" if others else "no image")
    extension = min(candidates, key=extensions.__getitem__)
    image = sample.members[extension]
    if any(member.issparse() for member in sample.members.values()):
        raise UnusableSample("a sparse member")
    _require_image(file, image)
    meta = _read_json(file, sample)
    second, image_id = meta.get(second_key), meta.get("image_id")
    if second is not None and (not isinstance(second, str) or not second.strip()):
        raise UnusableSample(f"an empty {second_key}")
    captions, ids = _captions(file, sample, meta, needs_text), meta.get("caption_ids")
    if ids is None:
        ids = [-1] * len(captions)
    if not isinstance(ids, list) or len(ids) != len(captions):
        raise UnusableSample("caption_ids that do not fit the captions")
    key = sample.key.rpartition("/")[2]
    name = meta.get("file")
    return TarSample(
        key,
        whole_characters(str(name)) if _is_text(name) else f"{key}.{extension}",
        image.offset_data,
        image.size,
        max(-1, _number_or(-1, image_id)),
        [caption.strip() for caption in captions],
        [_number_or(-1, number) for number in ids],
        (second or "").strip(),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _number_or(default: int, value: Any) -> int:
    """``value`` if it is a number of 64 bits. Ids that are text are not kept: the key is a name."""
    number = whole_number(value)
    return default if number is None else number


def _read_json(file: IO[bytes], sample: SampleMembers) -> dict[str, Any]:
    if "json" not in sample.members:
        return {}
    try:
        meta = parse_json(_read_member(file, sample.members["json"]))
    except (ValueError, RecursionError) as error:
        raise UnusableSample("invalid JSON") from error
    if isinstance(meta, list) and meta and all(map(_is_text, meta)):
        return {"captions": meta}
    if not isinstance(meta, dict):
        raise UnusableSample("JSON that is not an object")
    return meta


def _captions(
    file: IO[bytes], sample: SampleMembers, meta: dict[str, Any], needs_text: bool
) -> list[str]:
    """The captions of a sample. Raises UnusableSample if there are none."""
    captions = meta.get("captions")
    if TEXT in sample.members:
        text = _decode_text(_read_member(file, sample.members[TEXT]), "text that is not UTF-8")
        if not text:
            raise UnusableSample("an empty text")
        captions = [text] if captions is None else captions
    elif needs_text:
        raise UnusableSample("no .txt")
    elif captions is None:
        captions = next((meta[key] for key in CAPTION_KEYS if meta.get(key) is not None), None)
        if captions is None:
            raise UnusableSample("no .txt")
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not captions or not all(map(_is_text, captions)):
        raise UnusableSample("captions that are not a list of texts")
    return captions


def _require_image(file: IO[bytes], member: tarfile.TarInfo) -> None:
    """Raise UnusableSample for an empty image or a truncated JPEG.

    Only a JPEG without an end mark in its last bytes is decoded.
    """
    if member.size == 0:
        raise UnusableSample("an empty image")
    file.seek(member.offset_data)
    if file.read(len(JPEG_START)) != JPEG_START:
        return
    file.seek(member.offset_data + max(0, member.size - TAIL))
    if JPEG_END in file.read(min(TAIL, member.size)):
        return
    file.seek(member.offset_data)  # phones and copy programs append bytes: decode it
    try:
        with Image.open(io.BytesIO(file.read(member.size))) as image:
            image.load()
    except Exception as error:  # noqa: BLE001  Pillow raises many types
        raise UnusableSample("a truncated JPEG") from error


def _read_member(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_TEXT:
        raise UnusableSample(f"a text or JSON of more than {MAX_TEXT >> 20} MiB")
    file.seek(member.offset_data)
    return file.read(member.size)


def _decode_text(content: bytes, fault: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UnusableSample(fault) from error
