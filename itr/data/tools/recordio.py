"""Reader for ALIP's MXNet RecordIO files (``NAME.rec`` with ``NAME.idx``), without MXNet.

A record holds a header with 154 labels and a JPEG. The labels are 77 ids of CLIP's vocabulary for
the text of the picture and 77 for its synthetic caption; the texts are decoded from them, as CLIP
cleans them (lower case). Such files are converted (``itr data convert``), not trained from.

File format: MXNet's ``dmlc/recordio.h`` and ``python/mxnet/recordio.py`` (IRHeader).
"""

from __future__ import annotations

import logging
import mmap
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from itr.data.config import DataConfig
from itr.data.layout import RECORDIO, data_root, is_junk
from itr.data.layouts.shards.samples import ShardSamples
from itr.data.packed_strings import PackedStrings
from itr.data.records import Split
from itr.data.splits import ROLES, resolve_split, roles_in
from itr.data.text.tokenizer_backends import WORD_END
from itr.data.text.tokenizer_files import (
    CLIP_FILE,
    CLIP_PACKAGE,
    byte_letters,
    read_tokenizer_files,
)
from itr.errors import ConfigError, DataError, first_of

log = logging.getLogger(__name__)

MAGIC = 0xCED7230A
FRAME, HEADER = struct.Struct("<II"), struct.Struct("<IfQQ")
LENGTH_BITS = 29  # of the second word of a frame; the other three say whether it is a part
TEXT_IDS = 77  # CLIP's context
EVERY = 30  # seconds between two lines of progress


class RawRecord(NamedTuple):
    """A record in a file: where its picture is, and its labels."""

    offset: int
    size: int
    labels: np.ndarray  # [n] float32


@dataclass(frozen=True)
class RecordIOLayout:
    """The ``.rec`` files of a folder, by split."""

    path: Path
    files: dict[str, list[Path]]
    decoder: str = "torchvision"
    notes: tuple[str, ...] = ()
    name: str = "recordio"
    kind: str = "pixels"

    def splits(self) -> list[str]:
        """The splits that have files."""
        return list(self.files)

    def read(self, split: str) -> Split:
        """All records of one split, with their texts decoded. Decodes no picture.

        Raises DataError that names the file for records of other labels or damaged files, and
        ConfigError if CLIP's vocabulary is not at hand.
        """
        key = resolve_split(split, self.splits(), str(self.path))
        paths, decode = self.files[key], _text_decoder(self.path)
        images: list[tuple[int, int]] = []
        shard_ids: list[int] = []
        texts: list[PackedStrings] = []
        left_out: Counter[str] = Counter()
        cut = 0
        for number, path in enumerate(paths):
            raw: list[str] = []
            second: list[str] = []
            before = len(images)
            for record in _records(path, left_out):
                labels = _two_texts(path, len(images) - before, record)
                one, two = map(decode, labels)
                if not one or not two:
                    left_out["without a text or a caption"] += 1
                    continue
                images.append((record.offset, record.size))
                cut += sum(int(ids[-1] != 0) for ids in labels)
                raw.append(one)
                second.append(two)
            shard_ids += [number] * (len(images) - before)
            texts += [PackedStrings.of(raw), PackedStrings.of(second)]
        if not images:
            raise DataError(f"{first_of([str(path) for path in paths])}: holds no record to read")
        return Split(
            key,
            self.name,
            _samples(paths, shard_ids, images, texts[::2], texts[1::2]),
            second=PackedStrings.joined(texts[1::2]),
            decoder=self.decoder,
            source=str(paths[0] if len(paths) == 1 else self.path),
            notes=_notes(self.path, left_out, cut),
        )


def find_recordio(data: DataConfig) -> RecordIOLayout | None:
    """The ``.rec`` files in ``data.root``, or None. A file whose name has no word for a split is of
    the training split."""
    root = data_root(data)
    files: dict[str, list[Path]] = {}
    for path in sorted(root.glob(RECORDIO)):
        if path.is_file() and not is_junk(path.name):
            roles = roles_in(path.stem)
            files.setdefault(min(roles, key=ROLES.index) if roles else "train", []).append(path)
    return RecordIOLayout(root, files, data.decoder) if files else None


def _samples(
    paths: Sequence[Path],
    shard_ids: list[int],
    images: list[tuple[int, int]],
    raw: list[PackedStrings],
    second: list[PackedStrings],
) -> ShardSamples:
    count = len(images)
    numbers = np.arange(count)
    keys = PackedStrings.of(f"{number:09d}" for number in range(count))
    return ShardSamples(
        paths=[str(path) for path in paths],
        shard_ids=np.array(shard_ids),
        images=np.array(images),
        ids=numbers,
        has_id=np.zeros(count, dtype=bool),
        caption_counts=np.ones(count, dtype=np.int64),
        text_ids=numbers,
        keys=keys,
        names=PackedStrings.of(f"{number:09d}.jpg" for number in range(count)),
        texts=PackedStrings.joined(raw),
        second=PackedStrings.joined(second),
    )


def _records(path: Path, left_out: Counter[str]) -> Iterator[RawRecord]:
    """The records of a file in order, and in ``left_out`` the number of others by reason."""
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty; copy it again")
    started = said = time.monotonic()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        position, number = 0, 0
        while position < len(content):
            part, start, length = _frame(path, content, position)
            position = start + length + (-length) % 4
            number += 1
            if part:  # the picture holds the magic word, and its parts do not follow each other
                left_out["in parts"] += part == 1
                continue
            record = _unpack(path, content, start, length)
            if record.size == 0:  # written by some tools as the first record: counts of the file
                left_out["without a picture"] += 1
                continue
            yield record
            if time.monotonic() - said > EVERY:
                said = time.monotonic()
                rest = (said - started) * (len(content) - position) / position
                log.info("%s: %d records read, about %d s left", path, number, rest)
    _compare_with_index(path, number)


def _frame(path: Path, content: mmap.mmap, position: int) -> tuple[int, int, int]:
    """The part (0: a whole record), first byte and length of the record at ``position``."""
    advice = "copy the file again"
    if position + FRAME.size > len(content):
        raise DataError(f"{path}: cut short within the record at byte {position}; {advice}")
    magic, word = FRAME.unpack_from(content, position)
    if magic != MAGIC:
        raise DataError(
            f"{path}: no record at byte {position} (expected {MAGIC:#x}, found {magic:#x}): not a "
            f"RecordIO file, or damaged; {advice}"
        )
    start, length = position + FRAME.size, word & ((1 << LENGTH_BITS) - 1)
    if start + length > len(content):
        raise DataError(f"{path}: cut short within the record at byte {position}; {advice}")
    return word >> LENGTH_BITS, start, length


def _unpack(path: Path, content: mmap.mmap, start: int, length: int) -> RawRecord:
    if length >= HEADER.size:
        count, label, _, _ = HEADER.unpack_from(content, start)
        taken = HEADER.size + 4 * count
        if taken <= length:
            labels = np.frombuffer(content[start + HEADER.size : start + taken], "<f4")
            labels = labels if count else np.array([label], dtype=np.float32)
            return RawRecord(start + taken, length - taken, labels)
    raise DataError(
        f"{path}: the record at byte {start} of {length} bytes has no header of MXNet's "
        "(IRHeader); expected files that MXNet's im2rec or recordio.pack wrote"
    )


def _two_texts(path: Path, number: int, record: RawRecord) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the text and of the caption. Raises DataError for other labels."""
    ids = record.labels.astype(np.int64)
    if len(ids) != 2 * TEXT_IDS or (ids != record.labels).any():
        raise DataError(
            f"{path}: record {number} has {len(ids)} labels; expected {2 * TEXT_IDS}, the ids of "
            "a text and of a caption, as ALIP writes them. Files with other labels hold no texts"
        )
    return ids[:TEXT_IDS], ids[TEXT_IDS:]


def _text_decoder(folder: Path) -> Callable[[np.ndarray], str]:
    """A function from ids [77] of CLIP's vocabulary to their text."""
    source = str(folder) if (folder / CLIP_FILE).is_file() else CLIP_PACKAGE
    try:
        tokens = read_tokenizer_files(source).tokens
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: the texts of .rec files are ids of CLIP's vocabulary, which is not at hand "
            f"({error}); run pip install open_clip_torch, or put {CLIP_FILE} into the folder"
        ) from error
    byte_of = {**byte_letters(), " ": 0x20}
    words = (token.replace(WORD_END, " ") for token in tokens[:-2])
    pieces = [bytes(byte_of[letter] for letter in word) for word in words]
    first, last = len(tokens) - 2, len(tokens) - 1

    def decode(ids: np.ndarray) -> str:
        values = ids.tolist()
        end = values.index(last) if last in values else len(values)
        inside = values[1:end] if values[0] == first else values[:end]
        if not all(0 <= value < first for value in inside):
            raise DataError(
                f"{folder}: a text holds the id {max(inside)}, which is not in CLIP's vocabulary "
                f"of {len(tokens)}; the files were written with another tokenizer"
            )
        text = b"".join(pieces[value] for value in inside).decode("utf-8", "replace")
        return text.strip()

    return decode


def _notes(path: Path, left_out: Counter[str], cut: int) -> tuple[str, ...]:
    notes = []
    if left_out.total():
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        notes.append(f"{path}: records left out: {reasons}")
    if cut:
        notes.append(f"{path}: {cut} texts fill all {TEXT_IDS} ids; their writer has cut them")
    return tuple(notes)


def _compare_with_index(path: Path, records: int) -> None:
    """Raise DataError if the ``.idx`` beside ``path`` lists more records than the file has."""
    index = path.with_suffix(".idx")
    if not index.is_file():
        return
    with index.open("rb") as file:
        listed = sum(1 for line in file if line.strip())
    if listed > records:
        raise DataError(
            f"{path}: holds {records} records, {index.name} lists {listed}: the file was cut at "
            "the end of a record; copy it again"
        )
