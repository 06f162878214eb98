"""What one tar holds: where each picture lies and its texts, listed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.layouts.shards.packed_strings import PackedStrings
from itr.data.layouts.shards.tar import Broken, Members, Usable, usable
from itr.errors import DataError
from itr.files import atomic_write_or_warn

log = logging.getLogger(__name__)

FORMAT = 3  # of the lists on disk
STRINGS = ("keys", "names", "texts", "second")
ARRAYS = ("images", "ids", "counts", "text_ids")


@dataclass
class ShardList:
    """N usable samples with C captions of a tar, and what else there was."""

    images: np.ndarray  # [N, 2] int64: where a picture begins, and its bytes
    ids: np.ndarray  # [N] int64: image_id of the .json; -1: none
    counts: np.ndarray  # [N] int64: captions of each; one, as a rule
    text_ids: np.ndarray  # [C] int64: caption ids; -1: none
    keys: PackedStrings  # [N]
    names: PackedStrings  # [N]: of the pictures' files
    texts: PackedStrings  # [C]
    second: PackedStrings  # [N]: empty strings where there is none
    broken: dict[str, int] = field(default_factory=dict)  # reason -> samples left out
    examples: dict[str, str] = field(default_factory=dict)  # reason -> the first such key
    fault: str = ""  # of the tar itself; what follows it is not read
    unread: int = 0  # bytes that were not read because of it

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_second(self) -> np.ndarray:
        """Whether each sample has a second text, bool [N]."""
        return np.diff(self.second.offsets) > 0


def kept_list(path: Path, second_key: str, cache: str | Path) -> ShardList | None:
    """The list of the tar ``path`` that lies in ``cache``; None: none does, or the tar changed."""
    return _read(_place(path, second_key, cache))


def list_shard(path: Path, second_key: str, cache: str | Path | None = None) -> ShardList:
    """The list of the tar ``path``, made now; kept in ``cache`` by path, size and time of change.

    Raises DataError for a file that cannot be read.
    """
    place = None if cache is None else _place(path, second_key, cache)
    try:
        made = _make(path, path.stat().st_size, second_key)
    except OSError as error:
        raise _unreadable(path, error) from error
    if place is not None:
        _write(place, made)
    return made


def _place(path: Path, second_key: str, cache: str | Path) -> Path:
    """Where the list of the tar ``path``, as it is now, is kept."""
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    key = f"{FORMAT}\n{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{second_key}"
    return Path(cache) / f"shard-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror})")


def _make(path: Path, size: int, second_key: str) -> ShardList:
    found: list[Usable] = []
    broken: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with path.open("rb") as file:
        members = Members(file, size)
        for sample in members:
            try:
                found.append(usable(file, sample, second_key))
            except Broken as error:
                broken[str(error)] += 1
                examples.setdefault(str(error), sample.key.strip("/"))
    return ShardList(
        images=np.array([(s.offset, s.size) for s in found], np.int64).reshape(-1, 2),
        ids=np.array([s.image_id for s in found], np.int64),
        counts=np.array([len(s.captions) for s in found], np.int64),
        text_ids=np.array([number for s in found for number in s.caption_ids], np.int64),
        keys=PackedStrings.of(s.key for s in found),
        names=PackedStrings.of(s.name for s in found),
        texts=PackedStrings.of(caption for s in found for caption in s.captions),
        second=PackedStrings.of(s.second for s in found),
        broken=dict(broken),
        examples=examples,
        fault=members.fault,
        unread=members.unread,
    )


# The list on disk


def _read(path: Path) -> ShardList | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            rest = json.loads(file["rest"].tobytes())
            parts: dict[str, Any] = {key: file[key] for key in ARRAYS}
            for key in STRINGS:
                parts[key] = PackedStrings(file[f"{key}_block"], file[f"{key}_offsets"])
            return ShardList(**parts, **rest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        log.warning("%s: damaged; made again", path)
        return None


def _write(path: Path, made: ShardList) -> None:
    rest = {"broken": made.broken, "examples": made.examples, "fault": made.fault}
    rest["unread"] = made.unread
    arrays = {key: getattr(made, key) for key in ARRAYS}
    for key in STRINGS:
        strings = getattr(made, key)
        arrays |= {f"{key}_block": strings.block, f"{key}_offsets": strings.offsets}
    arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    atomic_write_or_warn(
        path, lambda file: np.savez(file, **arrays), "the samples listed in a shard"
    )
