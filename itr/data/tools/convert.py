"""From one layout into another: itr data convert SOURCE TARGET.

SOURCE is what training reads: a folder, ``dataset_<name>.json``, a table, or tars. TARGET is
``DIR/dataset_<name>.json``, a table (``pairs.csv``, ...), a folder ``<name>_precomp``, ``arrow`` or
``wds``; ``--to`` names the layout of a folder that is called otherwise. Captions, splits and ids
stay; pictures are copied only where the target holds them itself, or the source does.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from itr.command import command
from itr.data.config import DataConfig
from itr.data.layout import Place
from itr.data.layouts.json_annotations import place_pictures
from itr.data.layouts.karpathy import PREFIX
from itr.data.layouts.precomp import IMS
from itr.data.layouts.precomp_ids import IDS, MAPPING
from itr.data.layouts.precomp_layout import ENDING, Precomp
from itr.data.layouts.registry import KINDS, ORDER, find_layouts
from itr.data.layouts.tabular import ENDINGS
from itr.data.records import Split
from itr.data.tools.write_precomp import write_precomp
from itr.data.tools.writers import Options, write_arrow, write_karpathy, write_shards, write_table
from itr.errors import ConfigError, DataError, UserError

TARGETS = ("karpathy", "precomp", "arrow", "shards", "table")
CALLED = {"arrow": "arrow", "wds": "shards", "shards": "shards"}  # a folder's name -> layout
FLAGS = {"data.name=": "--name ", "data.images=": "--images ", "data.layout=": "--from "}
OVERLAPPING = (("testall", "test"), ("dev", "val"))  # of both the first is read


@command
def main(arguments: Sequence[str]) -> None:
    """Convert as the command line says."""
    console = Console(stderr=True)
    try:
        for line in convert(_parser().parse_args(arguments), console):
            print(line)
    except UserError as error:
        message = str(error)
        for key, flag in FLAGS.items():
            message = message.replace(key, flag)
        raise type(error)(message) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itr data convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a folder, dataset_*.json, a table or tars")
    parser.add_argument("target", help="must not exist yet")
    parser.add_argument("--from", dest="layout", default="auto", choices=("auto", *KINDS))
    parser.add_argument("--to", choices=TARGETS, help="default: as TARGET is called")
    parser.add_argument("--name", help="of the data set, where SOURCE holds several, and of TARGET")
    parser.add_argument("--images", help="folder of SOURCE's pictures (default: found)")
    parser.add_argument("--regions", help="folder of region arrays, for a target precomp")
    parser.add_argument(
        "--captions", type=int, help="an image, for a target precomp: the first ones, repeated"
    )
    parser.add_argument("--shard-size", type=int, default=1000, help="samples a tar")
    parser.add_argument(
        "--second-key", default="synthetic_caption", help="name of the second text in both"
    )
    return parser


def convert(asked: argparse.Namespace, console: Console) -> list[str]:
    """Do what ``asked`` says; lines that tell what was written and how to train on it.

    Raises ConfigError or DataError for what cannot be done; nothing is left behind then.
    """
    target = Path(asked.target).expanduser()
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a TARGET that does not")
    to = asked.to or _layout_of(target)
    data = _source(asked)
    place = _place(data, to, asked)
    console.print(f"reading {place.layout} layout, {place.path}", markup=False, highlight=False)
    splits = {name: place.read(on_disk) for name, on_disk in _splits(place, to).items()}
    if place.holds == "regions" and to != "precomp":
        splits = {name: _pictured(split, asked.images) for name, split in splits.items()}
    splits = _numbered(splits)
    name = asked.name or (data.name if data.name != "?" else target.stem)
    options = Options(
        name.removeprefix(PREFIX).removesuffix(ENDING),
        asked.second_key,
        asked.shard_size,
        asked.captions,
        None if asked.regions is None else Path(asked.regions).expanduser(),
    )
    write = {
        "karpathy": write_karpathy,
        "table": write_table,
        "arrow": write_arrow,
        "shards": write_shards,
        "precomp": write_precomp,
    }[to]
    try:
        told = write(target, splits, options)
    except BaseException:
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        raise
    counts = [f"{name}: {s.n_images} images, {s.n_captions} captions" for name, s in splits.items()]
    return [f"wrote {to} layout, {target} ({'; '.join(counts)})", *told]


def _layout_of(target: Path) -> str:
    """The layout that a target's name tells."""
    if target.suffix in ENDINGS:
        return "table"
    if target.suffix == ".json" and target.name.startswith(PREFIX):
        return "karpathy"
    if target.name.endswith(ENDING):
        return "precomp"
    if target.name in CALLED:
        return CALLED[target.name]
    raise ConfigError(
        f"{target}: its name tells no layout; type --to karpathy, precomp, arrow, shards or table"
    )


def _source(asked: argparse.Namespace) -> DataConfig:
    """What to read, as training would be told."""
    path, name = Path(asked.source).expanduser(), asked.name or "?"
    data = DataConfig(
        name, str(path), asked.layout, images=asked.images, second_key=asked.second_key
    )
    if path.suffix in ENDINGS:
        return dataclasses.replace(data, train=str(path), layout="table")
    if path.suffix == ".tar" or "{" in path.name:
        return dataclasses.replace(data, shards=asked.source, layout="shards")
    if path.suffix == ".json":
        own = path.stem.removeprefix(PREFIX)
        return dataclasses.replace(data, root=str(path.parent), name=own, layout="karpathy")
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    return data


def _place(data: DataConfig, to: str, asked: argparse.Namespace) -> Place:
    """The layout to read; where TARGET holds regions, regions."""
    holds = "regions" if to == "precomp" and asked.regions is None else "pixels"
    places = find_layouts(data)
    for name in ORDER:
        if name in places and KINDS[name] == holds:
            return places[name]
    found = ", ".join(places) or "nothing"
    if holds == "regions":
        raise ConfigError(
            f"{data.root}: holds no region arrays ({found}), which precomp is made of; type "
            "--regions DIR, or make them from the pictures: itr data features --help"
        )
    if "precomp" in places:
        if asked.images is not None:
            return places["precomp"]
        raise ConfigError(
            f"{data.root}: holds region arrays, but the target is made of pictures; type --images "
            "DIR for those that its id_mapping.json names, or name other annotations as SOURCE"
        )
    raise DataError(f"{data.root}: no layout is recognised there ({found}); type --from LAYOUT")


def _pictured(split: Split, images: str) -> Split:
    """A split of regions with the pictures of the same images.

    Raises DataError if nothing names them, or if they are not in the folder ``images``.
    """
    path = Path(split.source)
    named = [dataclasses.replace(r, image=str(r.extra.get("file", ""))) for r in split.records]
    if not all(record.image for record in named):
        raise DataError(
            f"{path}: nothing names the pictures of these rows; expected {path.name[: -len(IMS)]}"
            f"{IDS} and {MAPPING} beside it"
        )
    bare = [dataclasses.replace(record, extra={}) for record in named]
    return Split(split.name, "karpathy", place_pictures(path, bare, images), source=split.source)


def _splits(place: Place, to: str) -> dict[str, str]:
    """train, val, test -> what the source calls them; splits that lie in others are left out."""
    names = place.splits()
    for whole, part in OVERLAPPING:
        if whole in names and part in names:
            names.remove(part)
    if to == "precomp" and isinstance(place, Precomp):
        return {name: name for name in names}
    return {{"dev": "val", "testall": "test"}.get(name, name): name for name in names}


def _numbered(splits: dict[str, Split]) -> dict[str, Split]:
    """``splits`` with new ids of images or captions where they repeat."""
    records = [record for split in splits.values() for record in split.records]
    images = {record.image_id for record in records}
    captions = [number for record in records for number in record.caption_ids]
    new_images, new_captions = len(images) < len(records), len(set(captions)) < len(captions)
    if not (new_images or new_captions):
        return splits
    changed, image, caption = {}, 0, 0
    for name, split in splits.items():
        own = []
        for record in split.records:
            ids = tuple(range(caption, caption + len(record.captions)))
            if new_images:
                record = dataclasses.replace(record, image_id=image)
            if new_captions:
                record = dataclasses.replace(record, caption_ids=ids)
            own.append(record)
            image, caption = image + 1, caption + len(ids)
        changed[name] = dataclasses.replace(split, records=own)
    return changed
