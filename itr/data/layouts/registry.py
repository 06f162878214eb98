"""Finds the layout of a data set on disk and opens its splits.

Of several layouts in one folder the first of `ORDER` that the model can read is taken;
``data.layout=`` chooses. Where a synthetic caption is wanted, what holds one comes first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from itr.data.config import DECODERS, DataConfig
from itr.data.layout import Place, listing, root_of
from itr.data.layouts import (
    albef_lists,
    coco,
    karpathy,
    pair_table,
    precomp,
    precomp_layout,
    vilt_arrow,
)
from itr.data.layouts.noisy_pairs import mismatch
from itr.data.layouts.second_text_file import join_second
from itr.data.layouts.shards import reader
from itr.data.records import OTHER_CAPTION, Record, Split
from itr.errors import ConfigError, DataError
from itr.instantiate import nearest
from itr.plugins import layout_modules

__all__ = ["KINDS", "LAYOUTS", "DataConfig", "open_split", "find_layouts", "require_enough_shards"]

FINDERS: dict[str, Callable[[DataConfig], Place | None]] = {
    "precomp": precomp_layout.find,
    "karpathy": karpathy.find,
    "lists": albef_lists.find,
    "coco": coco.find,
    "arrow": vilt_arrow.find,
    "table": pair_table.find,
    "shards": reader.find,
}
KINDS = {name: "regions" if name == "precomp" else "pixels" for name in FINDERS}
PLUGINS = layout_modules()  # of users' packages; all layouts of the suite come before them
FINDERS |= {name: module.find for name, module in PLUGINS.items()}
KINDS |= {name: module.KIND for name, module in PLUGINS.items()}
LAYOUTS = ("auto", *KINDS)
ORDER = tuple(KINDS)
SECOND_FIRST = ("shards", "table")  # what may hold synthetic captions
EXPECTED = (
    "dataset_{name}.json (Karpathy's layout), {name}_train.json (lists, as ALBEF's), "
    "captions_train.json (COCO's), {name}_caption_karpathy_train.arrow, train.csv (or .tsv, "
    ".jsonl, .parquet), or tar shards"
)


def open_split(data: DataConfig, split: str, kind: str, second: bool = False) -> Split:
    """The split ``train``, ``val`` or ``test`` of ``data``, or one named as on disk.

    ``kind`` is what the model wants of an image: ``regions`` or ``pixels``; ``second``: it wants a
    second text, too. Raises ConfigError for an option that cannot be used, DataError (naming the
    file) for data that cannot.
    """
    _check_options(data, kind)
    place, notes = _choose(data, kind, second)
    if isinstance(place, reader.Shards):
        wanted = second and data.second_text is None
        place = dataclasses.replace(place, wants_second=wanted)
    opened = _read(place, data.splits.get(split, split))
    if split == "train":  # said once
        opened = dataclasses.replace(opened, notes=(*opened.notes, *notes))
    if data.unique_captions:
        opened = _without_repeats(opened)
    if second:
        opened = _with_second(data, opened)
    if split == "train":
        opened = mismatch(opened, data)
        if kind == "pixels":  # one bad picture does not end a run of hours
            opened.broken_limit = max(opened.broken_limit, int(data.max_broken * opened.n_images))
    return opened


def require_enough_shards(
    data: DataConfig, kind: str, second: bool, world: int, workers: int, split: str = "train"
) -> None:
    """Raise ConfigError if ``world`` x ``workers`` readers outnumber the tars of ``split``.

    The tars are found, not opened: listing millions of samples comes later. Nothing for other
    layouts. Raises as `open_split` for data that is not there.
    """
    _check_options(data, kind)
    place, _ = _choose(data, kind, second)
    if isinstance(place, reader.Shards):
        names = data.splits.get(split, split).split("+")
        count = sum(len(place.paths(name)) for name in names)
        reader.require_enough_shards(count, world, workers, str(place.path))


def find_layouts(data: DataConfig) -> dict[str, Place]:
    """Every layout that ``data`` names or that lies below ``data.root``, by name, in `ORDER`."""
    if data.train is not None:
        names: tuple[str, ...] = ("table",)
    else:
        names = ("shards",) if data.shards is not None else ORDER
    if data.layout != "auto":
        names = (data.layout,)
    found = {name: FINDERS[name](data) for name in names}
    return {name: place for name, place in found.items() if place is not None}


def _choose(data: DataConfig, kind: str, second: bool) -> tuple[Place, tuple[str, ...]]:
    """The layout to read, and what to log about the choice."""
    names = [name for name in ORDER if KINDS[name] == kind]
    if second and data.second_text is None:
        names.sort(key=lambda name: name not in SECOND_FIRST)
    for name, key in (("table", data.train), ("shards", data.shards)):
        if key is not None and kind == "pixels" and data.layout == "auto":
            names = [name]
    if data.layout != "auto":
        names = [data.layout]
    found: dict[str, Place] = {}
    for name in names:
        try:
            place = FINDERS[name](data)
        except DataError:
            if not found:  # else it is not read anyway
                raise
            continue
        if place is not None:
            found[name] = place
    if not found:
        raise _nothing(data, kind)
    chosen, *others = found
    also = f"also there, not read: {', '.join(others)} (data.layout=NAME chooses)"
    return found[chosen], (also,) if others else ()


def _nothing(data: DataConfig, kind: str) -> DataError:
    root = root_of(data)
    if kind == "regions":
        return DataError(
            f"data.root={data.root}: no precomp layout for data.name={data.name}; expected "
            f"<split>{precomp.IMS} and <split>{precomp.CAPS} there, in {data.name}"
            f"{precomp_layout.ENDING}/ or in {data.name}/precomp/; found there: {listing(root)}. "
            "Type data.root=DIR, or make "
            "regions from pictures: itr data features --help"
        )
    return DataError(
        f"data.root={data.root}: no pictures for data.name={data.name}; expected "
        f"{EXPECTED.format(name=data.name)}; found {listing(root)}. Type data.root=DIR, "
        "data.name=NAME, data.shards=DIR or data.train=FILE"
    )


def _read(place: Place, names: str) -> Split:
    """The split ``names`` on disk; ``a+b``: both, one after the other."""
    splits = [place.read(name) for name in names.split("+")]
    if len(splits) == 1:
        return splits[0]
    if place.holds == "regions":
        raise ConfigError(
            f"data.splits: '{names}' joins splits of regions, which lie in arrays of their own; "
            "join the files, or name one split"
        )
    records: list[Record] = [record for split in splits for record in split.records]
    seconds = [split.second_texts() for split in splits]
    return dataclasses.replace(
        splits[0],
        name=names,
        records=records,
        second=list(itertools.chain(*seconds)) if all(seconds) else None,
        broken_limit=sum(split.broken_limit for split in splits),
        source=" + ".join(dict.fromkeys(split.source for split in splits)),
        notes=tuple(dict.fromkeys(note for split in splits for note in split.notes)),
    )


def _without_repeats(split: Split) -> Split:
    """``split`` with each caption of an image once: the first."""
    records = []
    for record in split.records:
        first = {caption: n for n, caption in reversed(list(enumerate(record.captions)))}
        kept = sorted(first.values())
        texts = tuple(record.captions[n] for n in kept)
        ids = tuple(record.caption_ids[n] for n in kept)
        records.append(dataclasses.replace(record, captions=texts, caption_ids=ids))
    lost = split.n_captions - sum(len(record.captions) for record in records)
    note = f"data.unique_captions: {lost} repeated captions of the same image are left out"
    return dataclasses.replace(split, records=records, notes=(*split.notes, note))


def _with_second(data: DataConfig, split: Split) -> Split:
    """``split`` with the second text that ``data`` names; None: what the files hold."""
    if data.second_text is None:
        return split
    if data.second_text == OTHER_CAPTION:
        return dataclasses.replace(split, second=OTHER_CAPTION)
    return join_second(Path(data.second_text).expanduser(), split, data.max_broken)


def _check_options(data: DataConfig, kind: str) -> None:
    known: Mapping[str, tuple[Any, tuple[str, ...]]] = {
        "layout": (data.layout, LAYOUTS),
        "decoder": (data.decoder, DECODERS),
    }
    for key, (value, names) in known.items():
        if value not in names:
            raise ConfigError(
                f"data.{key}={value}: unknown{nearest(value, names)} (known: {', '.join(names)})"
            )
    if data.layout != "auto" and KINDS[data.layout] != kind:
        fitting = [name for name, holds in KINDS.items() if holds == kind]
        raise ConfigError(
            f"data.layout={data.layout}: holds {KINDS[data.layout]}, but the model wants {kind}; "
            f"type data.layout={fitting[0]} or leave it at auto"
        )
    if data.max_dev_captions is not None and data.max_dev_captions < 1:
        raise ConfigError(
            f"data.max_dev_captions={data.max_dev_captions}: expected null or at least 1"
        )
    for key, share in (("noise", data.noise), ("max_broken", data.max_broken)):
        if not 0 <= share <= 1:
            raise ConfigError(f"data.{key}={share:g}: expected a share from 0 to 1")
    if data.held_out < 0:
        raise ConfigError(f"data.held_out={data.held_out:g}: expected 0 or more")
