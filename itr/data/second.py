"""A second text of the same picture: a synthetic caption, or another human one.

It comes with the data set, from a file that gives one to each image, or (``other_caption``) is
another caption of the same image, drawn anew in every epoch.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from itr.data import chance
from itr.data.records import OTHER_CAPTION, Record, Split
from itr.data.samples import Samples
from itr.data.table_rows import ENDINGS, read_rows
from itr.data.text import Tokenizer, TokenTable, build_table
from itr.errors import ConfigError, DataError
from itr.view import View

SHOWN = 3
COLUMNS = (  # of a table that gives second texts: key, caption
    ("key", "image_id", "id", "image", "file", "file_name", "filename", "filepath"),
    ("synthetic_caption", "caption", "text"),
)


@dataclass
class SecondTexts:
    """The second texts of a split as token ids: one an image, or one a caption."""

    table: TokenTable
    split: Split

    def rows(self, seed: int, epoch: int, captions: np.ndarray) -> np.ndarray:
        """Which rows of ``table`` go with ``captions`` [B]; int64 [B].

        An image with one caption has no other: it comes twice.
        """
        images = self.split.text_to_image[captions]
        if self.split.second != OTHER_CAPTION:
            return images
        first, count = self.split.first_caption[images], self.split.captions_per_image[images]
        draws = chance.uniform(seed, epoch, chance.SECOND, captions)
        step = 1 + (draws * (count - 1)).astype(np.int64)  # 1 .. count - 1: never itself
        return first + (captions - first + step) % count


def open_second(
    split: Split, view: View, tokenizer: Tokenizer, cache: str | Path | None
) -> SecondTexts | None:
    """The second texts that ``view`` asks for; None if it asks for none.

    Raises ConfigError for a split that has none.
    """
    if view.second_text is None:
        return None
    if split.second is None:
        raise ConfigError(
            f"{split.source}: the model wants a second text of each image, and this data set has "
            f"none; type data.second_text={OTHER_CAPTION} (another caption of the image) or "
            "data.second_text=FILE (JSON: image id -> caption)"
        )
    texts = split.captions() if split.second == OTHER_CAPTION else list(split.second)
    return SecondTexts(build_table(tokenizer, texts, view.second_text, cache), split)


def join_second(path: Path, split: Split, max_broken: float) -> Split:
    """``split`` with a second text of each image from a file.

    The file is a JSON object key -> caption, or a table (.jsonl, .csv, .tsv, .parquet) with a
    column of each; a key is an image id, the name of the picture's file, or the key of a sample in
    shards. Raises DataError for a file that cannot be read and for images that it leaves out; of
    shards those are left out and counted, up to the share ``max_broken``.
    """
    found, keys = _joined(path, split.records)
    having = np.array([text is not None for text in found])
    second = [text for text in found if text is not None]
    if len(second) == len(found):
        return dataclasses.replace(split, second=second)
    samples, lost = split.records, np.flatnonzero(~having)
    tars = isinstance(samples, Samples)
    shown = [str(samples[n].extra["key"] if tars else samples[n].image_id) for n in lost[:SHOWN]]
    names = f"{'keys' if tars else 'ids'} {', '.join(shown)}{', ...' if len(lost) > SHOWN else ''}"
    told = f"{path}: no caption for {len(lost)} of {len(found)} images ({names})"
    if not isinstance(samples, Samples) or len(lost) > max_broken * len(found):
        more = f", more than data.max_broken={max_broken} allows" if tars else ""
        raise DataError(f"{told}{more}; its keys look like {', '.join(keys) or 'nothing'}")
    return dataclasses.replace(
        split,
        records=samples.only(having),
        second=second,
        notes=(*split.notes, f"{told}: left out"),
    )


def _names(record: Record) -> list[str]:
    """What a file may call the image of ``record``; the most telling comes last."""
    file = str(record.extra.get("file") or (record.image if isinstance(record.image, str) else ""))
    names = [str(record.image_id), Path(file).name, file, str(record.extra.get("key", ""))]
    return list(dict.fromkeys(name for name in names if name))


def _all_names(records: Sequence[Record]) -> Iterator[list[str]]:
    """`_names` of each record; samples of shards, of which there are many, are not made for it."""
    if not isinstance(records, Samples):
        yield from map(_names, records)
        return
    for number, file, key in zip(records.ids.tolist(), records.names, records.keys, strict=True):
        yield list(dict.fromkeys((str(number), Path(file).name, file, key)))


def _joined(path: Path, records: Sequence[Record]) -> tuple[list[str | None], list[str]]:
    """The text of each record (None: there is none), and the first keys of the file.

    Names are compared by their hashes, 8 bytes each: records may be millions.
    """
    hashes = array("q")
    places = array("q")
    for place, names in enumerate(_all_names(records)):
        for name in names:
            hashes.append(hash(name))
            places.append(place)
    order = np.argsort(np.array(hashes), kind="stable")
    known, owner = np.array(hashes)[order], np.array(places)[order]
    found: list[str | None] = [None] * len(records)
    shown: list[str] = []
    for key, text in _entries(path):
        if len(shown) < SHOWN:
            shown.append(key)
        first = int(np.searchsorted(known, hash(key)))
        while first < len(known) and known[first] == hash(key):
            found[int(owner[first])] = text
            first += 1
    return found, shown


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """(key, caption) of each entry of the file that has a caption."""
    if path.suffix.lower() in ENDINGS:
        columns: tuple[str, str] | None = None
        for where, row in read_rows(path):
            columns = columns or _columns(where, row)
            key, text = row.get(columns[0]), row.get(columns[1])
            if key not in (None, "") and isinstance(text, str) and text.strip():
                yield str(key), text.strip()
        return
    try:
        texts = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(
            f"data.second_text={path}: cannot be read ({error.strerror}); expected a file of "
            f"captions, or {OTHER_CAPTION}"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: no complete JSON ({error})") from error
    if not isinstance(texts, dict):
        raise DataError(f"{path}: holds a {type(texts).__name__}; expected image id -> caption")
    for key, text in texts.items():
        if isinstance(text, str) and text.strip():
            yield key, text.strip()


def _columns(where: str, row: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of key and caption."""
    chosen = [next((name for name in names if name in row), None) for names in COLUMNS]
    key, text = chosen
    if key is None or text is None:
        wanted = [names for names, own in zip(COLUMNS, chosen, strict=True) if own is None]
        raise DataError(
            f"{where}: has no column {' or '.join(wanted[0])}; its columns: {', '.join(row)}"
        )
    return key, text
