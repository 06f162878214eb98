"""What one tar holds: where each picture lies and its texts, listed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from itr.data.strings import Strings
from itr.errors import DataError

log = logging.getLogger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
TAIL = 16  # bytes at the end of a JPEG in which its end mark has to stand
FORMAT = 1  # of the lists on disk


@dataclass
class ShardList:
    """N usable samples of a tar, and what else there was."""

    images: np.ndarray  # [N, 2] int64: where a picture begins, and its bytes
    ids: np.ndarray  # [N] int64: image_id of the .json; -1: none
    texts: Strings
    second: Strings  # empty strings where there is none
    broken: dict[str, int] = field(default_factory=dict)  # reason -> samples left out
    fault: str = ""  # of the tar itself; what follows it is not read

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_second(self) -> np.ndarray:
        """Whether each sample has a second text, bool [N]."""
        return np.diff(self.second.offsets) > 0

    def only(self, keep: np.ndarray) -> ShardList:
        """The samples where ``keep`` [N] is True."""
        places = np.flatnonzero(keep).tolist()
        texts, second = ([part[n] for n in places] for part in (self.texts, self.second))
        chosen = (self.images[keep], self.ids[keep], Strings.of(texts), Strings.of(second))
        return ShardList(*chosen, self.broken, self.fault)


@dataclass
class _Sample:
    """The members of one key."""

    key: str
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)


class _Broken(Exception):
    """A sample that cannot be used, and why."""


def list_shard(path: Path, second_key: str, cache: str | Path | None = None) -> ShardList:
    """The list of the tar ``path``; kept in ``cache`` by path, size and time of change."""
    kept = None
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if cache is not None:
        key = f"{FORMAT}\n{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{second_key}"
        kept = Path(cache) / f"shard-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        if (found := _read(kept)) is not None:
            return found
    made = _make(path, stat.st_size, second_key)
    if kept is not None:
        _write(kept, made)
    return made


def _make(path: Path, size: int, second_key: str) -> ShardList:
    places, ids, texts, second = [], [], [], []
    broken: Counter[str] = Counter()
    with path.open("rb") as file:
        members = _Members(file, size)
        for sample in members:
            try:
                place, number, text, other = _usable(file, sample, second_key)
            except _Broken as error:
                broken[str(error)] += 1
                continue
            places.append(place)
            ids.append(number)
            texts.append(text)
            second.append(other)
    return ShardList(
        images=np.array(places, np.int64).reshape(-1, 2),
        ids=np.array(ids, np.int64),
        texts=Strings.of(texts),
        second=Strings.of(second),
        broken=dict(broken),
        fault=members.fault,
    )


class _Members:
    """The samples of an open tar; afterwards ``fault`` says what is wrong with the tar itself.

    `tarfile` ends without an error at a header that is damaged: where it stopped there has to be
    the block of zeros that ends a tar. The last sample before a fault is left out, too: it may
    lack members.
    """

    def __init__(self, file: IO[bytes], size: int):
        self.file, self.size, self.fault = file, size, ""

    def __iter__(self) -> Iterator[_Sample]:
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
                        sample = _Sample(key)
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


def _usable(
    file: IO[bytes], sample: _Sample, second_key: str
) -> tuple[tuple[int, int], int, str, str]:
    """Place of the picture, image id, text and second text (empty: there is none)."""
    picture = next((sample.members[kind] for kind in PICTURES if kind in sample.members), None)
    if picture is None:
        raise _Broken("no picture")
    _require_picture(file, picture)
    if "txt" not in sample.members:
        raise _Broken("no .txt")
    text = _text(_content(file, sample.members["txt"]), "text that is not UTF-8")
    if not text:
        raise _Broken("an empty text")
    meta = _meta(file, sample)
    other, number = meta.get(second_key), meta.get("image_id")
    if other is not None and (not isinstance(other, str) or not other.strip()):
        raise _Broken(f"an empty {second_key}")
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        number = -1
    return (picture.offset_data, picture.size), number, text, (other or "").strip()


def _meta(file: IO[bytes], sample: _Sample) -> dict[str, Any]:
    if "json" not in sample.members:
        return {}
    try:
        meta = json.loads(_content(file, sample.members["json"]))
    except ValueError as error:
        raise _Broken("JSON that cannot be read") from error
    if not isinstance(meta, dict):
        raise _Broken("JSON that is no object")
    return meta


def _require_picture(file: IO[bytes], member: tarfile.TarInfo) -> None:
    """Raise _Broken for a picture that is empty or a JPEG that was cut; nothing is decoded."""
    if member.size == 0:
        raise _Broken("an empty picture")
    file.seek(member.offset_data)
    if file.read(len(JPEG_START)) != JPEG_START:
        return
    file.seek(member.offset_data + max(0, member.size - TAIL))
    if JPEG_END not in file.read(min(TAIL, member.size)):
        raise _Broken("a truncated JPEG")


def _content(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    return file.read(member.size)


def _text(content: bytes, fault: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise _Broken(fault) from error


# The list on disk


def _read(path: Path) -> ShardList | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            rest = json.loads(file["rest"].tobytes())
            return ShardList(
                file["images"],
                file["ids"],
                Strings(file["text_block"], file["text_offsets"]),
                Strings(file["second_block"], file["second_offsets"]),
                **rest,
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        log.warning("%s: damaged; made again", path)
        return None


def _write(path: Path, made: ShardList) -> None:
    """Written under a temporary name, then renamed: two jobs may do so at once."""
    rest = {"broken": made.broken, "fault": made.fault}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                np.savez(
                    file,
                    images=made.images,
                    ids=made.ids,
                    text_block=made.texts.block,
                    text_offsets=made.texts.offsets,
                    second_block=made.second.block,
                    second_offsets=made.second.offsets,
                    rest=np.frombuffer(json.dumps(rest).encode(), np.uint8),
                )
                file.close()
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: the list of a shard is not kept (%s)", path, error)
