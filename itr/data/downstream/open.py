"""Opens the items of a task: finds the files of its data set and reads a split of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from itr.data.config import DataConfig
from itr.data.downstream import nlvr2, refcoco, snli_ve, vqa
from itr.data.downstream.rows import (
    ItemFiles,
    Rows,
    make_split,
    paused_collection,
    with_known_answers,
)
from itr.data.layout import data_root
from itr.data.layouts.json_annotations import MissingImagesError
from itr.data.layouts.registry import open_split
from itr.data.records import Split
from itr.data.scenes.make_items import prepare_items, scenes_seed
from itr.data.splits import resolve_split
from itr.errors import ConfigError, DataError, nearest
from itr.options import faults

FINDERS: dict[str, Callable[[DataConfig], ItemFiles]] = {
    "vqa": vqa.find,
    "entailment": snli_ve.find,
    "nlvr2": nlvr2.find,
    "grounding": refcoco.find,
}
PAIRS = ("assignment",)  # tasks whose items are the captions of a retrieval data set
OPTIONAL = "?"  # behind the name of a split: read if it is there with its pictures
# Options that only pairs of images and captions have.
PAIRS_ONLY = (
    "max_dev_captions",
    "unique_captions",
    "train",
    "val",
    "test",
    "second_text",
    "shards",
)


@paused_collection()
def open_items(data: DataConfig, task: str, split: str) -> Split:
    """Open a split of ``data`` for ``task``, with an item per caption.

    Args:
        data: the dataset. ``data.splits`` may join splits with ``+``; one with a question mark
            behind it is read only if it is there with its pictures.
        task: ``vqa``, ``entailment``, ``nlvr2``, ``grounding`` or ``assignment``.
        split: ``train``, ``val`` or ``test``, or the name of a split on disk.

    Raises ConfigError for an unusable option, DataError (naming the file) for unusable data.
    """
    if task in PAIRS:
        return open_split(data, split, "pixels")
    if task not in FINDERS:
        known = (*FINDERS, *PAIRS)
        raise ConfigError(
            f"task={task}: has no items{nearest(task, known)}; expected one of {', '.join(known)}"
        )
    _check_options(data, task)
    data = _with_scene_items(data, task)
    files = FINDERS[task](data)
    names = data.splits.get(split, split)
    parts: dict[str, Rows] = {}
    notes = []
    for name in _names(names, files):
        try:
            key, part = _read(files, name.removesuffix(OPTIONAL), split == "train", data)
            if name.endswith(OPTIONAL):
                make_split(key, [part], data, files)
        except (_NoSplit, MissingImagesError) as error:
            some_are_there = isinstance(error, MissingImagesError) and not error.all
            if some_are_there or not name.endswith(OPTIONAL):
                raise
            notes.append(f"{name.removesuffix(OPTIONAL)} is left out: {error}")
        else:
            parts[key] = part
    if not parts:
        raise DataError(f"data.splits.{split}={names}: none of it is there. {'; '.join(notes)}")
    opened = make_split("+".join(parts), list(parts.values()), data, files)
    limit = int(data.max_broken * opened.n_images) if split == "train" else 0
    return dataclasses.replace(opened, notes=(*opened.notes, *notes), broken_limit=limit)


def _names(names: str, files: ItemFiles) -> list[str]:
    """The names joined in ``names``, with other names replaced by those on disk."""
    known = files.splits()
    expanded = (n if n in known else files.aliases.get(n, n) for n in names.split("+"))
    return [name for joined in expanded for name in joined.split("+")]


def find_items(data: DataConfig, task: str) -> ItemFiles:
    """The files of ``task`` below ``data.root``. Raises DataError if there are none."""
    return FINDERS[task](_with_scene_items(data, task))


def find_answer_list(data: DataConfig) -> Path | None:
    """The file with the answers that a VQA model chooses from; None if there is none.

    See `vqa.read_answer_list`. Raises DataError if ``data.root`` does not exist.
    """
    return vqa.answer_list_below(data_root(_with_scene_items(data, "vqa")))


def _with_scene_items(data: DataConfig, task: str) -> DataConfig:
    """``data`` with the items of the generated scenes, which are made on first use."""
    folder = Path(data.root).expanduser()
    seed = scenes_seed(folder)
    if seed is None:
        return data
    return dataclasses.replace(data, root=str(prepare_items(folder, seed, task)))


class _NoSplit(DataError):
    """There is no such split."""


def _read(files: ItemFiles, name: str, training: bool, data: DataConfig) -> tuple[str, Rows]:
    """The name on disk and the rows of split ``name``."""
    try:
        key = resolve_split(name, files.splits(), f"data.root={data.root}")
    except DataError as error:
        raise _NoSplit(str(error)) from error
    rows = files.read(key)
    return key, with_known_answers(rows) if training else rows


def _check_options(data: DataConfig, task: str) -> None:
    if found := faults(data, "data"):
        raise ConfigError("\n".join(found))
    if data.layout != "auto":
        raise ConfigError(
            f"data.layout={data.layout}: task={task} finds its files by their names; remove it"
        )
    if data.noise:
        raise ConfigError(f"data.noise={data.noise}: only pairs can be mismatched; remove it")
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    for name in PAIRS_ONLY:
        if getattr(data, name) != defaults[name]:
            raise ConfigError(
                f"data.{name}={getattr(data, name)}: has no effect with task={task}; remove it"
            )
    for source, root in (data.roots or {}).items():
        if not Path(root).expanduser().is_dir():
            raise ConfigError(f"data.roots.{source}={root}: no such folder")
