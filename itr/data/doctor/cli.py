"""The command ``itr data check``.

Opens every layout in a folder as training does, then examines it in full: counts, content hashes,
decoding of every image, every region value, duplicates and leaks between splits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from itr.command import command
from itr.data.checks.leaks import check_leaks
from itr.data.doctor.inspect import (
    caption_statistics,
    check_captions,
    check_duplicates,
    check_images,
    check_lengths,
)
from itr.data.doctor.inspect_items import examine_items, find_tasks, item_layouts
from itr.data.doctor.inspect_regions import check_regions
from itr.data.doctor.report import FAILED, NOTE, REFUSED, WARNING, DatasetReport, SplitReport
from itr.data.downstream.open import FINDERS as ITEM_TASKS
from itr.data.layout import list_folder, recordio_advice
from itr.data.layouts.region_arrays import check_same_width
from itr.data.layouts.registry import FINDERS, KINDS, ORDER, DataConfig, open_split
from itr.data.records import Split
from itr.data.splits import ROLES, match_split, resolve_split, role_of
from itr.data.tools import arguments as command_line
from itr.errors import ConfigError, DataError, UserError
from itr.terminal import PlainConsole
from itr.view import View

USAGE = """\
usage: itr data check data.root=DIR [data=NAME] [model=NAME] [data.KEY=VALUE ...] [--json]

Report what a folder holds and what is wrong with it. Every layout in the folder is opened as
training opens it, then examined in full: counts, content hashes, decoding of every image, every
region value, duplicates and leaks between splits. The same for questions, hypotheses, statements
and expressions (vqa, entailment, nlvr2, grounding), with their answers, labels and boxes.

  data.root=DIR    the folder to check
  data=NAME        the dataset it should hold (f30k, coco, vqa2, ...): also compare with known sizes
  task=NAME        check the items of this task alone
  model=NAME       also measure caption lengths with the tokenizer of this model
  data.KEY=VALUE   any other option of the dataset, e.g. data.layout=karpathy
  --json           print the report as JSON

exit code:
  0  clean (there may be notes)
  1  faults that training skips, converts or warns about
  2  training would refuse the data
  3  the check itself failed"""
HOLD_OUT = ("table", "folder", "shards")  # layouts that `data.held_out` applies to
UNNAMED = ("no file is named", "no folder is named")  # notes that only concern a named dataset
# Notes with these phrases say that training skips something.
SKIPPED = (
    "left out",
    "not read",
    "used by nothing",
    "one value only",
    "as one each",
    "is incomplete",
)


@dataclasses.dataclass
class CheckOptions:
    """The parsed command line."""

    data: DataConfig
    name: str | None  # of the dataset; None: not given, so no sizes are known
    view: View | None  # of the model; None: no model is given
    task: str | None  # None: not given
    as_json: bool


@command
def main(arguments: Sequence[str]) -> int:
    """Check a folder, print the report and return the exit code."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return NOTE
    try:
        options = parse_options(arguments)
        report = examine(options, PlainConsole(stderr=True))
    except (UserError, BrokenPipeError):
        raise
    except Exception:
        traceback.print_exc()  # not raised: Python would exit with 1, which means "faults" here
        return FAILED
    if options.as_json:
        print(json.dumps(report.to_dict(), indent=2, allow_nan=False, default=float))
    else:
        report.show(PlainConsole())
    return report.exit_code


def parse_options(arguments: Sequence[str]) -> CheckOptions:
    """Parse the command line. Raises ConfigError for unusable arguments."""
    task = next((a.removeprefix("task=") for a in arguments if a.startswith("task=")), None)
    if task is not None and task not in ITEM_TASKS:
        raise ConfigError(f"task={task}: expected one of {', '.join(ITEM_TASKS)}")
    keys = [a for a in arguments if a != "--json" and not a.startswith("task=")]
    groups = {key.partition("=")[0] for key in keys}
    if groups & {"data", "model"}:
        values = command_line.compose(keys)
        data = command_line.data_config(values)
    else:
        values = {}
        dotted = dict(key.split("=", 1) for key in keys if key.startswith("data.") and "=" in key)
        if len(dotted) != len(keys):
            odd = next(key for key in keys if not key.startswith("data.") or "=" not in key)
            raise ConfigError(
                f"'{odd}': expected data.root=DIR, data=NAME, model=NAME, task=NAME or --json"
            )
        data = command_line.plain_data(dotted)
    needs_root = data.shards is None and data.table is None
    if needs_root and not (data.root and Path(data.root).expanduser().is_dir()):
        raise ConfigError(f"data.root={data.root}: no such folder; pass data.root=DIR")
    return CheckOptions(
        data,
        name=data.name if "data" in groups else None,
        view=command_line.view_of(values) if "model" in groups else None,
        task=task,
        as_json="--json" in arguments,
    )


def examine(options: CheckOptions, console: PlainConsole) -> DatasetReport:
    """Examine all layouts of the folder, with a progress bar on ``console``."""
    data = options.data
    report = DatasetReport(str(data.table or data.shards or data.root))
    layouts = ("table",) if data.table else ("shards",) if data.shards else ORDER
    if data.layout != "auto":
        layouts = (data.layout,)
    tasks = find_tasks(data, options.task) if data.root and not (data.table or data.shards) else []
    if tasks:
        layouts = () if options.task else tuple(item_layouts(layouts))
    with _progress(console) as progress:
        for task in tasks:
            images = functools.partial(_examine_images, report=report, progress=progress)
            examine_items(data, options.name and data.name, task, report, images)
        for layout in layouts:
            splits = _list_splits(layout, options, report)
            _examine_layout(layout, splits, options, report, progress)
    if not report.splits and not report.findings:
        root = Path(data.root).expanduser()
        message = (
            "no known layout; expected <split>_ims.npy and <split>_caps.txt, dataset_*.json, "
            "*_train.json, captions_train.json, *.arrow, a table of pairs, *.tar or NAME.jpg with "
            "NAME.txt. The folder "
            f"holds {list_folder(root)}.{recordio_advice(root)} Pass data.root=DIR, data.name=NAME "
            "or data.train=FILE"
        )
        report.add(REFUSED, "", "", message)
    return report


def _list_splits(layout: str, options: CheckOptions, report: DatasetReport) -> list[str]:
    """The splits of ``layout`` by their names on disk; empty if it is not there."""
    try:
        found = FINDERS[layout](options.data)
        names = [] if found is None else list(found.splits())
    except (DataError, ConfigError) as error:
        report.add(REFUSED, layout, "", str(error))
        return []
    _check_roles(layout, names, options, report)
    return sorted(names, key=lambda name: (_order(name), name))


def _order(split: str) -> int:
    """The index of the role of ``split``, also in `KNOWN_SIZES`; other splits come last."""
    role = role_of(split)
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _check_roles(
    layout: str, names: Sequence[str], options: CheckOptions, report: DatasetReport
) -> None:
    """Report splits that `train.py` would not find, or of which there are several."""
    for role in ROLES if names else ():
        for split in options.data.splits.get(role, role).split("+"):
            found = len(match_split(split, names))
            if found > 1 or (not found and options.name is not None):
                try:
                    resolve_split(split, names, role)
                except DataError as error:
                    level = REFUSED if found else NOTE
                    report.add(level, layout, "", f"{error} (train.py needs it)")
    if options.name is None and layout in HOLD_OUT and set(map(role_of, names)) == {"train"}:
        report.add(
            NOTE,
            layout,
            "",
            "no split for val and test: data=table holds out images of train for them, which are "
            "counted as train here; pass data=table to see what training reads (data.held_out)",
        )


def _progress(console: PlainConsole) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _examine_layout(
    layout: str,
    names: Sequence[str],
    options: CheckOptions,
    report: DatasetReport,
    progress: Progress,
) -> None:
    splits: dict[str, Split] = {}
    digests: dict[str, np.ndarray] = {}
    for name in names:
        split = _open(layout, name, options, report)
        if split is None:
            continue
        splits[name] = split
        _examine_split(split, options, report)
        digests[name] = _examine_images(split, report, progress)
    check_duplicates(layout, splits, digests, report)
    _compare_widths(layout, splits, report)
    _check_leaks(layout, splits, report)


def _open(layout: str, name: str, options: CheckOptions, report: DatasetReport) -> Split | None:
    """The split as training opens it; None, and a finding, if training would refuse it."""
    role = "train" if role_of(name) == "train" else name  # train2014 is a training split, too
    splits = {**options.data.splits, role: name}
    data = dataclasses.replace(options.data, layout=layout, splits=splits, noise=0.0)
    try:
        second = role == "train" and data.second_text is not None and KINDS[layout] == "pixels"
        split = open_split(data, role, KINDS[layout], second)
    except (DataError, ConfigError) as error:
        report.add(REFUSED, layout, name, str(error))
        return None
    for note in split.notes:
        if options.name is None and note.startswith(UNNAMED):
            continue
        skipped = any(phrase in note for phrase in SKIPPED)
        report.add(WARNING if skipped else NOTE, layout, name, note)
    return dataclasses.replace(split, name=name)


def _examine_split(split: Split, options: CheckOptions, report: DatasetReport) -> None:
    entry = SplitReport.of(split, caption_statistics(split))
    report.splits.append(entry)
    check_captions(split, report)
    if options.view is not None:
        entry.statistics["ids_longest"] = check_lengths(split, options.view, report)


def _examine_images(split: Split, report: DatasetReport, progress: Progress) -> np.ndarray:
    rows = split.n_images if split.regions is None else len(split.regions)
    task = progress.add_task(f"{split.layout} {split.name}", total=rows)

    def advance(count: int) -> None:
        progress.advance(task, count)

    try:
        if split.regions is not None:
            return check_regions(split, report, advance)
        return check_images(split, report, len(os.sched_getaffinity(0)), advance)
    finally:
        progress.remove_task(task)


def _check_leaks(layout: str, splits: dict[str, Split], report: DatasetReport) -> None:
    training = [name for name in splits if role_of(name) == "train"]
    if not training:
        return
    try:
        check_leaks({"train": splits.pop(training[0]), **splits})
    except DataError as error:
        report.add(REFUSED, layout, "", str(error))


def _compare_widths(layout: str, splits: dict[str, Split], report: DatasetReport) -> None:
    try:
        check_same_width(splits.values())
    except DataError as error:
        report.add(REFUSED, layout, "", str(error))
