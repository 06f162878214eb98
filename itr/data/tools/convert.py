"""The command ``itr data convert``: converts a dataset from one layout to another."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from itr.command import command
from itr.data.config import DataConfig
from itr.data.layout import Layout
from itr.data.layouts.json_annotations import resolve_image_paths
from itr.data.layouts.karpathy import PREFIX
from itr.data.layouts.precomp import FOLDER_SUFFIX, IMS, PrecompLayout
from itr.data.layouts.precomp_ids import IDS, MAPPING
from itr.data.layouts.registry import KINDS, ORDER, captioned, find_layouts, read_split
from itr.data.layouts.tables.tabular import ENDINGS, READABLE
from itr.data.records import Slice, Split
from itr.data.splits import split_roles
from itr.data.tools.copied_images import require_pictures
from itr.data.tools.recordio import find_recordio
from itr.data.tools.write_precomp import write_precomp
from itr.data.tools.write_shards import write_shards
from itr.data.tools.writers import (
    IMAGES,
    WriteOptions,
    write_arrow,
    write_karpathy,
    write_table,
)
from itr.errors import ConfigError, DataError, UserError
from itr.files import atomic_folder, explain_write_error
from itr.terminal import PlainConsole, say

DESCRIPTION = """\
Convert a dataset from one layout to another. Captions, splits and ids are preserved. Image files
are not copied unless the target stores images itself (arrow, shards) or the source does.

SOURCE is anything that training reads: a folder, dataset_<name>.json, a table, or tars; or a folder
with ALIP's MXNet RecordIO files (*.rec).
TARGET is one of
  DIR/dataset_<name>.json        Karpathy annotations
  DIR/pairs.csv                  table of pairs (.csv, .tsv, .jsonl, .parquet)
  DIR/<name>_precomp             region arrays and captions
  DIR/arrow                      Arrow files, as for ViLT
  DIR/wds                        tar shards
or any folder with --to."""
WRITERS = {
    "karpathy": write_karpathy,
    "precomp": write_precomp,
    "arrow": write_arrow,
    "shards": write_shards,
    "table": write_table,
}
COPIES = ("arrow", "shards")  # layouts that hold the images themselves
FILES = ("karpathy", "table")  # layouts of which TARGET may be a file
FOLDER_NAMES = {"arrow": "arrow", "wds": "shards", "shards": "shards"}  # name -> layout
# Options of train.py in messages -> options of this command.
FLAGS = {
    "data.name=": "--name ",
    "data.images=": "--images ",
    "data.layout=": "--from ",
    "data.held_out=": "--held-out ",
}
NESTED = (("testall", "test"), ("dev", "val"))  # the first contains the second and is read instead


@command
def main(arguments: Sequence[str]) -> None:
    """Convert a dataset."""
    try:
        for line in convert(_parser().parse_args(arguments), PlainConsole(stderr=True)):
            say(line)
    except UserError as error:  # from a reader: name the options of this command
        message = str(error)
        for key, flag in FLAGS.items():
            message = message.replace(key, flag)
        error.args = (message,)
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itr data convert",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, dataset_*.json, table or tars")
    add("target", metavar="TARGET", help="file or folder to write; must not exist")
    add(
        "--from",
        dest="layout",
        default="auto",
        choices=("auto", *KINDS),
        help="layout of SOURCE (default auto)",
    )
    add("--to", choices=tuple(WRITERS), help="layout of TARGET (default: from its name)")
    add("--name", help="name of the dataset, if SOURCE holds several, and of TARGET")
    add("--images", help="image folder of SOURCE (default: searched beside the annotations)")
    add("--regions", help="folder of region arrays to write to a precomp TARGET")
    add(
        "--captions",
        type=int,
        help="captions per image in a precomp TARGET: the first ones, repeated if there are fewer",
    )
    add(
        "--follow-outside",
        action="store_true",
        help="copy images from outside SOURCE and --images, too (arrow, shards)",
    )
    add("--shard-size", type=int, default=1000, help="samples per tar (default 1000)")
    add(
        "--held-out",
        type=float,
        help="images of train held out for val, and as many for test, if SOURCE has train only; "
        "below 1: a share (default: as data=table, 0.05 and at most 1000)",
    )
    add(
        "--second-key",
        default="synthetic_caption",
        help="name of the second text in SOURCE and TARGET (default synthetic_caption)",
    )
    return parser


def convert(args: argparse.Namespace, console: PlainConsole) -> list[str]:
    """Run the command; lines that say what was written and how to train on it.

    Raises ConfigError or DataError; nothing is left behind in that case.
    """
    target = Path(args.target).expanduser()
    if target.exists():
        raise ConfigError(f"{target}: already exists; pass a TARGET that does not")
    to = args.to or _target_layout(target)
    data = source_config(args)
    layout = _choose_layout(data, to, args)
    console.print(f"reading {layout.name} layout, {layout.path}")
    splits = {
        name: read_split(layout, on_disk) for name, on_disk in _select_splits(layout, to).items()
    }
    for note in dict.fromkeys(note for split in splits.values() for note in split.notes):
        console.print(note)
    if layout.kind == "regions" and to != "precomp":
        splits = {name: _with_images(split, args.images) for name, split in splits.items()}
    if to in COPIES:
        require_pictures(splits, data, args)
    total = sum(split.n_images for split in splits.values())
    splits = _renumber({name: captioned(split) for name, split in splits.items()})
    name = args.name or (data.name if data.name != "?" else target.stem)
    options = WriteOptions(
        name.removeprefix(PREFIX).removesuffix(FOLDER_SUFFIX),
        args.second_key,
        args.shard_size,
        args.captions,
        None if args.regions is None else Path(args.regions).expanduser(),
    )
    lines = _write(to, target, splits, options)
    if uncaptioned := total - sum(split.n_images for split in splits.values()):
        lines.append(f"left out: {uncaptioned} images without a caption")
    counts = [f"{name}: {s.n_images} images, {s.n_captions} captions" for name, s in splits.items()]
    return [f"wrote {to} layout, {target} ({'; '.join(counts)})", *lines]


def _write(to: str, target: Path, splits: dict[str, Split], options: WriteOptions) -> list[str]:
    """Write ``target``; remove what was written if that fails."""
    with explain_write_error(target, "the dataset", "pass a TARGET elsewhere"):
        if not (to in FILES and target.suffix):
            with atomic_folder(target) as draft:
                lines = WRITERS[to](draft, splits, options)
                return [line.replace(str(draft), str(target)) for line in lines]
        stored = any(isinstance(split.records[0].image, Slice) for split in splits.values())
        images = _extraction_folder(target) if stored else target.parent / IMAGES
        try:
            lines = WRITERS[to](target, splits, dataclasses.replace(options, images=images.name))
        except BaseException:
            if stored:
                shutil.rmtree(images, ignore_errors=True)
            target.unlink(missing_ok=True)
            raise
        return [*lines, f"extracted images: {images}"] if stored else lines


def _extraction_folder(target: Path) -> Path:
    """The folder, which does not exist, that images inside other files are extracted to.

    Raises ConfigError if both of its possible names are taken.
    """
    names = (IMAGES, f"{target.stem}_{IMAGES}")
    folders = [folder for name in names if not (folder := target.parent / name).exists()]
    if not folders:
        raise ConfigError(
            f"{target.parent}: holds {' and '.join(names)}, and extracted images would be mixed "
            "with theirs; pass a TARGET of another name or in an empty folder"
        )
    return folders[0]


def _target_layout(target: Path) -> str:
    """The layout that the name of the target implies."""
    if target.suffix in ENDINGS:
        return "table"
    if target.suffix == ".json" and target.name.startswith(PREFIX):
        return "karpathy"
    if target.name.endswith(FOLDER_SUFFIX):
        return "precomp"
    if target.name in FOLDER_NAMES:
        return FOLDER_NAMES[target.name]
    raise ConfigError(f"{target}: the name implies no layout; pass --to {'|'.join(WRITERS)}")


def source_config(args: argparse.Namespace) -> DataConfig:
    """The data configuration that reads SOURCE."""
    path, name = Path(args.source).expanduser(), args.name or "?"
    data = DataConfig(
        name,
        str(path),
        args.layout,
        images=args.images,
        second_key=args.second_key,
        held_out=args.held_out,
    )
    if path.suffix in READABLE and not (path.suffix == ".json" and path.name.startswith(PREFIX)):
        return dataclasses.replace(data, train=str(path), layout="table")
    if path.suffix == ".tar" or "{" in path.name:
        return dataclasses.replace(data, shards=args.source, layout="shards")
    if path.suffix == ".json":
        name = path.stem.removeprefix(PREFIX)
        return dataclasses.replace(data, root=str(path.parent), name=name, layout="karpathy")
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder; pass SOURCE")
    return data


def _choose_layout(data: DataConfig, to: str, args: argparse.Namespace) -> Layout:
    """The layout to read: one with regions if TARGET needs them, otherwise one with images."""
    kind = "regions" if to == "precomp" and args.regions is None else "pixels"
    layouts = find_layouts(data)
    for name in ORDER:
        if name in layouts and KINDS[name] == kind:
            return layouts[name]
    if kind == "pixels" and not layouts and (records := find_recordio(data)) is not None:
        return records
    names = ", ".join(layouts) or "nothing"
    if kind == "regions":
        raise ConfigError(
            f"{data.root}: no region arrays for the precomp layout ({names} there); pass "
            "--regions DIR, or extract them from the images: itr data features --help"
        )
    if "precomp" in layouts:
        if args.images is not None:
            return layouts["precomp"]
        raise ConfigError(
            f"{data.root}: holds region arrays, but the target needs images; pass --images DIR "
            "with the images that id_mapping.json names, or pass other annotations as SOURCE"
        )
    raise DataError(f"{data.root}: no known layout ({names} there); pass --from LAYOUT")


def _with_images(split: Split, images: str) -> Split:
    """A split of regions as a split of the same images in the folder ``images``.

    Raises DataError if no file names the images, or if they are missing.
    """
    path = Path(split.source)
    named = [dataclasses.replace(r, image=str(r.extra.get("file", ""))) for r in split.records]
    if not all(record.image for record in named):
        raise DataError(
            f"{path}: image names are unknown; expected {path.name[: -len(IMS)]}{IDS} and "
            f"{MAPPING} beside it"
        )
    records = [dataclasses.replace(record, extra={}) for record in named]
    records = resolve_image_paths(path, records, images)
    return Split(split.name, "karpathy", records, source=split.source)


def _select_splits(layout: Layout, to: str) -> dict[str, str]:
    """Name in the target -> name on disk; splits contained in another one are left out."""
    names = list(layout.splits())
    for outer, inner in NESTED:
        if outer in names and inner in names:
            names.remove(inner)
    if to == "precomp" and isinstance(layout, PrecompLayout):
        return {name: name for name in names}
    return split_roles(names)


def _renumber(splits: dict[str, Split]) -> dict[str, Split]:
    """``splits`` with new image or caption ids if they are not unique over all splits."""
    records = [record for split in splits.values() for record in split.records]
    images = {record.image_id for record in records}
    captions = [number for record in records for number in record.caption_ids]
    new_images, new_captions = len(images) < len(records), len(set(captions)) < len(captions)
    if not (new_images or new_captions):
        return splits
    renumbered, image, caption = {}, 0, 0
    for name, split in splits.items():
        split_records = []
        for record in split.records:
            ids = tuple(range(caption, caption + len(record.captions)))
            if new_images:
                record = dataclasses.replace(record, image_id=image)
            if new_captions:
                record = dataclasses.replace(record, caption_ids=ids)
            split_records.append(record)
            image, caption = image + 1, caption + len(ids)
        renumbered[name] = dataclasses.replace(split, records=split_records)
    return renumbered
