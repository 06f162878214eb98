"""Finds the layout of a dataset on disk and opens its splits.

If a folder holds several layouts, the first of `ORDER` that the model can read is used;
``data.layout=NAME`` chooses another. Layouts that can hold synthetic captions come first if the
model needs a second text.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from itr.data.captions import separate_captions, with_whole_characters
from itr.data.config import DataConfig
from itr.data.layout import Layout, LayoutSpec, data_root, list_folder, recordio_advice
from itr.data.layouts import precomp
from itr.data.layouts.noisy_pairs import mismatch
from itr.data.layouts.second_text_file import join_second
from itr.data.layouts.shards import reader as shards
from itr.data.records import OTHER_CAPTION, Record, Split
from itr.data.splits import ROLES, role_of, unused_splits
from itr.errors import ConfigError, DataError, first_of, nearest
from itr.options import faults
from itr.plugins import layout_modules

__all__ = [
    "KINDS",
    "LAYOUTS",
    "DataConfig",
    "find_layouts",
    "open_split",
    "read_split",
    "require_enough_shards",
]


# Images of Karpathy's splits, by dataset and role.
KNOWN_SIZES = {
    "f30k": {"train": 29_000, "val": 1_014, "test": 1_000},
    "coco": {"train": 113_287, "val": 5_000, "test": 5_000},
}
SCAN_TEST = 1_000  # images of SCAN's split test for COCO; its testall has 5,000


def _layout_modules() -> dict[str, Any]:
    """The modules of this package that define ``LAYOUT``, by layout name, preferred ones first."""
    here, package = str(Path(__file__).parent), __name__.rpartition(".")[0]
    names = (info.name for info in pkgutil.walk_packages([here], f"{package}."))
    modules = [importlib.import_module(name) for name in names if name != __name__]
    found = [module for module in modules if hasattr(module, "LAYOUT")]
    found.sort(key=lambda module: module.LAYOUT.preference)
    return {module.LAYOUT.name: module for module in found}


MODULES = _layout_modules()
PLUGINS = layout_modules()  # of users' packages; the layouts of the suite come before them
FINDERS: dict[str, Callable[[DataConfig], Layout | None]] = {
    name: module.find for name, module in {**MODULES, **PLUGINS}.items()
}
SPECS: dict[str, LayoutSpec] = {name: module.LAYOUT for name, module in MODULES.items()}
KINDS = {name: spec.kind for name, spec in SPECS.items()}
KINDS |= {name: module.KIND for name, module in PLUGINS.items()}
LAYOUTS = ("auto", *KINDS)
ORDER = tuple(KINDS)
WITH_SECOND = tuple(name for name, spec in SPECS.items() if spec.second)
EXPECTED = ", ".join(spec.files for spec in SPECS.values() if spec.kind == "pixels")


def open_split(data: DataConfig, split: str, kind: str, second: bool = False) -> Split:
    """Open a split of ``data``.

    Args:
        data: the dataset.
        split: ``train``, ``val`` or ``test``, or the name of a split on disk.
        kind: what the model reads of an image, ``regions`` or ``pixels``.
        second: whether the model needs a second text per image.

    Raises ConfigError for an unusable option, DataError (naming the file) for unusable data.
    """
    _check_options(data, kind)
    layout, notes = _choose(data, kind, second)
    if isinstance(layout, shards.ShardsLayout):
        needs_second = second and data.second_text is None
        layout = dataclasses.replace(layout, needs_second=needs_second)
    opened = read_split(layout, data.splits.get(split, split), data.caption_form)
    opened = _without_captions(opened, training=split == "train")
    if split == "train":  # logged once per run, not once per split
        unused = _unused_note(layout, data)
        opened = dataclasses.replace(opened, notes=(*opened.notes, *notes, *unused))
    if shortfall := compare_with_published(opened, data.name, split):
        opened = dataclasses.replace(opened, notes=(*opened.notes, shortfall))
    if data.unique_captions:
        opened = _without_repeats(opened)
    if second:
        opened = _with_second(data, opened)
    if split == "train":
        opened = mismatch(opened, data)
        if kind == "pixels":
            limit = int(data.max_broken * opened.n_images)
            opened.broken_limit = max(opened.broken_limit, limit)
    return opened


def compare_with_published(split: Split, dataset: str | None, role: str) -> str:
    """What a split lacks of the images of a published dataset; empty if it is complete.

    Splits that are not Karpathy's, such as ``val2017``, and those that are cut on purpose are not
    compared.
    """
    expected = KNOWN_SIZES.get(dataset or "", {}).get(role_of(role))
    if expected is None or role_of(role) not in ROLES or "+" in split.name:
        return ""
    if split.layout == "precomp":
        cut = any("max_dev_captions" in note for note in split.notes)
        expected = SCAN_TEST if split.name == "test" and dataset == "coco" else expected
        expected = split.n_images if cut else expected
    if split.n_images >= expected:
        return ""
    return (
        f"{split.source}: {split.n_images:,} images; this split of {dataset} has {expected:,}: the "
        "dataset is incomplete, or is not Karpathy's split"
    )


def require_enough_shards(
    data: DataConfig, kind: str, second: bool, world: int, workers: int, split: str = "train"
) -> None:
    """Raise ConfigError if ``split`` has fewer tars than ``world`` x ``workers`` readers.

    Lists the tars without opening them, so it is fast for millions of samples. Does nothing for
    other layouts. Raises as `open_split` for missing data.
    """
    _check_options(data, kind)
    layout, _ = _choose(data, kind, second)
    if isinstance(layout, shards.ShardsLayout):
        names = data.splits.get(split, split).split("+")
        count = sum(len(layout.paths(name)) for name in names)
        shards.require_enough_shards(count, world, workers, str(layout.path))


def find_layouts(data: DataConfig) -> dict[str, Layout]:
    """All layouts that ``data`` names or that are below ``data.root``, by name, in `ORDER`."""
    if data.table is not None:
        names: tuple[str, ...] = ("table",)
    else:
        names = ("shards",) if data.shards is not None else ORDER
    if data.layout != "auto":
        names = (data.layout,)
    layouts = {name: FINDERS[name](data) for name in names}
    return {name: layout for name, layout in layouts.items() if layout is not None}


def _choose(data: DataConfig, kind: str, second: bool) -> tuple[Layout, tuple[str, ...]]:
    """The layout to read, and log lines about the choice."""
    names = [name for name in ORDER if KINDS[name] == kind]
    if second and data.second_text is None:
        names.sort(key=lambda name: name not in WITH_SECOND)
    for name, option in (("table", data.table), ("shards", data.shards)):
        if option is not None and kind == "pixels" and data.layout == "auto":
            names = [name]
    if data.layout != "auto":
        names = [data.layout]
    layouts: dict[str, Layout] = {}
    for name in names:
        try:
            layout = FINDERS[name](data)
        except DataError:
            if not layouts:  # otherwise this layout would not be read anyway
                raise
            continue
        if layout is not None:
            layouts[name] = layout
    if not layouts:
        raise _no_layout(data, kind)
    chosen, *others = layouts
    note = f"other layouts there are not read: {', '.join(others)} (data.layout=NAME chooses)"
    return layouts[chosen], (note,) if others else ()


def _unused_note(layout: Layout, data: DataConfig) -> tuple[str, ...]:
    """A note about the splits on disk that nothing reads."""
    known = layout.splits()
    sizes = known if isinstance(known, Mapping) else {}
    unused = unused_splits(known, data.splits)
    if not unused:
        return ()
    named = [f"{name} ({sizes[name]} images)" if name in sizes else name for name in unused]
    return (
        f"{layout.path}: used by nothing: split {first_of(named)}; "
        f"data.splits.{'|'.join(ROLES)}={unused[0]} reads it",
    )


def _no_layout(data: DataConfig, kind: str) -> DataError:
    root = data_root(data)
    if kind == "regions":
        return DataError(
            f"data.root={data.root}: no precomp layout for data.name={data.name}; expected "
            f"<split>{precomp.IMS} and <split>{precomp.CAPS} there, in {data.name}"
            f"{precomp.FOLDER_SUFFIX}/ or in {data.name}/precomp/. The folder holds "
            f"{list_folder(root)}. Pass data.root=DIR, or extract regions from images: itr data "
            "features --help"
        )
    return DataError(
        f"data.root={data.root}: no images for data.name={data.name}; expected "
        f"{EXPECTED.format(name=data.name)}. The folder holds {list_folder(root)}."
        f"{recordio_advice(root)} Pass data.root=DIR, data.name=NAME, data.shards=DIR or "
        "data.train=FILE"
    )


def read_split(layout: Layout, names: str, caption_form: str = "auto") -> Split:
    """Read the split ``names`` on disk; ``a+b`` concatenates two splits.

    Captions that share a text are separated as ``caption_form`` says; see `separate_captions`.
    """
    read = (with_whole_characters(layout.read(name)) for name in names.split("+"))
    splits = [separate_captions(split, caption_form) for split in read]
    if len(splits) == 1:
        return splits[0]
    if layout.kind == "regions":
        raise ConfigError(
            f"data.splits: '{names}' joins splits with separate region arrays, which is not "
            "supported; concatenate the files, or name one split"
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


def captioned(split: Split) -> Split:
    """``split`` without the images that have no caption."""
    if split.captions_per_image.all():
        return split
    kept = split.captions_per_image > 0
    second = list(itertools.compress(split.second_texts(), kept)) or split.second
    records = list(itertools.compress(split.records, kept))
    return dataclasses.replace(split, records=records, second=second)


def _without_captions(split: Split, training: bool) -> Split:
    """Count the images without a caption: no training pair, but candidates of an evaluation.

    Raises DataError if no image of the split has one.
    """
    if not split.n_captions:
        raise DataError(
            f"{split.source}: none of the {split.n_images} images of split {split.name} has a "
            "caption; expected annotations with captions. Pass data.root of such files"
        )
    if split.captions_per_image.all():
        return split
    images = [split.records[n] for n in np.flatnonzero(split.captions_per_image == 0).tolist()]
    count = f"{split.source}: {len(images)} of {split.n_images} images have no caption"
    names = first_of([str(image.extra.get("file", image.image)) for image in images])
    use = "left out of training" if training else "candidates in text-to-image, no queries"
    split = dataclasses.replace(split, notes=(*split.notes, f"{count} ({use}): {names}"))
    return captioned(split) if training else split


def _without_repeats(split: Split) -> Split:
    """``split`` with only the first of equal captions of an image."""
    records = []
    for record in split.records:
        first = {caption: n for n, caption in reversed(list(enumerate(record.captions)))}
        unique = sorted(first.values())
        texts = tuple(record.captions[n] for n in unique)
        ids = tuple(record.caption_ids[n] for n in unique)
        records.append(dataclasses.replace(record, captions=texts, caption_ids=ids))
    removed = split.n_captions - sum(len(record.captions) for record in records)
    note = f"data.unique_captions: {removed} repeated captions of the same image are left out"
    return dataclasses.replace(split, records=records, notes=(*split.notes, note))


def _with_second(data: DataConfig, split: Split) -> Split:
    """``split`` with the second text that ``data`` names; by default the one in its files."""
    if data.second_text is None:
        return split
    if data.second_text == OTHER_CAPTION:
        return dataclasses.replace(split, second=OTHER_CAPTION)
    joined = join_second(Path(data.second_text).expanduser(), split, data.max_broken)
    return with_whole_characters(joined)


def _check_options(data: DataConfig, kind: str) -> None:
    if found := faults(data, "data"):
        raise ConfigError("\n".join(found))
    if data.layout not in LAYOUTS:
        raise ConfigError(
            f"data.layout={data.layout}: unknown{nearest(data.layout, LAYOUTS)} (known: "
            f"{', '.join(LAYOUTS)})"
        )
    named = "table" if data.table is not None else "shards" if data.shards is not None else None
    if kind == "regions" and named is not None:
        FINDERS[named](data)  # raises for a file that does not exist
        value = data.table if named == "table" else data.shards
        raise ConfigError(
            f"data.{'train' if named == 'table' else named}={value}: holds images, but the model "
            "reads region features; extract them (itr data features --help) and pass data.root=DIR "
            "of the result alone, or use a model that reads images"
        )
    if data.layout != "auto" and KINDS[data.layout] != kind:
        fitting = [name for name, layout_kind in KINDS.items() if layout_kind == kind]
        raise ConfigError(
            f"data.layout={data.layout}: holds {KINDS[data.layout]}, but the model reads {kind}; "
            f"pass data.layout={fitting[0]} or data.layout=auto"
        )
