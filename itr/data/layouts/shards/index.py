"""The index of one tar: byte ranges of images and all texts, built once and cached on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from itr.array_files import read_arrays
from itr.data.layouts.shards.members import TEXT
from itr.data.layouts.shards.tar import TarReader, TarSample, UnusableSample, parse_sample
from itr.data.packed_strings import PackedStrings
from itr.errors import DataError
from itr.files import atomic_write_or_warn, parse_json

log = logging.getLogger(__name__)

FORMAT = 4  # version of the cached files
STRINGS = ("keys", "names", "texts", "second")
ARRAYS = ("images", "ids", "counts", "text_ids")


@dataclass
class ShardIndex:
    """N usable samples of a tar with C captions, and what could not be used."""

    images: np.ndarray  # [N, 2] int64: offset and size of each image, in bytes
    ids: np.ndarray  # [N] int64: image_id of the .json; -1: none
    counts: np.ndarray  # [N] int64: captions per sample, usually 1
    text_ids: np.ndarray  # [C] int64: caption ids; -1: none
    keys: PackedStrings  # [N]
    names: PackedStrings  # [N]: image file names
    texts: PackedStrings  # [C]
    second: PackedStrings  # [N]: second texts; empty if there is none
    broken: dict[str, int] = field(default_factory=dict)  # reason -> samples left out
    examples: dict[str, str] = field(default_factory=dict)  # reason -> first such key
    fault: str = ""  # of the tar itself; the rest of it is not read
    unread: int = 0  # bytes that were not read because of the fault

    def __len__(self) -> int:
        return len(self.images)

    @property
    def has_second(self) -> np.ndarray:
        """Whether each sample has a second text, bool [N]."""
        return np.diff(self.second.offsets) > 0


def cached_index(path: Path, second_key: str, cache: str | Path) -> ShardIndex | None:
    """The index of the tar ``path`` in ``cache``; None if there is none or the tar changed."""
    return _load(_cache_file(path, second_key, cache))


def index_shard(path: Path, second_key: str, cache: str | Path | None = None) -> ShardIndex:
    """Build the index of the tar ``path`` and store it in ``cache``.

    The cache key contains the path, size and modification time. Raises DataError for a file that
    cannot be read.
    """
    file = None if cache is None else _cache_file(path, second_key, cache)
    try:
        index = _build(path, path.stat().st_size, second_key)
    except OSError as error:
        raise _unreadable(path, error) from error
    if file is not None:
        _save(file, index)
    return index


def _cache_file(path: Path, second_key: str, cache: str | Path) -> Path:
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    key = f"{FORMAT}\n{path.resolve()}\n{stat.st_size}\n{stat.st_mtime_ns}\n{second_key}"
    return Path(cache) / f"shard-{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror})")


def _build(path: Path, size: int, second_key: str) -> ShardIndex:
    samples: list[TarSample] = []
    broken: Counter[str] = Counter()
    examples: dict[str, str] = {}
    with path.open("rb") as file:
        reader = TarReader(file, size)
        groups = list(reader)
        needs_text = any(TEXT in members.members for members in groups)
        for members in groups:
            try:
                samples.append(parse_sample(file, members, second_key, needs_text))
            except UnusableSample as error:
                broken[str(error)] += 1
                examples.setdefault(str(error), members.key.strip("/"))
    return ShardIndex(
        images=np.array([(s.offset, s.size) for s in samples], np.int64).reshape(-1, 2),
        ids=np.array([s.image_id for s in samples], np.int64),
        counts=np.array([len(s.captions) for s in samples], np.int64),
        text_ids=np.array([number for s in samples for number in s.caption_ids], np.int64),
        keys=PackedStrings.of(s.key for s in samples),
        names=PackedStrings.of(s.name for s in samples),
        texts=PackedStrings.of(caption for s in samples for caption in s.captions),
        second=PackedStrings.of(s.second for s in samples),
        broken=dict(broken),
        examples=examples,
        fault=reader.fault,
        unread=reader.unread,
    )


def _load(path: Path) -> ShardIndex | None:
    try:
        file = read_arrays(path)
        rest = parse_json(file["rest"].tobytes())
        fields: dict[str, Any] = {key: file[key] for key in ARRAYS}
        for key in STRINGS:
            fields[key] = PackedStrings(file[f"{key}_block"], file[f"{key}_offsets"])
        return ShardIndex(**fields, **rest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s: damaged cache file; building the index again", path)
        return None


def _save(path: Path, index: ShardIndex) -> None:
    rest = {key: getattr(index, key) for key in ("broken", "examples", "fault", "unread")}
    arrays = {key: getattr(index, key) for key in ARRAYS}
    for key in STRINGS:
        strings = getattr(index, key)
        arrays |= {f"{key}_block": strings.block, f"{key}_offsets": strings.offsets}
    arrays["rest"] = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    atomic_write_or_warn(path, lambda file: np.savez(file, **arrays), "shard indexes")
